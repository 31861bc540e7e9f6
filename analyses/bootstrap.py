"""Spread over prompts, and the bootstrap: how far a number depends on which prompts were drawn (Efron 1979)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

DRAWS = 1000
LEVELS = (2.5, 97.5)
"""Percentiles between which 95 % of the draws lie."""


def spread(values: Float[np.ndarray, "prompt"]) -> dict[str, float]:
    """Mean, quartiles and the lowest, which for a metric is the worst case."""
    lower, upper = np.percentile(values, [25, 75])
    return {
        "mean": float(values.mean()),
        "lower quartile": float(lower),
        "upper quartile": float(upper),
        "lowest": float(values.min()),
    }


def mean_draws(
    values: Float[np.ndarray, "*axes prompt"], draws: int = DRAWS, seed: int = 0
) -> Float[np.ndarray, "draw *axes"]:
    """The mean over prompts, for as many prompts drawn again with replacement; the same prompts for all entries."""
    n = values.shape[-1]
    chosen = np.random.default_rng(seed).integers(n, size=(draws, n))
    weights = np.stack([np.bincount(row, minlength=n) for row in chosen]) / n
    return np.moveaxis(values @ weights.T, -1, 0)
