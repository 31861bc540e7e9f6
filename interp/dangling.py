"""Dangling parts of a circuit: edges that lie on no way from the input to the logits.

A component gives on what reaches it: an MLP at each position, a head what reaches its query there, or its keys and
values at any position that it can see.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from interp.graph import Graph

AtPositions = Bool[np.ndarray, "pos"]


def without_dangling(graph: Graph, kept: Bool[np.ndarray, "edge *pos"]) -> Bool[np.ndarray, "edge *pos"]:
    """The kept edges that begin at something that the input reaches, and end at something that reaches the logits."""
    edges = kept.reshape(len(kept), -1)
    edges = edges & _reached(graph, edges)[graph.ends[:, 0]]
    return (edges & _wanted(graph, edges)[graph.ends[:, 1]]).reshape(kept.shape)


def _reached(graph: Graph, kept: Bool[np.ndarray, "edge pos"]) -> Bool[np.ndarray, "sender pos"]:
    """Where what a sender writes depends on the input."""
    reached = np.zeros((len(graph.senders), kept.shape[1]), dtype=bool)
    reached[0] = True
    for receiver, senders in enumerate(components(graph)):
        edges = graph.of_receiver(receiver)
        arrives = (kept[edges] & reached[graph.ends[edges, 0]]).any(0)
        reached[senders] |= _seen_by_queries(graph, arrives) if _is_seen(graph, receiver) else arrives
    return reached


def _wanted(graph: Graph, kept: Bool[np.ndarray, "edge pos"]) -> Bool[np.ndarray, "receiver pos"]:
    """Where what a receiver reads goes on to the logits."""
    wanted = np.zeros((len(graph.receivers), kept.shape[1]), dtype=bool)
    useful = np.zeros((len(graph.senders), kept.shape[1]), dtype=bool)
    wanted[-1] = True
    for receiver, senders in reversed(list(enumerate(components(graph)))):
        edges = graph.of_receiver(receiver)
        if senders:
            goes_on = np.asarray(useful[senders].any(0))
            wanted[receiver] = _seeing_keys(graph, goes_on) if _is_seen(graph, receiver) else goes_on
        np.logical_or.at(useful, graph.ends[edges, 0], kept[edges] & wanted[receiver])
    return wanted


def components(graph: Graph) -> list[list[int]]:
    """Of each receiver the numbers of the senders that it is an input of."""
    by_place: dict[tuple[str, int | None, int | None], list[int]] = {}
    for number, site in enumerate(graph.senders[1:], 1):  # nothing is an input of the input
        kind = "z" if site.kind == "z" else "mlp"
        by_place.setdefault((kind, site.layer, site.head), []).append(number)
    found: list[list[int]] = []
    for receiver in graph.receivers:
        if receiver is None:
            found.append([])
        elif receiver.head is None:
            found.append(by_place["mlp", receiver.layer, None])
        else:
            found.append([by_place["z", receiver.layer, head][0] for head in graph.heads_of(receiver)])
    return found


def _is_seen(graph: Graph, receiver: int) -> bool:
    """Whether attention carries what a receiver reads from one position to others."""
    site = graph.receivers[receiver]
    return site is not None and site.kind in ("k", "v")


def _seen_by_queries(graph: Graph, at_keys: AtPositions) -> AtPositions:
    """The positions whose queries see one of the keys' positions."""
    return np.logical_or.accumulate(at_keys) if graph.causal else np.full_like(at_keys, at_keys.any())


def _seeing_keys(graph: Graph, at_queries: AtPositions) -> AtPositions:
    """The positions whose keys one of the queries' positions sees."""
    return (
        np.logical_or.accumulate(at_queries[::-1])[::-1] if graph.causal else np.full_like(at_queries, at_queries.any())
    )
