"""How far a ranking of edges depends on the prompts that happened to be drawn.

The prompts are drawn again, with replacement, and the edges ranked by the mean of their effects on those: a bootstrap.
What stays among the strongest in nearly every draw can be named; what comes and goes cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from analyses.bootstrap import mean_draws
from analyses.edge_scores import EdgeScores
from interp.errors import LabError
from interp.results import Result
from interp.style import SHARE

DRAWS = 200
FEW = 8
"""Prompts below which a bootstrap itself says little."""


@dataclass(frozen=True, eq=False, repr=False)
class RankingStability(Result):
    """How surely each edge is among the k strongest.

    values: the share of draws in which it is. overlap: of each draw's k strongest with those of all prompts, edges of
    both over edges of either. strongest: 1 for the k strongest on all prompts.
    """

    title = "Stability of the ranking"
    caveat = "Drawing the same prompts again says nothing about prompts of another kind."
    scale = SHARE

    values: Float[np.ndarray, "*axes"]
    overlap: Float[np.ndarray, "draw"]
    strongest: Float[np.ndarray, "*axes"]
    k: int
    prompts: int
    shape: Mapping[str, Any]

    @property
    def shows(self) -> str:  # type: ignore[override]
        return f"share of bootstraps over {self.prompts} prompts in which an edge is among the {self.k} strongest"

    def __str__(self) -> str:
        lower, median = np.percentile(self.overlap, [2.5, 50])
        sure = int((self.values[self.strongest > 0] >= 0.95).sum())
        few = f"; {self.prompts} prompts are few" if self.prompts < FEW else ""
        return (
            f"the {self.k} strongest edges, prompts drawn again: overlap {median:.2f} (95 % above {lower:.2f}), "
            f"{sure} of them in 95 % of the draws{few}"
        )


def ranking_stability(scores: EdgeScores, k: int, draws: int = DRAWS, seed: int = 0) -> RankingStability:
    """Draw the prompts of some scores again and rank the edges anew, without their signs: `.values`, `.overlap`.

    Raises:
        LabError: k is not between 1 and the number of edges with a score; fewer than one draw; scores that are not kept
            prompt by prompt.
    """
    raw = getattr(scores, "raw", None)
    if raw is None:
        raise LabError(f"{type(scores).__name__} keeps no numbers for each prompt, so prompts cannot be drawn again.")
    scored = ~np.isnan(scores.values)
    if not 1 <= k <= scored.sum() or draws < 1:
        raise LabError(f"k={k}, draws={draws}; expected k from 1 to {int(scored.sum())}, and at least one draw.")
    base = scores.clean if scores.direction == "noise" else scores.corrupted
    effects = (raw - base)[scored]
    times, overlap = np.zeros(len(effects)), []
    best = _strongest(np.abs(effects.mean(-1)), k)
    for mean in mean_draws(effects, draws, seed):
        found = _strongest(np.abs(mean), k)
        times += found
        overlap.append((found & best).sum() / (found | best).sum())
    values, strongest = np.zeros(scores.values.shape), np.zeros(scores.values.shape)
    values[scored], strongest[scored] = times / draws, best
    return RankingStability(
        values,
        np.array(overlap),
        strongest,
        k,
        len(base),
        scores.shape,
        axes=scores.axes,
        labels=scores.labels,
        provenance=scores.provenance,
    )


def _strongest(effects: Float[np.ndarray, "edge"], k: int) -> np.ndarray:
    """True for the k largest; of equal ones those that come first."""
    found = np.zeros(len(effects), dtype=bool)
    found[np.argsort(-effects, kind="stable")[:k]] = True
    return found
