"""Processed weights give the same predictions, and have the property that they were processed for.

Models are float64. A step moves products and sums of some dozen terms from one place to another, which costs some
dozen roundings, 1e-14 of the largest term; over three layers 1e-10 leaves room for every model drawn.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from interp import provenance
from interp.errors import LabError
from models import GPT, TransformerConfig, load, processing
from models.norm import LayerNorm
from tests.strategies import models, random_model, token_batches

CLOSE: Any = {"atol": 1e-10, "rtol": 1e-10}
SIZES: Any = {"n_layers": 2, "n_heads": 4, "d_model": 16, "d_vocab": 11, "n_ctx": 8, "d_mlp": 20}
TOKENS = torch.tensor([[1, 5, 3, 2, 7], [4, 4, 9, 0, 10]])
STEPS = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
CAN_REFACTOR: Any = {"positional_embedding_type": "learned", "n_key_value_heads": None}


def _log_probs(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1)


@given(models(), token_batches(), st.fixed_dictionaries({step: st.booleans() for step in STEPS}))
def test_every_combination_of_steps_keeps_the_predictions(model: GPT, tokens: Tensor, asked: dict[str, bool]) -> None:
    before = model(tokens)
    skipped = processing.process_weights(model, **asked)
    centred = asked["center_unembed"] and "center_unembed" not in skipped
    compare = _log_probs if centred else lambda logits: logits
    torch.testing.assert_close(compare(model(tokens)), compare(before), **CLOSE)
    assert set(skipped) <= {step for step in asked if asked[step]}


@given(models(**CAN_REFACTOR), token_batches(), st.booleans())
def test_refactored_attention_keeps_the_logits(model: GPT, tokens: Tensor, fold: bool) -> None:
    before = model(tokens)
    kept = {"fold_ln": fold, "center_writing_weights": fold, "center_unembed": False}
    processing.process_weights(model, **kept, fold_value_biases=fold, refactor_factored_attn_matrices=True)
    torch.testing.assert_close(model(tokens), before, **CLOSE)


@given(models(), token_batches())
def test_centring_the_unembedding_moves_all_logits_of_a_position_by_one_number(model: GPT, tokens: Tensor) -> None:
    if model.cfg.output_logits_soft_cap is not None:
        return
    before = model(tokens)
    processing.centre_unembed(model)
    moved = before - model(tokens)
    torch.testing.assert_close(moved, moved[..., :1].expand_as(moved), **CLOSE)
    torch.testing.assert_close(model.W_U.mean(-1), torch.zeros_like(model.W_U[:, 0]), **CLOSE)
    assert _is_zero(model.b_U.mean())


@given(models())
def test_folding_takes_the_gains_away_and_centres_what_reads_a_layer_norm(model: GPT) -> None:
    kind = model.cfg.normalization_type
    skipped = processing.process_weights(model)
    if kind is None:
        assert "no norms" in skipped["fold_ln"]
        return
    assert model.cfg.normalization_type == f"{kind}Pre"
    before = model.cfg.norm_places != "post"
    for block in model.blocks:
        norms = [block.ln1, *([] if model.cfg.attn_only else [block.ln2])]
        assert all(getattr(norm, "w", None) is None and getattr(norm, "b", None) is None for norm in norms)
        if kind == "LN" and before:
            for name in ("W_Q", "W_K", "W_V"):
                assert _is_zero(getattr(block.attn, name).mean(1))
            assert model.cfg.attn_only or _is_zero(block.mlp.W_in.mean(0))
    assert model.ln_final.w is None
    assert kind == "RMS" or _is_zero(model.W_U.mean(0))


@given(models(normalization_type="LN", norm_places="pre"), token_batches())
def test_what_is_written_has_mean_zero_and_so_has_the_stream(model: GPT, tokens: Tensor) -> None:
    processing.centre_writing_weights(model)
    assert _is_zero(model.W_E.mean(-1))
    assert _is_zero(model.W_O.mean(-1))
    assert _is_zero(model.b_O.mean(-1))
    if not model.cfg.attn_only:
        assert _is_zero(model.W_out.mean(-1))
        assert _is_zero(model.b_out.mean(-1))
    if model.cfg.positional_embedding_type != "sinusoidal":
        _, cache = model.run_with_cache(tokens)
        assert _is_zero(cache["resid_post", -1].mean(-1))


@given(models(), token_batches())
def test_folded_value_biases_leave_none_and_each_layer_writes_the_same(model: GPT, tokens: Tensor) -> None:
    _, before = model.run_with_cache(tokens)
    processing.fold_value_biases(model)
    _, after = model.run_with_cache(tokens)
    assert not model.b_V.any()
    for layer in range(model.cfg.n_layers):
        torch.testing.assert_close(after["attn_out", layer], before["attn_out", layer], **CLOSE)


def test_refactored_heads_have_orthogonal_factors_of_equal_length() -> None:
    model = random_model(TransformerConfig(**SIZES), seed=3)
    circuits = model.W_V @ model.W_O
    processing.refactor_attention(model)
    eye = torch.eye(4, dtype=torch.float64).expand(2, 4, 4, 4)
    torch.testing.assert_close(model.W_O @ model.W_O.mT, eye, **CLOSE)
    torch.testing.assert_close(model.W_V @ model.W_O, circuits, **CLOSE)
    queries = torch.cat([model.W_Q, model.b_Q[..., None, :]], -2).norm(dim=-2)
    keys = torch.cat([model.W_K, model.b_K[..., None, :]], -2).norm(dim=-2)
    torch.testing.assert_close(queries, keys, **CLOSE)


RMS = TransformerConfig(**SIZES, normalization_type="RMS")
REFUSALS: list[tuple[Any, TransformerConfig, str]] = [
    (processing.fold_norms, TransformerConfig(**SIZES, normalization_type=None), "no norms to fold"),
    (processing.centre_writing_weights, RMS, "only layer norms take it out"),
    (processing.centre_writing_weights, TransformerConfig(**SIZES, normalization_type=None), "without norms"),
    (processing.centre_writing_weights, TransformerConfig(**SIZES, norm_places="both"), "norm_places='both'"),
    (processing.centre_unembed, TransformerConfig(**SIZES, output_logits_soft_cap=3.0), "capped at 3.0"),
    (processing.refactor_attention, TransformerConfig(**SIZES, positional_embedding_type="rotary"), "rotary positions"),
    (processing.refactor_attention, TransformerConfig(**SIZES, n_key_value_heads=2), "4 heads share 2 heads of keys"),
    (
        lambda model: processing.process_weights(model, refactor_factored_attn_matrices=True),
        TransformerConfig(**SIZES, n_key_value_heads=2),
        "4 heads share 2",
    ),
]


@pytest.mark.parametrize(("step", "cfg", "message"), REFUSALS)
def test_what_would_change_the_predictions_is_refused_and_nothing_is_changed(
    step: Any, cfg: TransformerConfig, message: str
) -> None:
    model = random_model(cfg, seed=1)
    before, cfg_before = deepcopy(model.state_dict()), model.cfg
    with pytest.raises(LabError, match=message):
        step(model)
    assert model.cfg == cfg_before
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_steps_that_do_not_fit_an_rms_model_are_left_out_with_their_reasons() -> None:
    assert set(processing.process_weights(random_model(RMS))) == {"center_writing_weights"}
    capped = random_model(TransformerConfig(**SIZES, output_logits_soft_cap=3.0))
    assert "capped" in processing.process_weights(capped)["center_unembed"]


def test_centring_a_capped_unembedding_would_have_changed_the_probabilities() -> None:
    model = random_model(TransformerConfig(**SIZES, output_logits_soft_cap=3.0))
    before = _log_probs(model(TOKENS))
    with torch.no_grad():
        model.unembed.weight -= model.unembed.weight.mean(0)
    assert (_log_probs(model(TOKENS)) - before).abs().max() > 0.01


def test_processing_twice_changes_nothing_more() -> None:
    model = random_model(TransformerConfig(**SIZES))
    processing.process_weights(model)
    once = deepcopy(model.state_dict())
    assert processing.process_weights(model) == {}
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, once[name], **CLOSE)


def test_the_weights_hash_follows_each_step() -> None:
    model = random_model(TransformerConfig(**SIZES))
    hashes = [provenance.weights_hash(model)]
    for step in (processing.fold_norms, processing.fold_value_biases, processing.centre_writing_weights):
        step(model)
        hashes.append(provenance.weights_hash(model))
    assert len(set(hashes)) == len(hashes)


def test_tied_embeddings_part_and_the_embedding_stays(tmp_path: Any) -> None:
    model = random_model(TransformerConfig(**SIZES, tie_embeddings=True))
    embedding = model.W_E.clone()
    processing.fold_norms(model)
    assert not model.cfg.tie_embeddings
    torch.testing.assert_close(model.W_E, embedding, atol=0, rtol=0)


def test_hooks_stay_attached_through_folding() -> None:
    model = random_model(TransformerConfig(**SIZES))
    seen = []
    model.add_hook("blocks.1.ln1.hook_normalized", lambda value, hook: seen.append(value.shape))
    processing.process_weights(model)
    model(TOKENS)
    assert len(seen) == 1


@given(models(), token_batches())
def test_a_processed_model_is_saved_and_loaded_like_any_other(model: GPT, tokens: Tensor) -> None:
    processing.process_weights(model)
    fresh = GPT(model.cfg)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(tokens), model(tokens))


def test_a_processed_model_comes_back_from_its_directory(tmp_path: Any) -> None:
    model = random_model(TransformerConfig(**SIZES, attn_bias=False, tie_embeddings=True))
    processing.process_weights(model)
    loaded = load(model.save(tmp_path / "folded"))
    assert loaded.cfg.normalization_type == "LNPre"
    assert torch.equal(loaded(TOKENS), model(TOKENS))


def test_bfloat16_weights_are_processed_in_float32() -> None:
    """One rounding of each folded weight, not one for every operation: within 2^-8 of the exact weight."""
    exact = random_model(TransformerConfig(**SIZES)).to(torch.bfloat16).double()
    narrow = deepcopy(exact).to(torch.bfloat16)
    for model in (exact, narrow):
        processing.process_weights(model)
    for name, tensor in narrow.named_parameters():
        wanted = dict(exact.named_parameters())[name]
        # the biases of the output gather three such steps, each rounded
        torch.testing.assert_close(tensor.double(), wanted, atol=3e-2 if name.endswith("bias") else 1e-3, rtol=2**-7)


def test_a_folded_norm_still_has_its_hook_points() -> None:
    model = random_model(TransformerConfig(**SIZES))
    _, before = model.run_with_cache(TOKENS)
    processing.fold_norms(model)
    _, after = model.run_with_cache(TOKENS)
    assert isinstance(model.ln_final, LayerNorm)
    assert list(after) == list(before)
    torch.testing.assert_close(after["ln_final.hook_normalized"], before["ln_final.hook_normalized"], **CLOSE)


def _is_zero(tensor: Tensor) -> bool:
    return float(tensor.detach().abs().max()) < 1e-12
