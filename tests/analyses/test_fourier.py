"""The Fourier analysis of modular addition against sums written out, on random models, and what it refuses.

float64 throughout: 1e-9 relative. What it finds in the shipped adder is in tests/truth/test_addition_1l.py.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from analyses import modular_spectrum
from interp import LabError
from interp.results import Result
from models import GPT, TransformerConfig
from tests.strategies import SEEDS, random_model


def adder(p: int, seed: int) -> GPT:
    """A random model that takes `a b =`."""
    return random_model(
        TransformerConfig(n_layers=1, n_heads=2, d_model=8, d_vocab=p + 1, d_vocab_out=p, n_ctx=3, d_mlp=8), seed=seed
    )


def table(model: GPT, p: int) -> Tensor:
    """The logits at the equals sign, [a b answer], without their mean."""
    rows = torch.tensor([[a, b, p] for a in range(p) for b in range(p)])
    with torch.no_grad():
        logits = model(rows)[:, -1].reshape(p, p, p)
    return logits - logits.mean(-1, keepdim=True)


def part(logits: Tensor, k: int) -> Tensor:
    """What of each answer's logits is a cosine or a sine of 2 pi k (a + b) / p, by least squares."""
    p = len(logits)
    sums = torch.arange(p)[:, None] + torch.arange(p)
    angle = 2 * math.pi * k * sums.double().reshape(-1) / p
    waves = torch.stack([angle.cos(), angle.sin()], 1)
    if 2 * k == p:
        waves = waves[:, :1]
    flat = logits.reshape(p * p, p)
    return (waves @ torch.linalg.lstsq(waves, flat).solution).reshape(p, p, p)


def loss(logits: Tensor, pairs: Tensor) -> float:
    p = len(logits)
    sums = (torch.arange(p)[:, None] + torch.arange(p)) % p
    return float(F.cross_entropy(logits[pairs], sums[pairs]))


@settings(max_examples=8)
@given(st.integers(3, 8), SEEDS, st.data())
def test_shares_and_losses_are_those_of_least_squares(p: int, seed: int, data: st.DataObject) -> None:
    model = adder(p, seed)
    key = data.draw(st.lists(st.integers(1, p // 2), min_size=1, unique=True))
    pairs = torch.rand(p, p, generator=torch.Generator().manual_seed(seed)) < 0.6
    pairs[0, 0] = True
    logits = table(model, p)
    parts = [part(logits, k) for k in range(1, p // 2 + 1)]
    found = modular_spectrum(model, key=key, pairs=pairs)
    shares = [float(each.square().sum() / logits.square().sum()) for each in parts]
    np.testing.assert_allclose(found.values, shares, atol=1e-9)
    held = sum(parts[k - 1] for k in key)
    assert isinstance(held, Tensor)
    assert found.key == tuple(key)
    assert found.loss == pytest.approx(loss(logits, pairs), rel=1e-9)
    assert found.restricted == pytest.approx(loss(held, pairs), rel=1e-9)
    assert found.excluded == pytest.approx(loss(logits - held, pairs), rel=1e-9)
    np.testing.assert_allclose(found.without, [loss(logits - each, pairs) for each in parts], rtol=1e-9)


@given(st.integers(3, 8), SEEDS)
def test_no_more_than_all_of_the_logits_lies_in_frequencies_of_the_sum(p: int, seed: int) -> None:
    found = modular_spectrum(adder(p, seed))
    assert 0 <= found.values.min() <= found.values.sum() <= 1 + 1e-9
    assert found.embedding.sum() == pytest.approx(1)
    assert found.values[found.key[0] - 1] == found.values.max()
    assert found.chance == math.log(p)


def test_an_embedding_of_one_wave_has_one_frequency() -> None:
    model, angle = adder(7, 0), 2 * math.pi * 3 * torch.arange(7, dtype=torch.float64) / 7
    with torch.no_grad():
        model.embed.W_E[:7] = 0
        model.embed.W_E[:7, 0], model.embed.W_E[:7, 1] = angle.cos(), angle.sin() + 5
    np.testing.assert_allclose(modular_spectrum(model).embedding, [0, 0, 1], atol=1e-12)


def test_the_result_survives_a_file_and_is_a_table_and_a_page(tmp_path: Path) -> None:
    found = modular_spectrum(adder(7, 0))
    found.save(tmp_path / "spectrum.safetensors")
    assert Result.load(tmp_path / "spectrum.safetensors") == found
    assert found.to_dataframe()["frequency"].tolist() == [1, 2, 3]
    assert "Frequencies" in found.to_html()


SHORT = random_model(TransformerConfig(n_layers=1, n_heads=2, d_model=8, d_vocab=8, d_vocab_out=7, n_ctx=2), seed=0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("settings", "fragments"),
    [
        ({"p": 8}, ["p=8", "has 7 outputs"]),
        ({"p": 2}, ["p=2", "at least 3"]),
        ({"equals": 8}, ["token 8", "tokens 0 to 7"]),
        ({"key": []}, ["key=[]", "from 1 to 3"]),
        ({"key": [1, 1]}, ["different frequencies"]),
        ({"key": [4]}, ["from 1 to 3"]),
        ({"pairs": torch.zeros(7, 7, dtype=torch.bool)}, ["true for at least one pair"]),
        ({"pairs": torch.ones(6, 7, dtype=torch.bool)}, ["expected [7, 7]"]),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(settings: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(LabError) as caught:
        modular_spectrum(adder(7, 0), **settings)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_a_context_too_short_for_a_sum_is_refused() -> None:
    with pytest.raises(LabError, match="context of 2"):
        modular_spectrum(SHORT)
