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

from analyses.bootstrap import LEVELS, mean_draws
from analyses.edge_scores import EdgeScores
from interp.errors import LabError
from interp.results import Result
from interp.style import SHARE

DRAWS = 200
FEW = 8
"""Prompts below which a bootstrap itself says little."""


@dataclass(frozen=True, eq=False, repr=False)
class RankingStability(Result):
    """How surely each edge is among the k strongest, and how far its place moves.

    values: the share of draws in which it is. rank: its place on all prompts, 1 for the strongest. low, high: between
    them lie 95 % of its places in the draws. overlap: of each draw's k strongest with those of all prompts, edges of
    both over edges of either. spearman: of each draw's places with those on all prompts, over the edges that have an
    effect on any. strongest: 1 for the k strongest on all prompts. signed: whether edges that work against the answer
    come last.
    """

    title = "Stability of the ranking"
    caveat = "Drawing the same prompts again says nothing about prompts of another kind."
    scale = SHARE

    values: Float[np.ndarray, "*axes"]
    rank: Float[np.ndarray, "*axes"]
    low: Float[np.ndarray, "*axes"]
    high: Float[np.ndarray, "*axes"]
    overlap: Float[np.ndarray, "draw"]
    spearman: Float[np.ndarray, "draw"]
    strongest: Float[np.ndarray, "*axes"]
    k: int
    prompts: int
    signed: bool
    shape: Mapping[str, Any]

    @property
    def shows(self) -> str:  # type: ignore[override]
        return f"share of bootstraps over {self.prompts} prompts in which an edge is among the {self.k} strongest"

    def summary(self) -> dict[str, int | float]:
        """Medians over the draws, and what 95 % of them lie above."""
        found: dict[str, int | float] = {"k": self.k, "prompts": self.prompts}
        for name, draws in (("overlap", self.overlap), ("spearman", self.spearman)):
            lower, median = np.percentile(draws, [5, 50])
            found |= {name: float(median), f"{name}, 95 % above": float(lower)}
        return found | {"in 95 % of the draws": int((self.values[self.strongest > 0] >= 0.95).sum())}

    def __str__(self) -> str:
        found = self.summary()
        few = f"; {self.prompts} prompts are few" if self.prompts < FEW else ""
        return (
            f"the {self.k} strongest edges, prompts drawn again: overlap {found['overlap']:.2f} (95 % above "
            f"{found['overlap, 95 % above']:.2f}), rank correlation of all edges {found['spearman']:.2f} (95 % above "
            f"{found['spearman, 95 % above']:.2f}), {found['in 95 % of the draws']} of them in 95 % of the draws{few}"
        )


def ranking_stability(
    scores: EdgeScores, k: int, draws: int = DRAWS, seed: int = 0, signed: bool = False
) -> RankingStability:
    """Draw the prompts of some scores again and rank the edges anew: `.values`, `.low`, `.high`, `.overlap`.

    signed: as in `analyses.circuit_selection`.

    Raises:
        LabError: k is not between 1 and the number of edges with a score; fewer than one draw; scores that are not kept
            prompt by prompt.
    """
    scored = ~np.isnan(scores.values)
    effects = effects_of(scores)[scored]
    if not 1 <= k <= len(effects) or draws < 1:
        raise LabError(f"k={k}, draws={draws}; expected k from 1 to {len(effects)}, and at least one draw.")
    sign = np.sign((scores.corrupted - scores.clean).mean()) * (1 if scores.direction == "noise" else -1)
    ranks = np.stack([_ranks(sign * mean if signed else np.abs(mean)) for mean in mean_draws(effects, draws, seed)])
    rank = _ranks(sign * effects.mean(-1) if signed else np.abs(effects.mean(-1)))
    best, found = rank <= k, ranks <= k
    common = (found & best).sum(1)
    low, high = np.percentile(ranks, LEVELS, axis=0)

    def everywhere(numbers: np.ndarray) -> Float[np.ndarray, "*axes"]:
        spread = np.full(scores.values.shape, np.nan)
        spread[scored] = numbers
        return spread

    return RankingStability(
        np.nan_to_num(everywhere(found.mean(0))),
        everywhere(rank),
        everywhere(low),
        everywhere(high),
        common / (2 * k - common),
        _correlation(ranks, rank, effects.any(-1)),
        np.nan_to_num(everywhere(best)),
        k,
        effects.shape[-1],
        signed,
        scores.shape,
        axes=scores.axes,
        labels=scores.labels,
        provenance=scores.provenance,
    )


def effects_of(scores: EdgeScores) -> Float[np.ndarray, "*axes prompt"]:
    """The change of the metric by each edge on each prompt.

    Raises:
        LabError: scores that are not kept prompt by prompt.
    """
    raw = getattr(scores, "raw", None)
    if raw is None:
        raise LabError(f"{type(scores).__name__} keeps no numbers for each prompt, so prompts cannot be drawn again.")
    return np.asarray(raw - (scores.clean if scores.direction == "noise" else scores.corrupted))


def _ranks(strengths: Float[np.ndarray, "edge"]) -> np.ndarray:
    """The place of each, 1 for the largest; of equal ones those that come first."""
    places = np.empty(len(strengths), dtype=np.int32)
    places[np.argsort(-strengths, kind="stable")] = np.arange(1, len(strengths) + 1)
    return places


def _correlation(ranks: np.ndarray, rank: np.ndarray, among: np.ndarray) -> Float[np.ndarray, "draw"]:
    """Spearman's, of the edges `among`; 1 where there are fewer than two."""
    if among.sum() < 2:
        return np.ones(len(ranks))
    one, other = (np.argsort(np.argsort(each[..., among])).astype(float) for each in (ranks, rank))
    one, other = one - one.mean(-1, keepdims=True), other - other.mean()
    return (one @ other) / np.sqrt((one**2).sum(-1) * (other**2).sum())
