"""What a token is drawn from: temperature, top-k and top-p do what they are said to do, for all logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from interp.errors import LabError
from interp.sampling import Sampling, distribution, entropy, keep_top_k, keep_top_p, next_token

LOGITS = arrays.arrays("float64", (3, 7), elements=st.floats(-20, 20))


@given(logits=LOGITS, k=st.integers(1, 9))
def test_top_k_keeps_the_k_highest_in_proportion(logits: Any, k: int) -> None:
    rows = torch.as_tensor(logits)
    full, kept = rows.softmax(-1), distribution(rows, top_k=k)
    least = rows.sort(-1, descending=True).values[:, min(k, 7) - 1][:, None]
    assert torch.equal(kept > 0, rows >= least)  # equals at the border all stay
    assert_in_proportion(full, kept)


@given(logits=LOGITS, p=st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_tokens_that_reach_p_in_proportion(logits: Any, p: float) -> None:
    rows = torch.as_tensor(logits)
    full, kept = rows.softmax(-1), distribution(rows, top_p=p)
    for row, row_kept in zip(full, kept, strict=True):
        chosen, others = row[row_kept > 0], row[row_kept == 0]
        # Sums of seven float64 terms: the border is sharp to about 1e-15.
        assert chosen.sum() >= p - 1e-12
        assert chosen.sum() - chosen.min() < p + 1e-12
        assert len(others) == 0 or others.max() <= chosen.min() + 1e-15
    assert_in_proportion(full, kept)


def assert_in_proportion(full: Tensor, kept: Tensor) -> None:
    """What stays is a distribution, each token as likely as before relative to the others."""
    expected = torch.where(kept > 0, full, 0.0)
    torch.testing.assert_close(kept, expected / expected.sum(-1, keepdim=True))


@given(logits=LOGITS)
def test_limits_that_cut_nothing_change_nothing(logits: Any) -> None:
    rows = torch.as_tensor(logits)
    assert torch.equal(keep_top_k(rows, 7), rows)
    assert torch.equal(keep_top_p(rows, 1.0), rows)
    assert torch.equal(distribution(rows), (rows - rows.amax(-1, keepdim=True)).softmax(-1))


@given(logits=LOGITS, temperature=st.floats(1e-30, 1e-4))
def test_a_temperature_near_zero_is_greedy(logits: Any, temperature: float) -> None:
    rows = torch.as_tensor(logits)
    top = rows.topk(2, -1).values
    clear = top[:, 0] - top[:, 1] > 1e-2  # e^(-0.01 / 1e-4) is 4e-44
    cold = distribution(rows, temperature)
    assert torch.isfinite(cold).all()
    assert torch.equal(cold.argmax(-1)[clear], next_token(rows, 0)[clear])
    assert (cold.amax(-1)[clear] > 1 - 1e-9).all()


def test_draws_follow_the_distribution() -> None:
    """20,000 draws: each frequency has a standard deviation of at most 0.0035; 0.02 is more than five of them."""
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0]])
    source = torch.Generator().manual_seed(0)
    drawn = next_token(logits.expand(20_000, 4), 0.7, source=source)
    frequencies = torch.bincount(drawn, minlength=4) / 20_000
    torch.testing.assert_close(frequencies, distribution(logits, 0.7)[0], atol=0.02, rtol=0)


@given(logits=LOGITS)
def test_temperature_zero_is_all_of_the_likeliest_token(logits: Any) -> None:
    rows = torch.as_tensor(logits)
    cold = distribution(rows, 0)
    assert torch.equal(cold.argmax(-1), next_token(rows, 0))
    assert torch.equal(cold.sum(-1), torch.ones(3, dtype=cold.dtype))
    assert torch.equal(entropy(cold), torch.zeros(3, dtype=cold.dtype))


@given(logits=LOGITS)
def test_an_endless_temperature_is_uniform(logits: Any) -> None:
    """Logits lie within 40 of each other, so at 1e6 no probability is further than a part in 1e4 from 1/7."""
    torch.testing.assert_close(
        distribution(torch.as_tensor(logits), 1e6), torch.full((3, 7), 1 / 7, dtype=torch.float64), atol=0, rtol=1e-4
    )


@given(logits=LOGITS, low=st.floats(0.01, 50), ratio=st.floats(1.0, 10), k=st.integers(1, 7))
def test_entropy_rises_with_temperature(logits: Any, low: float, ratio: float, k: int) -> None:
    """Over any support: its derivative is the variance of the logits / T^3. 1e-12: rounding of seven terms."""
    rows = torch.as_tensor(logits)
    colder, warmer = (entropy(distribution(rows, t, top_k=k)) for t in (low, low * ratio))
    assert (colder <= warmer + 1e-12).all()


@given(logits=arrays.arrays("float64", (3, 7), elements=st.floats(-20, 20), unique=True), k=st.integers(1, 7))
def test_the_entropy_of_top_k_is_at_most_log_k(logits: Any, k: int) -> None:
    assert (entropy(distribution(torch.as_tensor(logits), top_k=k)) <= math.log(k) + 1e-12).all()


@given(logits=arrays.arrays("float64", (3, 7), elements=st.floats(-20, 20), unique=True), t=st.floats(0.1, 10))
def test_top_1_is_greedy_at_any_temperature(logits: Any, t: float) -> None:
    rows = torch.as_tensor(logits)
    assert torch.equal(distribution(rows, t, top_k=1), distribution(rows, 0))


@given(logits=LOGITS)
def test_entropy_is_the_sum_of_surprises(logits: Any) -> None:
    """Against a plain loop; 1e-12 for float64 sums of seven terms."""
    probabilities = distribution(torch.as_tensor(logits), 1.5, top_p=0.8)
    for row, found in zip(probabilities.tolist(), entropy(probabilities).tolist(), strict=True):
        assert found == pytest.approx(-sum(p * math.log(p) for p in row if p > 0), abs=1e-12)


@pytest.mark.parametrize(
    ("sampling", "name"),
    [
        (Sampling(0), "greedy"),
        (Sampling(), "temperature 1"),
        (Sampling(0.5, 40, 0.9), "temperature 0.5, top-k 40, top-p 0.9"),
        (Sampling(top_p=0.9), "top-p 0.9"),
    ],
)
def test_a_way_of_sampling_says_what_it_is(sampling: Sampling, name: str) -> None:
    assert str(sampling) == name


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_a_setting_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(LabError, match=r"expected"):
        Sampling(**wrong)
