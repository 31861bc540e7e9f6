"""How far estimated effects agree with exact ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from interp.errors import LabError


@dataclass(frozen=True)
class Agreement:
    """Between estimates and exact effects of the same `n` sites.

    pearson, spearman: correlation of the values and of their ranks (ties share the mean rank), NaN for fewer than three
    sites or for values that are all the same. same_sign: how many have it. worst: the largest |estimate - exact|.
    """

    n: int
    pearson: float
    spearman: float
    same_sign: int
    worst: float

    def __str__(self) -> str:
        return (
            f"Pearson {_shown(self.pearson)}, Spearman {_shown(self.spearman)}, same sign in {self.same_sign} of "
            f"{self.n}, worst error {self.worst:.3g}"
        )


def agreement(estimated: Float[np.ndarray, "site"], exact: Float[np.ndarray, "site"]) -> Agreement:
    """Compare estimates with exact effects; both are changes, so that 0 is no effect.

    Raises:
        LabError: nothing to compare.
    """
    if not len(exact):
        raise LabError("no site was checked exactly, so there is nothing to compare; expected at least one.")
    return Agreement(
        n=len(exact),
        pearson=_correlation(estimated, exact),
        spearman=_correlation(_ranks(estimated), _ranks(exact)),
        same_sign=int((np.sign(estimated) == np.sign(exact)).sum()),
        worst=float(np.abs(estimated - exact).max()),
    )


def _correlation(one: Float[np.ndarray, "site"], other: Float[np.ndarray, "site"]) -> float:
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])


def _ranks(values: Float[np.ndarray, "site"]) -> Float[np.ndarray, "site"]:
    """The rank of each value; equal ones share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def _shown(value: float) -> str:
    return "not defined" if np.isnan(value) else f"{value:.3f}"
