"""The ways to find a circuit, by name: what `analyses.circuit_finding.find_circuit` can be asked for.

    edges     the strongest edges
    greedy    edges grown back from the logits, the strongest first
    nodes     all edges between the strongest components, as many of these as the share allows
    acdc      edges taken out one after another while the metric can spare them (`analyses.acdc_search`)
    pruning   a mask trained over all edges (`analyses.mask_training`)

The first three choose by scores (`analyses.circuit_selection`); the last two search by runs of circuits, and take
neither scores nor signs. All but ACDC, which takes a threshold, are told how many edges to keep.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from analyses.acdc_search import acdc
from analyses.circuit_selection import edges_of_share, greedy_edges, strongest_edges, strongest_nodes
from analyses.edge_scores import EdgeScores
from analyses.mask_training import edge_pruning
from interp.circuit import Circuit
from interp.contract import HookedModel
from interp.errors import LabError
from interp.metrics import AnyMetric
from interp.prompts import PromptPairs


@dataclass(frozen=True)
class Wanted:
    """A model and prompts with the scores of their edges, and how much is to be kept: as in `find_circuit`."""

    model: HookedModel | Any
    pairs: PromptPairs
    scores: EdgeScores
    metric: str | AnyMetric | Callable[..., Any]
    value: str
    share: float
    threshold: float | None
    signed: bool
    seed: int
    budget: int | None
    progress: bool | None

    @property
    def n(self) -> int:
        """How many edges the share is."""
        return edges_of_share(self.scores.graph, self.share)


def check_threshold(select: str, threshold: float | None) -> None:
    """Raises:
    LabError: ACDC without a threshold above 0, or another way with one.
    """
    if select != "acdc" and threshold is not None:
        raise LabError(f"threshold={threshold:g} with select={select!r}; only 'acdc' takes one, the others a share.")
    if select == "acdc" and (threshold is None or not threshold > 0):
        raise LabError(
            f"select='acdc' with threshold={threshold}; expected a number above 0 instead of a share: by how much the "
            "metric may change when an edge goes, such as 0.1."
        )


def _edges(wanted: Wanted) -> Circuit:
    return strongest_edges(wanted.scores, wanted.n, wanted.signed)


def _greedy(wanted: Wanted) -> Circuit:
    return greedy_edges(wanted.scores, wanted.n, wanted.signed)


def _nodes(wanted: Wanted) -> Circuit:
    """Of the strongest component, the two strongest, and so on, the last circuit that is no larger than allowed."""
    found = strongest_nodes(wanted.scores, 1, wanted.signed)
    for n in range(2, len(wanted.scores.graph.senders)):
        larger = strongest_nodes(wanted.scores, n, wanted.signed)
        if len(larger) > wanted.n:
            break
        found = larger
    return found


def _acdc(wanted: Wanted) -> Circuit:
    assert wanted.threshold is not None
    return acdc(
        wanted.model,
        wanted.pairs,
        wanted.threshold,
        wanted.metric,
        wanted.value,
        wanted.scores.graph,
        wanted.budget,
        wanted.progress,
    ).circuit


def _pruning(wanted: Wanted) -> Circuit:
    return edge_pruning(
        wanted.model,
        wanted.pairs,
        wanted.share,
        wanted.metric,
        wanted.value,
        wanted.scores.graph,
        seed=wanted.seed,
        budget=wanted.budget,
        progress=wanted.progress,
    ).circuit


FINDERS: dict[str, Callable[[Wanted], Circuit]] = {
    "edges": _edges,
    "greedy": _greedy,
    "nodes": _nodes,
    "acdc": _acdc,
    "pruning": _pruning,
}
