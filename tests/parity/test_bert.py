"""BERT, RoBERTa and DistilBERT checkpoints give transformers' logits and hidden states, padded or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel

from interp import LabError
from models import load
from models.bert import BERT
from tests.parity.encoder_models import MAKERS, N_CTX, drawn, saved

# The same arithmetic in another order. In float32 a stream of order one carries rounding of about 1e-7 a step.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
FAMILIES = pytest.mark.parametrize("family", MAKERS)


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Relative to the largest expected number."""
    error = float((found - expected).abs().max())
    assert error <= TOLERANCES[expected.dtype] * max(1.0, float(expected.abs().max()))


def streams(model: BERT, tokens: Tensor, **given: Any) -> tuple[Tensor, list[Tensor]]:
    """The logits, and the stream before the first block and after each."""
    logits, cache = model.run_with_cache(tokens, names_filter=lambda name: "resid" in name, **given)
    n_layers = model.cfg.n_layers
    return logits, [cache["resid_pre", 0], *(cache["normalized_resid_post", layer] for layer in range(n_layers))]


def theirs(model: Any, tokens: Tensor, **given: Any) -> tuple[Tensor, list[Tensor]]:
    with torch.no_grad():
        output = model(input_ids=tokens, output_hidden_states=True, **given)
    return output.logits, list(output.hidden_states)


@FAMILIES
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("explicit", [False, True], ids=["fused", "explicit"])
def test_logits_and_all_hidden_states_are_transformers(
    family: str, seed: int, dtype: torch.dtype, explicit: bool, tmp_path: Path
) -> None:
    reference = saved(family, seed, tmp_path, dtype)
    model = load(tmp_path)
    assert isinstance(model, BERT)
    assert model.dtype == dtype
    if explicit:
        for block in model.blocks:
            block.attn.hook_pattern.add_hook(lambda pattern, hook: None)
    tokens = drawn(seed, length=N_CTX if seed else 7)
    (logits, found), (expected_logits, expected) = streams(model, tokens), theirs(reference, tokens)
    assert len(found) == len(expected)
    for ours, other in zip([logits, *found], [expected_logits, *expected], strict=True):
        assert_close(ours, other)


@FAMILIES
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("explicit", [False, True], ids=["fused", "explicit"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_leaves_each_row_as_it_is_alone(
    family: str, dtype: torch.dtype, explicit: bool, side: str, tmp_path: Path
) -> None:
    """transformers runs each row alone, as it counts padding on the left among the positions."""
    reference, model = saved(family, 0, tmp_path, dtype), load(tmp_path)
    if explicit:
        model.blocks[0].attn.hook_attn_scores.add_hook(lambda scores, hook: None)
    tokens, lengths = drawn(5), (7, 4, 2)
    mask = torch.tensor([[True] * n + [False] * (7 - n) for n in lengths])
    mask = mask.flip(1) if side == "left" else mask
    logits, found = streams(model, tokens, attention_mask=mask)
    for row, real in enumerate(mask):
        alone_logits, alone = theirs(reference, tokens[row, real][None])
        for ours, other in zip([logits, *found], [alone_logits, *alone], strict=True):
            assert_close(ours[row, real], other[0])
    if side == "right" and family != "roberta":  # which takes the mask from the ids of padding
        expected_logits, _ = theirs(reference, tokens, attention_mask=mask.long())
        assert_close(logits[mask], expected_logits[mask])


@pytest.mark.parametrize("seed", [0, 1])
def test_segments_are_transformers(seed: int, tmp_path: Path) -> None:
    reference, model = saved("bert", seed, tmp_path), load(tmp_path)
    tokens = drawn(3)
    segments = torch.randint(model.cfg.n_segments, tokens.shape, generator=torch.Generator().manual_seed(seed))
    logits, found = streams(model, tokens, token_type_ids=segments)
    expected_logits, expected = theirs(reference, tokens, token_type_ids=segments)
    for ours, other in zip([logits, *found], [expected_logits, *expected], strict=True):
        assert_close(ours, other)
    assert not torch.equal(logits, model(tokens))


@FAMILIES
def test_a_bare_base_model_has_the_stream_and_says_that_its_logits_mean_little(family: str, tmp_path: Path) -> None:
    saved(family, 0, tmp_path / "whole").base_model.save_pretrained(tmp_path / "base")
    with pytest.warns(UserWarning, match="no masked-language-model head"):
        model = load(tmp_path / "base")
    tokens = drawn(1)
    with torch.no_grad():
        base = AutoModel.from_pretrained(tmp_path / "base", dtype=torch.float64)
        expected = base(input_ids=tokens, output_hidden_states=True)
    logits, found = streams(model, tokens)
    for ours, other in zip(found, expected.hidden_states, strict=True):
        assert_close(ours, other)
    assert_close(logits, expected.last_hidden_state @ model.W_E.T)


def test_early_checkpoints_call_norms_gamma_and_beta(tmp_path: Path) -> None:
    saved("bert", 0, tmp_path)
    expected = load(tmp_path)(drawn(0))
    file = tmp_path / "model.safetensors"
    older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = load_file(file)
    for new, old in older.items():
        renamed = {name.replace(new, old): tensor.clone() for name, tensor in renamed.items()}
    renamed["cls.seq_relationship.weight"] = torch.zeros(2, 16)  # of the next sentence, which the lab leaves
    renamed["bert.pooler.dense.bias"] = torch.zeros(16)
    save_file(renamed, file)
    assert torch.equal(load(tmp_path)(drawn(0)), expected)


@FAMILIES
def test_saved_in_the_labs_own_format_it_is_the_same_model_bit_for_bit(family: str, tmp_path: Path) -> None:
    saved(family, 1, tmp_path / "theirs")
    model = load(tmp_path / "theirs")
    model.save(tmp_path / "ours")
    again = load(tmp_path / "ours")
    assert type(again) is BERT
    assert again.cfg.to_dict() == model.cfg.to_dict()
    assert torch.equal(again(drawn(2)), model(drawn(2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_decoder": True}, "is_decoder=True"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"hidden_act": "mish"}, "activation function 'mish'"),
    ],
)
def test_what_the_lab_does_not_compute_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    import json

    saved("bert", 0, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(LabError, match=message):
        load(tmp_path, backend="native")
