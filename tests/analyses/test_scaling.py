"""A scaling law is found again in losses that follow one, and refused where it cannot be told."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyses import scaling_law
from analyses.scaling import Law, ScalingLaw
from interp.errors import LabError

SIZES, TOKENS = np.geomspace(1e4, 1e6, 4), np.geomspace(1e5, 1e8, 5)
GRID = np.array(list(product(SIZES, TOKENS)))


def losses_of(law: Law) -> np.ndarray:
    return np.array([law.entropy + law.a / n**law.alpha + law.b / d**law.beta for n, d in GRID])


@given(
    entropy=st.floats(0.5, 3),
    alpha=st.floats(0.2, 1),
    beta=st.floats(0.2, 1),
    by_size=st.floats(0.3, 3),
    by_text=st.floats(0.3, 3),
)
def test_the_constants_of_a_law_are_found_again(
    entropy: float, alpha: float, beta: float, by_size: float, by_text: float
) -> None:
    """by_size and by_text: what the smallest model and the shortest training cost, in nats.

    The exponents are found to 1e-3, which the rounds of the search leave; the losses to 1e-6.
    """
    law = Law(entropy, by_size * SIZES[0] ** alpha, alpha, by_text * TOKENS[0] ** beta, beta)
    found = scaling_law(GRID[:, 0], GRID[:, 1], losses_of(law))
    assert found.law.alpha == pytest.approx(alpha, abs=1e-3)
    assert found.law.beta == pytest.approx(beta, abs=1e-3)
    assert found.law.entropy == pytest.approx(entropy, abs=1e-2)
    np.testing.assert_allclose(found.fitted, found.loss, rtol=1e-6)


CHINCHILLA = Law(1.69, 406.4, 0.34, 410.7, 0.28)  # arXiv:2203.15556, appendix D.3


def test_a_noisy_law_is_found_within_its_own_errors() -> None:
    """A percent of noise: each constant within four of the errors that the jackknife gives, and no error is nothing."""
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal(len(GRID)))
    found = scaling_law(GRID[:, 0], GRID[:, 1], losses_of(CHINCHILLA) * noise)
    assert abs(found.law.alpha - CHINCHILLA.alpha) < 4 * found.error["alpha"] < 0.5
    assert abs(found.law.beta - CHINCHILLA.beta) < 4 * found.error["beta"] < 0.5
    assert found.error["entropy"] > 1e-3


@pytest.mark.parametrize("compute", [1e12, 1e18])
def test_the_best_sizes_for_a_computation_are_better_than_their_neighbours(compute: float) -> None:
    n, d = CHINCHILLA.best(compute)
    assert 6 * n * d == pytest.approx(compute)
    assert CHINCHILLA(n, d) < min(CHINCHILLA(n * 1.05, d / 1.05), CHINCHILLA(n / 1.05, d * 1.05))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (slice(0, 5), "5 runs of 1 sizes"),
        (slice(0, 10), "10 runs of 2 sizes and 5 numbers of tokens; expected at least 6 runs, of 3 sizes"),
    ],
)
def test_runs_that_cannot_tell_the_constants_apart_are_refused(chosen: slice, message: str) -> None:
    with pytest.raises(LabError, match=message):
        scaling_law(GRID[chosen, 0], GRID[chosen, 1], losses_of(CHINCHILLA)[chosen])


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_loss_that_is_no_loss_is_refused(bad: float) -> None:
    losses = losses_of(CHINCHILLA)
    losses[3] = bad
    with pytest.raises(LabError, match="the losses run from"):
        scaling_law(GRID[:, 0], GRID[:, 1], losses)


@pytest.mark.usefixtures("unchecked")
def test_unequal_numbers_are_refused() -> None:
    with pytest.raises(LabError, match="20 sizes, 20 numbers of tokens and 19 losses"):
        scaling_law(GRID[:, 0], GRID[:, 1], losses_of(CHINCHILLA)[:-1])


def test_a_law_is_saved_shown_and_drawn(tmp_path: Path) -> None:
    found = scaling_law(GRID[:, 0], GRID[:, 1], losses_of(CHINCHILLA))
    found.save(tmp_path / "law.safetensors")
    back = ScalingLaw.load(tmp_path / "law.safetensors")
    assert back == found
    assert back.law == found.law
    figure = found.plot()
    points = [trace for trace in figure.data if trace.mode == "markers"]
    assert sorted(y for trace in points for y in trace.y) == sorted(found.loss)
    page = found.to_html()
    assert "alpha" in page
    assert "standard error" in page
