"""Scores of edges held against a circuit that is known to be true.

The area under the receiver operating characteristic is the chance that an edge of the circuit has a higher score,
without its sign, than one that is not of it; ties count half. 1 is a perfect ranking, 0.5 a blind one.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from analyses.circuit_selection import importance
from analyses.edge_scores import EdgeScores
from interp.circuit import Circuit
from interp.errors import LabError
from interp.prompts import PromptPairs


@dataclass(frozen=True)
class KnownCircuit:
    """A circuit, and for what it is true: an ablation (see `analyses.circuit_runs`), and prompts of some length or,
    with None, of any."""

    circuit: Circuit
    value: str
    length: int | None = None


def auroc(scores: EdgeScores, known: KnownCircuit, pairs: PromptPairs) -> float:
    """The area under the ROC of scores against the truth. pairs: those that were scored.

    Warns when the truth is of another ablation, or of another length, than the scores: then it need not hold for them.

    Raises:
        LabError: scores and truth are of different graphs; the circuit is empty, or has every edge.
    """
    if scores.graph != known.circuit.graph:
        raise LabError(
            "the scores are of another graph than the known circuit; make both with the same Graph.of(model)."
        )
    _warn_of_another_question(scores, known, pairs)
    scored = ~np.isnan(scores.values)
    values, true = importance(scores)[scored], known.circuit.kept[scored]
    if true.all() or not true.any():
        raise LabError(
            f"the known circuit has {int(true.sum())} of {true.size} edges, so there is nothing to tell apart."
        )
    higher = values[true][:, None] - values[~true][None, :]
    return float((np.sign(higher).mean() + 1) / 2)


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
