"""ACDC: edges are taken out one after another, from the logits back, and stay out where that costs little.

Conmy et al. 2023 (arXiv:2304.14997, algorithm 1). With H the circuit so far, at first the whole graph, each edge is
tried in reverse topological order, and goes for good if

    loss(H without the edge) - loss(H) < threshold,     loss(H) = mean over prompts of |m(H) - m(clean run)|

so for m = "kl", which compares with the clean run, the loss is the paper's divergence. Edges into what has lost all its
ways to the logits carry nothing, and go without a run.

Cost: one run of a circuit for each edge (see `analyses.circuit_runs`), or a few more: runs are batched by supposing
that the next edges all go, as most do, and what was run beyond an edge that stays is run anew. The answer is the one
that trying them one by one gives. It depends on the order and on the threshold, and misses edges that stand in for each
other: whichever is tried first goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from analyses.bootstrap import spread
from analyses.circuit_runs import CircuitRuns
from analyses.circuit_setting import six_tuple
from analyses.edges import labels_of
from interp import provenance
from interp.circuit import Circuit
from interp.contract import HookedModel
from interp.dangling import components
from interp.errors import LabError
from interp.graph import Graph
from interp.metrics import AnyMetric
from interp.progress import bar
from interp.prompts import PromptPairs
from interp.results import Result

WIDEST = 64
"""Edges that are supposed to go at once, at most."""


@dataclass(frozen=True, eq=False, repr=False)
class AcdcResult(Result):
    """The circuit that is left.

    values: by how much the loss rose when the edge was taken out; 0 where no run was needed. kept: the edges that stay.
    raw, clean: the metric of the run of the circuit that is left, and of the clean run. loss: of that circuit. runs:
    circuits that were run, each on every prompt. setting: see `analyses.circuit_setting`.
    """

    title = "ACDC"
    caveat = "Depends on the order of the edges and on the threshold; of edges that stand in for each other one stays."

    values: Float[np.ndarray, "*axes"]
    kept: Bool[np.ndarray, "*axes"]
    raw: Float[np.ndarray, "prompt"]
    clean: Float[np.ndarray, "prompt"]
    loss: float
    threshold: float
    metric: str
    runs: int
    shape: Mapping[str, Any]
    setting: Mapping[str, str]

    @property
    def shows(self) -> str:  # type: ignore[override]
        return f"rise of the loss in {self.metric} when each edge was taken out; those above {self.threshold:g} stay"

    @property
    def circuit(self) -> Circuit:
        """The edges that stay."""
        return Circuit(Graph(**self.shape), self.kept, self.provenance.model, self.provenance.weights)

    def spread(self) -> dict[str, float]:
        """The metric of its run over prompts: mean, quartiles and the lowest."""
        return spread(self.raw)


def acdc(
    model: HookedModel | Any,
    pairs: PromptPairs,
    threshold: float,
    metric: str | AnyMetric | Callable[..., Any] = "kl",
    value: str = "resample",
    graph: Graph | None = None,
    budget: int | None = None,
    progress: bool | None = None,
) -> AcdcResult:
    """Take out every edge that the metric can spare: `.circuit`.

    threshold: in the metric's units. metric, value, graph, budget: as in `circuit_runs.CircuitRuns.of`.

    Raises:
        LabError: a threshold that is not above 0, and as there.
    """
    if not threshold > 0:
        raise LabError(f"threshold={threshold}; expected a number above 0, in the metric's units, such as 0.01.")
    runs = CircuitRuns.of(model, pairs, metric, value, graph, budget)
    search = _Search(runs, threshold)
    with bar(len(runs.graph), "edges", progress) as advance:
        search.run(advance)
    name, shape = runs.metric.name, runs.graph.shape
    return AcdcResult(
        search.rise.reshape(shape),
        search.kept.reshape(shape),
        runs.scores(search.kept.reshape(1, *shape), progress=False)[0],
        runs.clean,
        search.loss,
        threshold,
        name,
        search.runs_made,
        asdict(runs.graph),
        six_tuple(runs.graph, value, pairs),
        axes=runs.graph.axes,
        labels=labels_of(model, pairs, runs.graph),
        provenance=provenance.of(
            model, prompts=pairs, metric=name, ablation=value, settings={"method": "ACDC", "threshold": threshold}
        ),
    )


class _Search:
    """The circuit so far, and what is known of it."""

    def __init__(self, runs: CircuitRuns, threshold: float) -> None:
        self.runs, self.threshold = runs, threshold
        self.kept = np.ones(len(runs.graph), dtype=bool)
        self.rise = np.zeros(len(runs.graph))
        self.loss, self.runs_made, self.width = 0.0, 0, 1

    def run(self, advance: Callable[[int], None]) -> None:
        """Try all edges, those into one receiver after those into later ones."""
        graph, each = self.runs.graph, self.runs.graph.n_pos or 1
        for receiver, senders in reversed(list(enumerate(components(graph)))):
            edges = graph.of_receiver(receiver)
            waiting = np.arange(edges.start * each, edges.stop * each)[::-1]
            if senders and not self._leads_on(senders):
                self.kept[waiting] = False
            else:
                self._try(waiting)
            advance(len(waiting))

    def _leads_on(self, senders: list[int]) -> bool:
        """Whether an edge from one of the senders is kept; all that they reach was tried before."""
        theirs = np.isin(self.runs.graph.ends[:, 0], senders)
        return bool(self.kept.reshape(len(theirs), -1)[theirs].any())

    def _try(self, waiting: np.ndarray) -> None:
        """Try edges in order; the widths of the batches follow how many go."""
        while len(waiting):
            some = waiting[: self.width]
            rise = np.diff(self._losses(some), prepend=self.loss)
            stays = np.flatnonzero(rise >= self.threshold)
            gone = stays[0] if len(stays) else len(some)
            decided = min(gone + 1, len(some))
            self.kept[some[:gone]] = False
            self.rise[some[:decided]] = rise[:decided]
            self.loss += float(rise[:gone].sum())
            self.width = min(2 * self.width, WIDEST) if gone == len(some) else max(1, int(gone))
            waiting = waiting[decided:]

    def _losses(self, edges: np.ndarray) -> Float[np.ndarray, "edge"]:
        """The loss when the first of the edges is gone, the first two, and so on."""
        masks = np.repeat(self.kept[None], len(edges), 0)
        for row in range(len(edges)):
            masks[row:, edges[row]] = False
        self.runs_made += len(edges)
        scores = self.runs.scores(masks.reshape(-1, *self.runs.graph.shape), progress=False)
        return np.abs(scores - self.runs.clean).mean(-1)
