"""From prompts to a circuit: edges scored, the strongest kept, and what they are worth on prompts of their own.

    found = find_circuit(model, pairs, held_out=others)
    found.circuit, found.evaluation.values[0], found.curve.cpr

The parts stand by themselves: scores (`analyses.edges`, `analyses.edge_estimates`), ways to choose or search
(`analyses.circuit_finders`), faithfulness (`analyses.circuits`, `analyses.circuit_curve`), stability
(`analyses.stability`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from analyses.circuit_curve import FaithfulnessCurve, faithfulness_curve
from analyses.circuit_finders import FINDERS, Wanted, check_threshold
from analyses.circuit_selection import edges_of_share
from analyses.circuits import CircuitEvaluation, evaluate_circuits
from analyses.edge_scores import EdgeScores
from analyses.edges import edge_patching
from analyses.stability import RankingStability, ranking_stability
from interp.circuit import Circuit
from interp.contract import HookedModel
from interp.errors import choose
from interp.graph import Graph
from interp.metrics import AnyMetric
from interp.prompts import PromptPairs
from interp.results import Result
from interp.style import SIGNED

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.page import Section

METHODS = {"exact": "", "eap": "EAP", "atp": "AtP", "relp": "RelP", "eap-ig": "EAP-IG-inputs"}


@dataclass(frozen=True, eq=False, repr=False)
class FoundCircuit(Result):
    """A circuit, what it was chosen by, and what it is worth.

    values: the score of each of its edges, NaN for all others. evaluation: of this circuit alone. setting: see
    `analyses.circuit_setting`.
    """

    title = "Circuit"
    scale = SIGNED

    values: Float[np.ndarray, "*axes"]
    scores: EdgeScores
    evaluation: CircuitEvaluation
    curve: FaithfulnessCurve
    stability: RankingStability
    setting: Mapping[str, str]

    @property
    def circuit(self) -> Circuit:
        """Its edges."""
        known = self.provenance
        return Circuit(self.scores.graph, ~np.isnan(self.values), known.model, known.weights)

    @property
    def shows(self) -> str:  # type: ignore[override]
        return f"{self.summary}; wide lines are strong edges, dotted ones work against the answer"

    @property
    def caveat(self) -> str:  # type: ignore[override]
        return f"{self.stability}. Edges that matter only together, or stand in for each other, may be missing"

    @property
    def unit(self) -> str:  # type: ignore[override]
        return self.scores.unit

    @property
    def summary(self) -> str:
        """Size and faithfulness in one sentence."""
        circuit, f = self.circuit, self.evaluation
        size = f"{len(circuit)} of {len(circuit.graph)} edges ({len(circuit) / len(circuit.graph):.1%})"
        what = "of the metric's difference" if f.normalized else f"in units of {f.metric}"
        return f"{size} give {f.values[0]:.3g} {what} (95 % of bootstraps {f.low[0]:.3g} to {f.high[0]:.3g})"

    def to_dict(self, arrays: Any = None) -> dict[str, Any]:
        """The circuit as `Circuit.save` writes it, which `Circuit.load` reads, with what else is known beside it."""
        kept = np.argwhere(~np.isnan(self.values)).tolist()
        graph = self.scores.graph
        return self.circuit.to_dict() | {
            "scores": {graph.name(tuple(index)): float(self.values[tuple(index)]) for index in kept},
            "nodes": list(self.circuit.nodes),
            "evaluation": self.evaluation.to_dict(),
            "curve": self.curve.to_dict(),
            "stability": self.stability.summary(),
            "setting": dict(self.setting),
            "provenance": self.provenance.to_dict(),
        }

    def plot(self) -> go.Figure:
        """The circuit as a graph."""
        from analyses.circuit_picture import circuit_figure

        return circuit_figure(self.circuit, np.nan_to_num(self.values), self.unit, self.title)

    def sections(self) -> tuple[Section, ...]:
        """The graph; its six-tuple; the scores; faithfulness over sizes."""
        from analyses.circuit_picture import histogram
        from interp import markup
        from interp.page import Plot, Section

        spread = self.evaluation.spread()
        facts: list[tuple[str, str | float]] = [*self.setting.items(), ("metric", self.evaluation.metric)]
        facts.append(("scores", self.scores.title))
        facts += [(f"metric of the circuit's run, {name}", value) for name, value in spread.items()]
        scores = histogram(self.scores.values, self.circuit, self.unit)
        return (
            Section("Circuit", (Plot(self.plot().update_layout(title=None)),), self.shows, self.caveat),
            Section("What is claimed", (markup.table(["", ""], facts),), "what the circuit is a circuit of"),
            Section("Scores of edges", (Plot(scores), Plot(self.scores.plot())), self.scores.shows, self.scores.caveat),
            *self.curve.sections(),
        )


def find_circuit(
    model: HookedModel | Any,
    pairs: PromptPairs,
    metric: str | AnyMetric | Callable[..., Any] = "logit_diff",
    method: str = "exact",
    share: float = 0.05,
    select: str = "edges",
    signed: bool = True,
    value: str = "resample",
    held_out: PromptPairs | None = None,
    threshold: float | None = None,
    seed: int = 0,
    budget: int | None = None,
    progress: bool | None = None,
) -> FoundCircuit:
    """Score every edge, keep the strongest, and run them alone: `.circuit`, `.evaluation`.

    method: how edges are scored: "exact", "eap", "atp", "relp" or "eap-ig" (5 steps, along the inputs). share: of the
    edges that are kept. select: "edges", "greedy", "nodes", "acdc" or "pruning" (see `analyses.circuit_finders`).
    signed: keep edges that help rather than all that matter. value: the ablation, "resample", "mean" or "zero".
    held_out: prompts to evaluate on, by default those of the scores. threshold: for "acdc", instead of a share, by how
    much the metric may change when an edge goes. seed: of the bootstraps, and of "pruning".

    Raises:
        LabError: an unknown method or selection, a share not above 0 and at most 1, a threshold where none belongs or
            none where one does; no edge that leads from the input to the logits; and as `edge_patching`,
            `edge_attribution`, `evaluate_circuits`, `acdc` and `edge_pruning`.
    """
    choose("method", method, METHODS)
    find = FINDERS[choose("selection", select, FINDERS)]
    check_threshold(select, threshold)
    judged = pairs if held_out is None else held_out
    edges_of_share(Graph.of(model), share)
    judged.check(model)
    scores = _scored(model, pairs, metric, method, value, budget, progress)
    wanted = Wanted(model, pairs, scores, metric, value, share, threshold, signed, seed, budget, progress)
    circuit = find(wanted)
    evaluation = evaluate_circuits(model, judged, circuit, metric, value, None, seed, budget, progress)
    curve = faithfulness_curve(model, judged, scores, metric, value, seed=seed, budget=budget, progress=progress)
    size = {"share": share} if threshold is None else {"threshold": threshold}
    settings = {"method": method, "select": select, "signed": signed, **size}
    return FoundCircuit(
        np.where(circuit.kept, scores.values, np.nan),
        scores,
        evaluation,
        curve,
        ranking_stability(scores, wanted.n if threshold is None else len(circuit), seed=seed, signed=signed),
        evaluation.setting,
        axes=scores.axes,
        labels=scores.labels,
        provenance=replace(scores.provenance, settings={**scores.provenance.settings, **settings}),
    )


def _scored(
    model: Any, pairs: PromptPairs, metric: Any, method: str, value: str, budget: int | None, progress: bool | None
) -> EdgeScores:
    if method == "exact":
        return edge_patching(model, pairs, metric, value=value, budget=budget, progress=progress)
    from analyses.edge_estimates import edge_attribution

    return edge_attribution(model, pairs, metric, value=value, method=METHODS[method], budget=budget, progress=progress)
