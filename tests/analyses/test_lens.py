"""The lens by its formulas, on random models and on published ones with known numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analyses import component_lens, logit_lens
from analyses.lens import LensResult
from interp import LabError
from interp.results import Result
from models import GPT, TransformerConfig, load
from models.tokenizers import characters
from tests.strategies import random_model

TOLERANCE = 1e-9  # float64

CONFIG = TransformerConfig(n_layers=2, n_heads=2, d_model=12, d_mlp=16, d_vocab=27, n_ctx=9, unembed_bias=True)
LETTERS = "abcdefghijklmnopqrstuvwxy "  # with the start token as many as the vocabulary
PROMPT = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.fixture(scope="module")
def model() -> GPT:
    return random_model(CONFIG, seed=5)


@pytest.fixture(scope="module")
def lens(model: GPT) -> LensResult:
    return logit_lens(model, PROMPT)


def stream(model: GPT, row: int) -> torch.Tensor:
    """The residual stream of a lens row, by a forward that stops there."""
    with torch.no_grad():
        return model(PROMPT, stop_at_layer=row)[0]


def by_hand(model: GPT, resid: torch.Tensor) -> list[list[float]]:
    """W_U · LN(h) + b_U of each position, number by number."""
    rows = []
    for h in resid.tolist():
        mean = sum(h) / len(h)
        scale = math.sqrt(sum((x - mean) ** 2 for x in h) / len(h) + model.cfg.eps)
        gain, bias = model.ln_final.w.tolist(), model.ln_final.b.tolist()
        normed = [(x - mean) / scale * g + b for x, g, b in zip(h, gain, bias, strict=True)]
        rows.append(
            [
                sum(x * w for x, w in zip(normed, column, strict=True)) + b
                for column, b in zip(model.W_U.T.tolist(), model.b_U.tolist(), strict=True)
            ]
        )
    return rows


def test_each_row_is_the_stream_normalised_by_its_own_statistics_and_unembedded(model: GPT, lens: LensResult) -> None:
    assert lens.logits.shape == (3, 5, 27)
    for row in range(3):
        np.testing.assert_allclose(lens.logits[row], by_hand(model, stream(model, row)), atol=TOLERANCE)


def test_the_row_after_each_block_is_the_model_cut_off_there(model: GPT, lens: LensResult) -> None:
    for row in (1, 2):
        shorter = GPT(TransformerConfig(**(CONFIG.to_dict() | {"n_layers": row, "dtype": torch.float64})))
        shorter.load_state_dict(model.state_dict(), strict=False)
        np.testing.assert_allclose(lens.logits[row], shorter(PROMPT)[0].detach(), atol=TOLERANCE)


def test_probability_rank_and_top_tokens_follow_their_formulas(lens: LensResult) -> None:
    probabilities = np.exp(lens.logits) / np.exp(lens.logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(lens.probabilities(), probabilities, atol=TOLERANCE)
    np.testing.assert_allclose(lens.probability(4), probabilities[..., 4], atol=TOLERANCE)
    top = lens.top_tokens(27)
    for layer, pos in np.ndindex(3, 5):
        order = sorted(range(27), key=lambda token: -lens.logits[layer, pos, token])
        assert top[layer, pos].tolist() == order
        assert lens.rank(4)[layer, pos] == order.index(4)
    np.testing.assert_array_equal(lens.top_tokens(3), top[..., :3])


def test_entropy_divergence_and_loss_follow_their_formulas(lens: LensResult) -> None:
    p = lens.probabilities()
    np.testing.assert_allclose(lens.entropy, -(p * np.log(p)).sum(-1), atol=TOLERANCE)
    np.testing.assert_allclose(lens.kl, (p[-1] * (np.log(p[-1]) - np.log(p))).sum(-1), atol=TOLERANCE)
    assert (lens.kl >= -TOLERANCE).all()
    next_tokens = PROMPT[0, 1:].tolist()
    for layer, loss in enumerate(lens.loss()):
        surprises = [-math.log(p[layer, pos, token]) for pos, token in enumerate(next_tokens)]
        assert loss == pytest.approx(sum(surprises) / 4, abs=TOLERANCE)


def test_text_and_its_ids_give_the_same_lens() -> None:
    model = random_model(CONFIG, seed=5)
    model.tokenizer = characters(LETTERS)
    text = "the cat"
    tokens = model.to_tokens(text)
    from_text, from_ids, from_row = (logit_lens(model, prompt) for prompt in (text, tokens, tokens[0]))
    np.testing.assert_array_equal(from_text.logits, from_ids.logits)
    np.testing.assert_array_equal(from_text.logits, from_row.logits)
    assert from_text.labels["pos"] == tuple(model.to_str_tokens(text))
    assert from_text.labels["layer"] == ("embed", "0", "1")


@pytest.mark.parametrize("analyse", [logit_lens, component_lens])
@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        ("some text", "has no tokenizer"),
        (torch.empty(1, 0, dtype=torch.long), "at least one token"),
        (torch.arange(10), "10 tokens, the context window 9"),
        (torch.zeros(2, 3, dtype=torch.long), r"expected one prompt .* \[2, 3\]"),
        (torch.tensor([1, 27]), "expected 0 to 26"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_is_not_one_prompt_is_refused(model: GPT, analyse: Any, prompt: Any, message: str) -> None:
    with pytest.raises(LabError, match=message):
        analyse(model, prompt)


def test_a_text_longer_than_the_context_is_refused_and_not_cut() -> None:
    model = random_model(CONFIG, seed=5)
    model.tokenizer = characters(LETTERS)
    with pytest.raises(LabError, match="the context window 9"):
        logit_lens(model, "the cat sat on the mat")


@pytest.mark.parametrize(("component", "rows"), [("attn_out", 2), ("mlp_out", 2), ("result", 4)])
def test_a_components_share_is_its_output_through_the_norm_as_it_was(model: GPT, component: str, rows: int) -> None:
    found = component_lens(model, PROMPT, component)
    _, cache = model.run_with_cache(PROMPT, names_filter=lambda name: True)
    assert found.logits.shape == (rows, 5, 27)
    with torch.no_grad():
        for row, label in enumerate(found.labels["component"]):
            if component == "result":
                written, expected = cache["result", row // 2][0, :, row % 2], f"L{row // 2}H{row % 2}"
            else:
                written, expected = cache[component, row][0], f"{row}_{component}"
            assert label == expected
            centred = written - written.mean(-1, keepdim=True)
            shares = centred / cache["ln_final.hook_scale"][0] * model.ln_final.w @ model.W_U
            np.testing.assert_allclose(found.logits[row], shares, atol=TOLERANCE)
    np.testing.assert_array_equal(found.top_tokens(1)[..., 0], found.logits.argmax(-1))


def test_components_that_are_not_there_are_refused(model: GPT) -> None:
    with pytest.raises(LabError, match="closest: 'attn_out'"):
        component_lens(model, PROMPT, "attn_ou")
    attention_only = GPT(TransformerConfig(n_layers=1, n_heads=2, d_model=8, d_vocab=27, n_ctx=9, attn_only=True))
    with pytest.raises(LabError, match="has no MLPs"):
        component_lens(attention_only, PROMPT, "mlp_out")


def test_the_result_survives_a_file_and_is_a_table_and_a_page(lens: LensResult, tmp_path: Path) -> None:
    lens.save(tmp_path / "lens.safetensors")
    loaded = Result.load(tmp_path / "lens.safetensors")
    assert isinstance(loaded, LensResult)
    assert loaded == lens
    np.testing.assert_array_equal(loaded.rank(4), lens.rank(4))
    table = lens.to_dataframe()
    assert {"layer", "layer_label", "pos", "pos_label", "entropy", "kl"} == set(table.columns)
    assert lens.top(1)[0].value == lens.entropy.max()
    assert "Logit lens" in lens.to_html()


def test_the_component_result_survives_a_file(model: GPT, tmp_path: Path) -> None:
    result = component_lens(model, PROMPT, "result")
    result.save(tmp_path / "components.safetensors")
    assert Result.load(tmp_path / "components.safetensors") == result
    assert len(result.to_dataframe()) == result.logits.size


def test_a_published_model_has_its_published_lens(shared_data: Path) -> None:
    """makemore-names on 64 of the 4096 names that its numbers are for, so it is near them, not equal."""
    model = load(shared_data / "makemore-names")
    names = (shared_data / "makemore-names" / "names.txt").read_text().split()[:64]
    losses = np.zeros(5)
    for name in names:
        ids = [0, *(ord(letter) - ord("a") + 1 for letter in name), 0]
        losses += logit_lens(model, torch.tensor(ids)).loss() * (len(ids) - 1)
    losses /= sum(len(name) + 1 for name in names)
    np.testing.assert_allclose(losses, [3.415, 2.838, 2.494, 2.087, 1.737], atol=0.2)
    assert (np.diff(losses) < 0).all()
