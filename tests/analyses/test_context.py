"""The loss when only the last tokens are kept: against a plain loop, against attention with a window, and on a model
whose need of context is known.

Float64 models of order one: 1e-9 is thousands of roundings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses import context_losses
from interp import LabError
from interp.results import Result
from models import GPT, TransformerConfig, load
from models.zoo.repeats import LETTERS, START
from tests.strategies import D_VOCAB, N_CTX, SEEDS, models, random_model

SIZES: dict[str, Any] = {"n_layers": 1, "n_heads": 2, "d_model": 8, "d_head": 4, "d_mlp": 5, "d_vocab": 11, "n_ctx": 16}
MODEL = random_model(TransformerConfig(**SIZES), seed=7)


def tokens(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(D_VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def plain_loss(model: GPT, row: list[int], i: int, window: int, sinks: int) -> float:
    """-log p of token i, given the first `sinks` tokens and the last `window` ones."""
    seen = row[:i] if i <= sinks + window else row[:sinks] + row[i - window : i]
    logits = model(torch.tensor([seen]))[0, -1].tolist()
    top = max(logits)
    return top + float(np.log(np.sum(np.exp(np.array(logits) - top)))) - logits[row[i]]


@settings(max_examples=8)
@given(models(), SEEDS, st.integers(2, 15), st.integers(1, N_CTX - 2), st.integers(0, 2))
def test_it_is_the_plain_loop_also_beyond_the_window(model: GPT, seed: int, n: int, window: int, sinks: int) -> None:
    rows = tokens(seed, 2, n)
    found = context_losses(model, rows, [window], sinks=sinks)
    expected = [np.mean([plain_loss(model, row, i, window, sinks) for row in rows.tolist()]) for i in range(1, n)]
    np.testing.assert_allclose(found.values[0], expected, atol=1e-9, rtol=1e-9)
    assert found.labels["pos"] == tuple(range(1, n))


@settings(max_examples=6)
@given(SEEDS, st.integers(1, 4), st.sampled_from(["none", "rotary"]))
def test_in_one_layer_a_window_of_text_is_a_window_of_attention(seed: int, window: int, positions: str) -> None:
    """Where positions are relative, keeping w tokens is attending to w tokens."""
    common = SIZES | {"positional_embedding_type": positions}
    whole = random_model(TransformerConfig(**common), seed)
    local = GPT(TransformerConfig(**common, attn_types=("local",), window_size=window), dtype=torch.float64)
    local.load_state_dict(whole.state_dict())
    row = tokens(seed, 12)
    expected = local(row[None], return_type="loss", loss_per_token=True)[0]
    np.testing.assert_allclose(context_losses(whole, row, [window]).values[0], expected.detach(), atol=1e-9, rtol=1e-9)


def test_texts_are_averaged_and_their_spread_is_told() -> None:
    rows = tokens(3, 4, 9)
    together = context_losses(MODEL, rows, [2, 5])
    alone = np.stack([context_losses(MODEL, row, [2, 5]).values for row in rows])
    np.testing.assert_allclose(together.values, alone.mean(0), atol=1e-12)
    np.testing.assert_allclose(together.error, alone.std(0, ddof=1) / 2, atol=1e-12)


def test_how_many_rows_run_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """1e-9: matrices of another size are multiplied in another order."""
    rows, expected = tokens(3, 4, 9), context_losses(MODEL, tokens(3, 4, 9), [2, 5], sinks=1).values
    monkeypatch.setattr("analyses.context.AT_ONCE", 7)
    np.testing.assert_allclose(context_losses(MODEL, rows, [2, 5], sinks=1).values, expected, atol=1e-9)


def test_a_block_is_foreseen_exactly_when_the_window_reaches_its_last_copy() -> None:
    """Blocks of 20 different letters, four times, beyond the 65 positions of the model: the letter to copy stands 20
    tokens back, and the one by which it is found 21. Guessing is ln 64 = 4.16 nats."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.stack([torch.randperm(len(LETTERS), generator=generator)[:20] for _ in range(8)])
    rows = torch.cat([torch.full((8, 1), START), blocks.repeat(1, 4)], 1)
    short, enough = context_losses(load("induction-2l"), rows, [19, 22], sinks=1).mean_from(41)
    assert short > 4
    assert enough < 0.1


def test_a_result_is_kept_and_drawn(tmp_path: Path) -> None:
    found = context_losses(MODEL, tokens(1, 20))
    assert found.labels["window"] == (1, 2, 4, 8, 16)
    assert np.isnan(found.error).all()
    found.save(tmp_path / "found.safetensors")
    assert Result.load(tmp_path / "found.safetensors") == found
    assert len(found.plot().data) == 5
    found.to_html(tmp_path / "found.html")
    np.testing.assert_allclose(found.mean_from(10), found.values[:, 9:].mean(1))


@pytest.mark.parametrize(
    ("row", "asked", "message"),
    [
        ([3], {}, "at least one text of two tokens"),
        ([3, 11], {}, "token ids run from 3 to 11; expected 0 to 10"),
        ([3, 1], {"windows": []}, "at least one window"),
        ([3, 1], {"windows": [0]}, "at least one token"),
        ([3, 1], {"windows": [16], "sinks": 1}, "fit into the context window of 16"),
        ([3, 1], {"sinks": -1}, "behind -1 sinks"),
        ([3, 1], {"sinks": 16}, "behind 16 sinks"),
    ],
)
def test_what_cannot_be_asked_is_refused(row: list[int], asked: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        context_losses(MODEL, torch.tensor(row), **asked)


def test_positions_beyond_the_text_and_encoders_are_refused() -> None:
    with pytest.raises(LabError, match="the texts end at 3"):
        context_losses(MODEL, torch.tensor([1, 2, 3, 4])).mean_from(4)
    encoder = random_model(TransformerConfig(**SIZES, attention_dir="bidirectional"), seed=1)
    with pytest.raises(LabError, match="its attention is bidirectional"):
        context_losses(encoder, torch.tensor([1, 2]))


@pytest.mark.gpu
def test_it_runs_on_a_gpu() -> None:
    there = GPT(MODEL.cfg, device="cuda", dtype=torch.float64)
    there.load_state_dict(MODEL.state_dict())
    ours, found = (context_losses(model, tokens(2, 2, 20), [3, 8], sinks=1).values for model in (MODEL, there))
    np.testing.assert_allclose(found, ours, atol=1e-9)
