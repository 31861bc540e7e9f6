"""Edge patching: for every edge of a model, what the answer loses when that edge alone carries the other run.

One run is patched. For the edge u -> v the receiver v (a head's query, key or value input, an MLP, the logits) reads
its stream with the sender's output of the other run in place of its own, and everything else reads what it did; from v
on all is recomputed (Wang et al. 2022, arXiv:2211.00593, §3.1; Conmy et al. 2023, arXiv:2304.14997):

    effect(u -> v) = [m(v reads stream + u' - u) - m(run)] / [m(other run) - m(run)]

That is path patching without anything in between, so 0 is no change and 1 the whole way to the other run; in the
direction "noise" the clean run is patched from the corrupted one (is the edge necessary?), in "denoise" the reverse.
With value="mean" or "zero" the sender is replaced by its mean over the corrupted prompts or by nothing instead.

Cost: two forwards; then for each edge and prompt the part of a forward that lies after the receiver, at positions from
the first difference on. All edges are one sweep (see `interp.sweep`), and edges to the logits cost nothing.
It does not show: edges that matter only together, or that stand in for each other.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float

from analyses.edge_scores import VALUES, EdgeScores, check_value, checked_graph
from analyses.fills import warn_of_zeros
from analyses.labels import position_labels
from analyses.patching import DIRECTIONS
from analyses.path_ends import Receiver
from analyses.path_runs import patch, rows_of
from analyses.paths import Work, on_the_way, prepare
from interp import files, provenance, sweep
from interp.circuit import Circuit
from interp.contract import HookedModel
from interp.errors import LabError, choose
from interp.graph import Graph, name_of
from interp.metrics import AnyMetric
from interp.prompts import PromptPairs
from interp.sites import Site


@dataclass(frozen=True, eq=False, repr=False)
class EdgePatchingResult(EdgeScores):
    """The exact effect of every edge.

    values: as for all edge scores; NaN for edges that were not asked for. An edge that carries no difference has
    exactly 0. raw: the metric of every patched run. way: how they ran (see `interp.sweep`).
    """

    title = "Edge patching"

    raw: Float[np.ndarray, "*axes prompt"]
    way: str


def edge_patching(
    model: HookedModel | Any,
    pairs: PromptPairs,
    metric: str | AnyMetric | Callable[..., Any] = "logit_diff",
    direction: str = "noise",
    value: str = "resample",
    graph: Graph | None = None,
    among: Circuit | None = None,
    normalize: bool = True,
    budget: int | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> EdgePatchingResult:
    """Patch every edge, one at a time: `.values[edge]`, `.top(10)`.

    metric: see `interp.metrics`; "kl" compares with the clean run. value: "resample" takes the sender's output from the
    other run, "mean" and "zero" (of the clean run only) replace it. graph: by default `Graph.of(model)`, all positions
    together; `Graph.of(model, n_pos=pairs.clean.shape[1])` tells positions apart, `neurons=True` the neurons that send.
    among: only the edges of this circuit. normalize: with "resample", False gives the change in the metric's units, in
    which the others always are. budget, out, progress: as in `interp.sweep.run`; the two runs' activations come on top
    of the budget, and as much as the budget for what is computed of edges at a time.

    Raises:
        LabError: an unknown metric, direction or value; prompts that the model cannot take, a graph of another model,
            or with positions for prompts of unequal length; a model whose parts do not add up in closed form, or with
            hooks attached; too small a budget.
    """
    if out is not None:
        files.check_writable(out)
    graph = checked_graph(model, pairs, graph)
    work, chosen = _prepare(model, pairs, metric, direction, value, graph, among, budget)
    if value == "zero":
        warn_of_zeros(2)
    change, way = patch(work.runs, out, progress)
    effects = _by_edge(graph, change)
    wanted = normalize and value == "resample"
    values, normalized = on_the_way(effects.mean(-1), work.base, work.source, wanted, model.dtype)
    clean, corrupted = (work.base, work.source) if direction == "noise" else (work.source, work.base)
    name = work.runs.metric.name
    return EdgePatchingResult(
        np.where(chosen, values, np.nan),
        clean,
        corrupted,
        name,
        direction,
        value,
        normalized,
        asdict(graph),
        np.where(chosen[..., None], work.base + effects, np.nan),
        way,
        axes=graph.axes,
        labels=labels_of(model, pairs, graph),
        provenance=provenance.of(model, prompts=pairs, metric=name, direction=direction, ablation=value),
    )


def edge_patching_plan(
    model: HookedModel | Any,
    pairs: PromptPairs,
    metric: str | AnyMetric | Callable[..., Any] = "logit_diff",
    direction: str = "noise",
    value: str = "resample",
    graph: Graph | None = None,
    among: Circuit | None = None,
    budget: int | None = None,
) -> sweep.Plan:
    """What `edge_patching` with the same arguments will take, before it runs; see `interp.sweep.Plan`. Edges to the
    logits, which take no run, are not counted.

    Raises:
        LabError: as there, and when there are no other edges.
    """
    graph = checked_graph(model, pairs, graph)
    work, _ = _prepare(model, pairs, metric, direction, value, graph, among, budget)
    _, rows = rows_of(work.runs)
    return sweep.plan(model, work.runs.pairs, rows, work.runs.metric, budget)


def labels_of(model: Any, pairs: PromptPairs, graph: Graph) -> dict[str, Any]:
    """The labels of the axes of `graph.shape`."""
    return {"edge": graph.names} | ({} if graph.n_pos is None else {"pos": position_labels(model, pairs)})


def _prepare(
    model: HookedModel | Any,
    pairs: PromptPairs,
    metric: str | AnyMetric | Callable[..., Any],
    direction: str,
    value: str,
    graph: Graph,
    among: Circuit | None,
    budget: int | None,
) -> tuple[Work, Bool[np.ndarray, "edge *pos"]]:
    """What to run, and which edges were asked for."""
    choose("direction", direction, DIRECTIONS)
    choose("value", value, VALUES)
    check_value(value, direction)
    pairs.check(model)
    if among is not None and among.graph != graph:
        raise LabError("the circuit in among= is not of this graph; make it with the same Graph.of(model, ...).")
    pairs = pairs.to(model.device)
    chosen = np.ones(graph.shape, dtype=bool) if among is None else among.kept
    columns, wanted = _columns(graph), _by_cell(graph, chosen)
    settings = (metric, direction, pairs.mask, True, budget, value)
    return prepare(model, pairs, columns, graph.senders, *settings, wanted=wanted), chosen


def _columns(graph: Graph) -> list[Receiver]:
    """Every receiver; at every position, where positions are told apart."""
    positions = [None] if graph.n_pos is None else range(graph.n_pos)
    found = []
    for site in graph.receivers:
        for pos in positions:
            sites = () if site is None else (Site(site.kind, site.layer, site.head, pos),)
            found.append(Receiver(name_of(site), sites, pos if site is None else None))
    return found


def _by_edge(
    graph: Graph, change: Float[np.ndarray, "sender column prompt"]
) -> Float[np.ndarray, "edge *pos_and_prompt"]:
    """The entries that are edges, in the graph's order."""
    senders, receivers = graph.ends.T
    if graph.n_pos is None:
        return change[senders, receivers]
    apart = rearrange(change, "sender (receiver pos) prompt -> sender receiver pos prompt", pos=graph.n_pos)
    return apart[senders, receivers]


def _by_cell(graph: Graph, chosen: Bool[np.ndarray, "edge *pos"]) -> Bool[np.ndarray, "sender column"]:
    """The inverse of `_by_edge`, for edges that are chosen."""
    cells = np.zeros((*graph.reaches.shape, graph.n_pos or 1), dtype=bool)
    cells[tuple(graph.ends.T)] = chosen.reshape(len(chosen), -1)
    return rearrange(cells, "sender receiver pos -> sender (receiver pos)")
