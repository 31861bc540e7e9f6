"""Scores of edges held against a circuit that is known to be true.

The area under the receiver operating characteristic is the chance that an edge of the circuit has a higher score,
without its sign, than one that is not of it; ties count half. 1 is a perfect ranking, 0.5 a blind one.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from analyses.bootstrap import LEVELS, mean_draws
from analyses.circuit_selection import importance
from analyses.circuit_setting import six_tuple
from analyses.edge_scores import EdgeScores
from analyses.stability import DRAWS, effects_of
from interp.circuit import Circuit
from interp.errors import LabError
from interp.prompts import PromptPairs
from interp.results import Result


@dataclass(frozen=True)
class KnownCircuit:
    """A circuit, and for what it is true: an ablation (see `analyses.circuit_runs`), and prompts of some length or,
    with None, of any."""

    circuit: Circuit
    value: str
    length: int | None = None


@dataclass(frozen=True, eq=False, repr=False)
class AreaUnderRoc(Result):
    """How well a ranking of edges tells a circuit's edges from the others.

    values: the area for each bootstrap over prompts. area: for all prompts; low, high: between them lie 95 % of the
    draws. edges: of the circuit. setting: see `analyses.circuit_setting`.
    """

    title = "Area under the ROC"
    shows = "the chance that an edge of the circuit has a higher score than another, prompts drawn again"
    caveat = "0.5 is a blind ranking, 1 a perfect one; the truth holds for one ablation, and perhaps one length."

    values: Float[np.ndarray, "draw"]
    area: float
    low: float
    high: float
    edges: int
    metric: str
    value: str
    setting: Mapping[str, str]

    def __float__(self) -> float:
        return self.area


def auroc(scores: EdgeScores, known: KnownCircuit, pairs: PromptPairs, seed: int = 0) -> AreaUnderRoc:
    """The area under the ROC of scores against the truth: `.area`. pairs: those that were scored. seed: of the
    bootstrap.

    Warns when the truth is of another ablation, or of another length, than the scores: then it need not hold for them.

    Raises:
        LabError: scores and truth are of different graphs; the circuit is empty, or has every edge; scores that are not
            kept prompt by prompt.
    """
    if scores.graph != known.circuit.graph:
        raise LabError(
            "the scores are of another graph than the known circuit; make both with the same Graph.of(model)."
        )
    _warn_of_another_question(scores, known, pairs)
    scored = ~np.isnan(scores.values)
    true = known.circuit.kept[scored]
    if true.all() or not true.any():
        raise LabError(
            f"the known circuit has {int(true.sum())} of {true.size} edges, so there is nothing to tell apart."
        )
    drawn = np.abs(mean_draws(effects_of(scores)[scored], DRAWS, seed))
    areas = np.array([_area(strengths, true) for strengths in drawn])
    low, high = (float(level) for level in np.percentile(areas, LEVELS))
    run, other = ("clean", "corrupted") if scores.direction == "noise" else ("corrupted", "clean")
    setting = six_tuple(scores.graph, scores.value, pairs) | {"direction": f"{run} prompts, one edge ablated at a time"}
    if scores.value == "resample":
        setting["ablation"] = f"resample: its value on the {other} prompt"
    return AreaUnderRoc(
        areas,
        _area(importance(scores)[scored], true),
        low,
        high,
        int(true.sum()),
        scores.metric,
        scores.value,
        setting,
        provenance=scores.provenance,
    )


def _area(strengths: Float[np.ndarray, "edge"], true: Bool[np.ndarray, "edge"]) -> float:
    """How often one that is true is above one that is not; by how many of the others lie below each, and up to it."""
    others = np.sort(strengths[~true])
    below, up_to = (np.searchsorted(others, strengths[true], side) for side in ("left", "right"))
    return float((below + up_to).sum() / (2 * len(others) * true.sum()))


def _warn_of_another_question(scores: EdgeScores, known: KnownCircuit, pairs: PromptPairs) -> None:
    if scores.value != known.value:
        warnings.warn(
            f"the known circuit is true for the ablation {known.value!r}, the scores are of {scores.value!r}: edges "
            "may rightly differ (Miller et al. 2024, arXiv:2407.08734).",
            stacklevel=3,
        )
    lengths = sorted({int(length) for length in pairs.mask.sum(1)})
    if known.length is not None and lengths != [known.length]:
        warnings.warn(
            f"the known circuit is true for prompts of {known.length} tokens, these have {lengths}: edges may rightly "
            "differ.",
            stacklevel=3,
        )
