"""Faithfulness over sizes: how quickly circuits of the strongest edges come to give a model's answer.

f is the faithfulness (see `analyses.circuits`) of what a ranking keeps of the edges. Over their share from 0.1 % to
100 %, by trapezoids (Mueller et al. 2025, arXiv:2504.13151):

    CPR = ∫ f        of the signed ranking: how well the ranking finds what helps; more is better
    CMD = ∫ |1 - f|  of the absolute ranking: how near circuits are to the model itself; 0 is best

Most of either lies above 20 % of the edges, so f at small sizes is what tells good rankings apart.

Cost: a run of a circuit for each size and ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from analyses.bootstrap import LEVELS
from analyses.circuit_runs import CircuitRuns
from analyses.circuit_selection import edges_of_share, strongest_edges
from analyses.circuit_setting import six_tuple
from analyses.circuits import SELF_REPAIR, can_normalize, checked_circuits, faithfulness, warn_about, warn_if_another
from analyses.edge_scores import EdgeScores
from interp import provenance
from interp.contract import HookedModel
from interp.errors import LabError
from interp.metrics import AnyMetric
from interp.prompts import PromptPairs
from interp.results import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
RANKINGS = ("signed", "absolute")


@dataclass(frozen=True, eq=False, repr=False)
class FaithfulnessCurve(Result):
    """Faithfulness over sizes, of circuits that the signed and the absolute ranking keep.

    values: faithfulness. low, high: between them lie 95 % of bootstraps over prompts. edges: of each circuit, without
    dangling parts. area: CPR, of the signed ranking, and CMD, of the absolute one, with their bounds. sizes: shares of
    the edges. setting: see `analyses.circuit_setting`.
    """

    title = "Faithfulness over sizes"
    caveat = f"The prompts are those that the edges were ranked on, unless others were given. {SELF_REPAIR}"

    values: Float[np.ndarray, "ranking size"]
    low: Float[np.ndarray, "ranking size"]
    high: Float[np.ndarray, "ranking size"]
    edges: Int[np.ndarray, "ranking size"]
    area: Float[np.ndarray, "ranking"]
    area_low: Float[np.ndarray, "ranking"]
    area_high: Float[np.ndarray, "ranking"]
    sizes: Sequence[float]
    metric: str
    value: str
    setting: Mapping[str, str]

    @property
    def shows(self) -> str:  # type: ignore[override]
        return (
            "share of the metric that circuits of the strongest edges give: 1 is the clean run, 0 everything ablated; "
            f"CPR {self.cpr:.3g}, CMD {self.cmd:.3g}"
        )

    @property
    def cpr(self) -> float:
        """∫ f of the signed ranking."""
        return float(self.area[0])

    @property
    def cmd(self) -> float:
        """∫ |1 - f| of the absolute ranking."""
        return float(self.area[1])

    def plot(self) -> go.Figure:
        """A line for each ranking."""
        from interp import pictures

        sizes = pictures.Axis("share of the edges", len(self.sizes), [f"{size:.1%}" for size in self.sizes])
        series = {f"{name} ranking": row for name, row in zip(RANKINGS, self.values, strict=True)}
        return pictures.lines(series, sizes, title=self.title, unit="faithfulness")


def faithfulness_curve(
    model: HookedModel | Any,
    pairs: PromptPairs,
    scores: EdgeScores,
    metric: str | AnyMetric | Callable[..., Any] | None = None,
    value: str | None = None,
    sizes: Sequence[float] = SIZES,
    seed: int = 0,
    budget: int | None = None,
    progress: bool | None = None,
) -> FaithfulnessCurve:
    """Faithfulness of the strongest edges at every size, with CPR and CMD.

    pairs: best others than those of the scores. metric, value: by default those of the scores; another value than
    theirs draws a warning. sizes: shares of the edges, rising. The rest is as in `evaluate_circuits`.

    Raises:
        LabError: sizes that do not rise from above 0 to at most 1, scores of another model, baselines that cannot be
            told apart, and as `evaluate_circuits`.
    """
    if not all(0 < low < high <= 1 for low, high in pairwise(sizes)) or len(sizes) < 2:
        raise LabError(f"sizes={list(sizes)}; expected at least two shares, rising, above 0 and at most 1.")
    value = scores.value if value is None else value
    warn_if_another(scores.value, value, "edges were ranked")
    warn_about(value)
    runs = CircuitRuns.of(model, pairs, metric or scores.metric, value, scores.graph, budget)
    if not can_normalize(runs):
        raise LabError("without a difference between the clean and the ablated run there is no faithfulness.")
    numbers = [edges_of_share(scores.graph, size) for size in sizes]
    circuits = [strongest_edges(scores, n, signed=name == "signed") for name in RANKINGS for n in numbers]
    checked_circuits(model, circuits, empty=True)
    raw = runs.scores(np.stack([circuit.kept for circuit in circuits]), progress)
    found, draws = (each.reshape(*each.shape[:-1], 2, -1) for each in faithfulness(runs, raw, True, seed))
    low, high = np.percentile(draws, LEVELS, axis=0)
    area_low, area_high = np.percentile(_areas(draws, sizes), LEVELS, axis=0)
    return FaithfulnessCurve(
        found,
        low,
        high,
        np.array([len(circuit) for circuit in circuits]).reshape(2, -1),
        _areas(found, sizes),
        area_low,
        area_high,
        tuple(sizes),
        runs.metric.name,
        value,
        six_tuple(runs.graph, value, pairs),
        labels={"ranking": list(RANKINGS), "size": [f"{size:.1%}" for size in sizes]},
        provenance=provenance.of(model, prompts=pairs, metric=runs.metric.name, ablation=value, seed=seed),
    )


def _areas(f: Float[np.ndarray, "*draw ranking size"], sizes: Sequence[float]) -> Float[np.ndarray, "*draw ranking"]:
    """∫ f of the signed ranking and ∫ |1 - f| of the absolute one."""
    heights = np.stack([f[..., 0, :], np.abs(1 - f[..., 1, :])], -2)
    return np.trapezoid(heights, np.asarray(sizes), axis=-1)
