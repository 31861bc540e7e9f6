"""Circuits from the scores of edges: the strongest edges, the strongest components, or what grows back from the logits.

What counts as strong is the share of the way that patching the edge goes. An absolute ranking takes it without its
sign: edges that matter. A signed one takes it with it: edges that help the answer, those that work against it last
(Mueller et al. 2025, arXiv:2504.13151). Ties go to the edge that comes first. Parts that lie on no way from the input
to the logits are taken out at the end, so a circuit may be smaller than was asked.
"""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np
from jaxtyping import Bool, Float, Int

from analyses.edge_scores import EdgeScores
from interp.circuit import Circuit
from interp.dangling import components
from interp.errors import LabError
from interp.graph import INPUT, LOGITS, Graph, name_of


def importance(scores: EdgeScores, signed: bool = False) -> Float[np.ndarray, "*axes"]:
    """How strong every edge is; the lowest number for edges without a score."""
    values = scores.values
    if signed and not scores.normalized:  # towards the other run is positive, as in a normalised score
        base, other = scores.clean.mean(), scores.corrupted.mean()
        values = values * np.sign(other - base if scores.direction == "noise" else base - other)
    return np.nan_to_num(values if signed else np.abs(values), nan=-np.inf, neginf=-np.inf)


def ranked(scores: EdgeScores, signed: bool = False) -> Int[np.ndarray, "place"]:
    """The numbers of all edges with a score, counted through `graph.shape`, the strongest first."""
    order = np.argsort(-importance(scores, signed), axis=None, kind="stable")
    return order[~np.isnan(scores.values).reshape(-1)[order]]


def strongest_edges(scores: EdgeScores, n: int, signed: bool = False) -> Circuit:
    """The n strongest edges.

    Raises:
        LabError: n is not between 1 and the number of edges with a score.
    """
    order = ranked(scores, signed)
    _check_number(n, len(order), "edges")
    kept = np.zeros(scores.graph.shape, dtype=bool)
    kept.flat[order[:n]] = True
    return circuit_of(scores, kept).pruned()


def strongest_nodes(scores: EdgeScores, n: int, signed: bool = False) -> Circuit:
    """All edges between the n strongest components, the input and the logits.

    A component's score is the sum of its outgoing edges' scores: by gradients that is the component's own (Syed et al.
    2023, arXiv:2310.10348), by exact patching it neglects how they act together.

    Raises:
        LabError: n is not between 1 and the number of components.
    """
    graph = scores.graph
    towards = np.nan_to_num(importance(scores, True), neginf=0.0).reshape(len(graph.ends), -1).sum(1)
    sums = np.bincount(graph.ends[:, 0], towards, len(graph.senders))[1:]  # without the input, which is always there
    _check_number(n, len(sums), "components")
    order = np.argsort(-(sums if signed else np.abs(sums)), kind="stable")[:n]
    found = circuit_of(scores, ~np.isnan(scores.values))
    return found.restrict([INPUT, LOGITS, *(name_of(graph.senders[1 + number]) for number in order)]).pruned()


def greedy_edges(scores: EdgeScores, n: int, signed: bool = False) -> Circuit:
    """n edges, grown back from the logits: each time the strongest that leads into what is already there.

    So every edge leads to the logits (Hanna et al. 2024, arXiv:2403.17806, §3). At positions, a component that is there
    at one position counts as there at all.

    Raises:
        LabError: n is not between 1 and the number of edges with a score.
    """
    graph, order = scores.graph, ranked(scores, signed)
    _check_number(n, len(order), "edges")
    into = _leading_into(graph, order)
    inputs = _inputs_of(graph)
    kept = np.zeros(graph.shape, dtype=bool)
    open_edges: list[tuple[int, int]] = []
    seen = {len(graph.receivers) - 1}
    waiting = list(seen)
    for _ in range(n):
        for receiver in waiting:
            for place, edge in into[receiver]:
                heappush(open_edges, (place, edge))
        if not open_edges:
            break
        _, edge = heappop(open_edges)
        kept.flat[edge] = True
        sender = int(graph.ends[edge // (graph.n_pos or 1), 0])
        waiting = [receiver for receiver in inputs[sender] if receiver not in seen]
        seen.update(waiting)
    return circuit_of(scores, kept).pruned()


def edges_of_share(graph: Graph, share: float) -> int:
    """How many edges a share of them is, at least one.

    Raises:
        LabError: the share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise LabError(f"a share of {share:g} of the edges; expected above 0 and at most 1.")
    return max(1, round(share * len(graph)))


def circuit_of(scores: EdgeScores, kept: Bool[np.ndarray, "*axes"]) -> Circuit:
    """Some edges as a circuit of the model that was scored."""
    return Circuit(scores.graph, kept, scores.provenance.model, scores.provenance.weights)


def _leading_into(graph: Graph, order: Int[np.ndarray, "place"]) -> list[list[tuple[int, int]]]:
    """Of each receiver the edges that lead into it, with their places in the ranking."""
    found: list[list[tuple[int, int]]] = [[] for _ in graph.receivers]
    receivers = graph.ends[order // (graph.n_pos or 1), 1]
    for place, (edge, receiver) in enumerate(zip(order.tolist(), receivers.tolist(), strict=True)):
        found[receiver].append((place, edge))
    return found


def _inputs_of(graph: Graph) -> list[list[int]]:
    """Of each sender the receivers that are its inputs."""
    found: list[list[int]] = [[] for _ in graph.senders]
    for receiver, senders in enumerate(components(graph)):
        for sender in senders:
            found[sender].append(receiver)
    return found


def _check_number(n: int, available: int, what: str) -> None:
    if not 1 <= n <= available:
        raise LabError(f"{n} {what}; expected 1 to {available}: that many have a score.")
