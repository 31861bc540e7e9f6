"""A circuit: some of the edges of a model's graph, as data.

circuit = Circuit.of(Graph.of(model), ["input->a0.h1<v>", "a0.h1->logits"], model)
circuit.save("ioi.json"); Circuit.load("ioi.json").iou(circuit)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from interp import files, provenance
from interp.dangling import without_dangling
from interp.errors import LabError
from interp.graph import INPUT, LOGITS, Graph, sender_name

FORMAT = "interp.circuit/1"


@dataclass(frozen=True, eq=False)
class Circuit:
    """Some of the edges of a graph.

    kept: which, in the graph's order. model, weights: the name and the hash of the weights (see `interp.provenance`) of
    the model whose circuit it is; None where it is of any model of this shape.

    Raises:
        LabError: an array of another shape than the graph's.
    """

    graph: Graph
    kept: Bool[np.ndarray, "edge *pos"]
    model: str | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        kept = np.array(self.kept, dtype=bool)
        if kept.shape != self.graph.shape:
            raise LabError(f"kept has shape {list(kept.shape)}; expected the graph's {list(self.graph.shape)}.")
        kept.flags.writeable = False
        object.__setattr__(self, "kept", kept)

    @classmethod
    def of(cls, graph: Graph, edges: Iterable[str], model: Any = None) -> Circuit:
        """The circuit of these edges, by name.

        Raises:
            LabError: an edge that the graph does not have.
        """
        kept = np.zeros(graph.shape, dtype=bool)
        for edge in edges:
            kept[graph.index(edge)] = True
        return cls.from_mask(graph, kept, model)

    @classmethod
    def from_mask(cls, graph: Graph, kept: Bool[np.ndarray, "edge *pos"], model: Any = None) -> Circuit:
        """The circuit of the edges where `kept` is true."""
        if model is None:
            return cls(graph, kept)
        return cls(graph, kept, model.cfg.model_name, provenance.weights_hash(model))

    @classmethod
    def whole(cls, graph: Graph, model: Any = None) -> Circuit:
        """Every edge."""
        return cls.from_mask(graph, np.ones(graph.shape, dtype=bool), model)

    # -- what it holds ------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return int(self.kept.sum())

    def __iter__(self) -> Iterator[str]:
        """The names of its edges."""
        return (self.graph.name(tuple(index)) for index in np.argwhere(self.kept).tolist())

    def __contains__(self, edge: str) -> bool:
        return bool(self.kept[self.graph.index(edge)])

    def __eq__(self, other: object) -> bool:
        """The same edges of the same graph; whose weights they were found in does not matter."""
        if not isinstance(other, Circuit):
            return NotImplemented
        return self.graph == other.graph and np.array_equal(self.kept, other.kept)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        share = len(self) / len(self.graph)
        return f"Circuit({len(self)} of {len(self.graph)} edges, {share:.2%}, model={self.model!r})"

    @property
    def nodes(self) -> tuple[str, ...]:
        """The components at either end of its edges, in order: `input`, `a5.h1`, `m3`, ..., `logits`."""
        by_edge = self.kept.reshape(len(self.kept), -1).any(1)
        found = set()
        for sender, receiver in self.graph.ends[by_edge].tolist():
            found |= {self.graph.sender_names[sender], *self._components(receiver)}
        order = {name: number for number, name in enumerate(_in_order(self.graph))}
        return tuple(sorted(found, key=order.__getitem__))

    # -- making others ------------------------------------------------------------------------------------------

    def __and__(self, other: Circuit) -> Circuit:
        """The edges of both."""
        return self._with(self.kept & self._alike(other).kept)

    def __or__(self, other: Circuit) -> Circuit:
        """The edges of either."""
        return self._with(self.kept | self._alike(other).kept)

    def __sub__(self, other: Circuit) -> Circuit:
        """Its edges that are not the other's."""
        return self._with(self.kept & ~self._alike(other).kept)

    def iou(self, other: Circuit) -> float:
        """Edges of both over edges of either, from 0 to 1; NaN where neither has any."""
        either = len(self | other)
        return len(self & other) / either if either else float("nan")

    def restrict(self, nodes: Iterable[str]) -> Circuit:
        """The edges whose two ends are among these components (`input`, `a5.h1`, `m3`, `logits`).

        Raises:
            LabError: a component that the graph does not have.
        """
        wanted = {sender_name(node) if node != "out" else LOGITS for node in nodes}
        known = _in_order(self.graph)
        if unknown := sorted(wanted - set(known)):
            raise LabError(f"no component {unknown[0]!r}; expected some of {known[0]} to {known[-1]}, such as 'a0.h0'.")
        senders = np.array([name in wanted for name in self.graph.sender_names])
        receivers = np.array([bool(wanted & set(self._components(n))) for n in range(len(self.graph.receivers))])
        inside = senders[self.graph.ends[:, 0]] & receivers[self.graph.ends[:, 1]]
        return self._with(self.kept & inside.reshape(-1, *[1] * (self.kept.ndim - 1)))

    def pruned(self) -> Circuit:
        """Without dangling parts: only the edges that lie on a way from the input to the logits."""
        return self._with(without_dangling(self.graph, self.kept))

    # -- whose it is, and keeping it ----------------------------------------------------------------------------

    def check(self, model: Any) -> None:
        """Raises:
        LabError: the circuit is of another model: of another shape, or with other weights.
        """
        own = Graph.of(model, self.graph.n_neurons is not None, self.graph.n_pos)
        if own != self.graph:
            mine, its = asdict(self.graph), asdict(own)
            differing = ", ".join(f"{name} {mine[name]} and {its[name]}" for name in mine if mine[name] != its[name])
            raise LabError(f"the circuit is not one of {model.cfg.model_name!r}: they have {differing}.")
        if self.weights is not None and self.weights != provenance.weights_hash(model):
            raise LabError(
                f"the circuit was found in {self.model!r} with other weights than those of {model.cfg.model_name!r}; "
                "load the model that it belongs to, or take its edges alone: Circuit.from_mask(graph, circuit.kept)."
            )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as JSON, whole or not at all.

        Raises:
            LabError: the path cannot be written to.
        """
        return files.write_text(path, json.dumps(self.to_dict(), indent=1) + "\n")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `load` reads it also with more beside it."""
        about = {"format": FORMAT, "model": self.model, "weights": self.weights, "graph": asdict(self.graph)}
        return about | {"edges": list(self)}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Circuit:
        """Read what `save` wrote.

        Raises:
            LabError: the file is missing, or no circuit.
        """
        try:
            about = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError) as problem:
            raise LabError(f"cannot read a circuit from {str(path)!r}: {problem}.") from problem
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise LabError(f"{str(path)!r} is not a saved circuit; expected a file that Circuit.save wrote.")
        try:
            circuit = cls.of(Graph(**about["graph"]), about["edges"])
        except (KeyError, TypeError) as problem:
            raise LabError(f"the circuit in {str(path)!r} is damaged: {problem}.") from problem
        return replace(circuit, model=about.get("model"), weights=about.get("weights"))

    def _with(self, kept: Bool[np.ndarray, "edge *pos"]) -> Circuit:
        return replace(self, kept=kept)

    def _alike(self, other: Circuit) -> Circuit:
        if self.graph != other.graph:
            raise LabError("the two circuits are of different graphs, so their edges do not correspond.")
        return other

    def _components(self, receiver: int) -> list[str]:
        """The names of what a receiver belongs to; keys and values may belong to several heads."""
        site = self.graph.receivers[receiver]
        if site is None:
            return [LOGITS]
        if site.head is None:
            return [f"m{site.layer}"]
        return [f"a{site.layer}.h{head}" for head in self.graph.heads_of(site)]


def _in_order(graph: Graph) -> list[str]:
    """Every component, and an MLP beside its neurons."""
    found = [INPUT]
    for layer in range(graph.n_layers):
        found += [f"a{layer}.h{head}" for head in range(graph.n_heads)]
        if not graph.attn_only:
            found += [f"m{layer}", *(f"m{layer}.n{n}" for n in range(graph.n_neurons or 0))]
    return [*found, LOGITS]
