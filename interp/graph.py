"""A model as a graph: components, and every edge along the residual stream between two of them.

Each component writes to the stream, and every later one reads the sum of what was written before it (Elhage et al.
2021, transformer-circuits.pub). So from each sender to each receiver that reads after it there is an edge, however many
layers it passes:

    senders     input, a5.h1 (a head), m3 (an MLP), or m3.n17 (one of its neurons)
    receivers   a5.h1<q>, a5.h1<k>, a5.h1<v> (a head's three inputs), m3, logits
    an edge     a3.h0->a5.h1<k>; at one position a3.h0->a5.h1<k>@7

Names are those of Hanna et al. 2024 (arXiv:2403.17806). Where queries share keys and values, the head of <k> and <v> is
a key/value head. The order of edges is that of the forward: by receiver, then by sender.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from interp.errors import LabError, choose
from interp.shares import check_stream_is_a_sum
from interp.sites import Site
from interp.stream_points import end, read_at, written_at

INPUT, LOGITS = "input", "logits"
_SENDER = re.compile(r"a(\d+)\.h?(\d+)|m(\d+)(?:\.n(\d+))?")
_RECEIVER = re.compile(r"a(\d+)\.h?(\d+)(?:<([qkv])>|\.([qkv]))|m(\d+)")
_SPELLINGS = {"inp": INPUT, "out": LOGITS}


@dataclass(frozen=True)
class Graph:
    """The graph of a model of some shape. `Graph.of(model)` makes it.

    n_kv_heads: key/value heads, fewer than n_heads where queries share them. attn_only: without MLPs.
    parallel_attn_mlp: attention and MLP read the same stream. causal: whether attention looks back only. n_neurons: of
    an MLP where each neuron is a sender of its own, else None. n_pos: positions, where an edge acts at one position
    alone, else None.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    attn_only: bool = False
    parallel_attn_mlp: bool = False
    causal: bool = True
    n_neurons: int | None = None
    n_pos: int | None = None

    @classmethod
    def of(cls, model: Any, neurons: bool = False, n_pos: int | None = None) -> Graph:
        """The graph of a model. neurons: every neuron sends by itself. n_pos: edges act at one of so many positions.

        Raises:
            LabError: neurons of a model without MLPs; fewer than one position; norms on the stream, whose reader then
                does not read the sum of what was written.
        """
        cfg = model.cfg
        check_stream_is_a_sum(model)
        if neurons and cfg.attn_only:
            raise LabError(f"neurons=True, but {cfg.model_name!r} has no MLPs; leave it out.")
        if n_pos is not None and n_pos < 1:
            raise LabError(f"n_pos={n_pos}; expected at least 1, or None for edges that act at all positions.")
        return cls(
            n_layers=cfg.n_layers,
            n_heads=cfg.n_heads,
            n_kv_heads=getattr(cfg, "n_key_value_heads", None) or cfg.n_heads,
            attn_only=bool(cfg.attn_only),
            parallel_attn_mlp=bool(getattr(cfg, "parallel_attn_mlp", False)),
            causal=getattr(cfg, "attention_dir", "causal") == "causal",
            n_neurons=cfg.d_mlp if neurons else None,
            n_pos=n_pos,
        )

    @cached_property
    def senders(self) -> tuple[Site, ...]:
        """What writes to the stream, in order; the first is the input."""
        found = [Site("resid_pre", 0)]
        for layer in range(self.n_layers):
            found += [Site("z", layer, head) for head in range(self.n_heads)]
            if not self.attn_only:
                neurons = range(self.n_neurons or 0)
                found += [Site("mlp_post", layer, neuron=n) for n in neurons] or [Site("mlp_out", layer)]
        return tuple(found)

    @cached_property
    def receivers(self) -> tuple[Site | None, ...]:
        """What reads the stream, in order; the last, None, are the logits."""
        heads = {"q": self.n_heads, "k": self.n_kv_heads, "v": self.n_kv_heads}
        found: list[Site | None] = []
        for layer in range(self.n_layers):
            found += [Site(kind, layer, head) for kind, n in heads.items() for head in range(n)]
            found += [] if self.attn_only else [Site("mlp_in", layer)]
        return (*found, None)

    @cached_property
    def sender_names(self) -> tuple[str, ...]:
        return tuple(name_of(site) for site in self.senders)

    @cached_property
    def receiver_names(self) -> tuple[str, ...]:
        return tuple(name_of(site) for site in self.receivers)

    @cached_property
    def reaches(self) -> Bool[np.ndarray, "sender receiver"]:
        """Which sender has an edge to which receiver."""
        written = np.array([written_at(self, site) for site in self.senders])
        read = np.array([end(self) if site is None else read_at(self, site) for site in self.receivers])
        return written[:, None] <= read[None, :]

    @cached_property
    def ends(self) -> Int[np.ndarray, "edge 2"]:
        """The numbers of each edge's sender and receiver."""
        return np.argwhere(self.reaches.T)[:, ::-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of arrays with an entry for each edge: [edge], or [edge pos]."""
        return (len(self.ends),) if self.n_pos is None else (len(self.ends), self.n_pos)

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of the axes of `shape`."""
        return ("edge",) if self.n_pos is None else ("edge", "pos")

    def __len__(self) -> int:
        """How many edges there are."""
        return int(np.prod(self.shape))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The name of each edge, along the axis "edge"."""
        senders, receivers = self.sender_names, self.receiver_names
        return tuple(f"{senders[one]}->{receivers[other]}" for one, other in self.ends.tolist())

    def name(self, index: tuple[int, ...]) -> str:
        """The name of the edge at an index of `shape`."""
        return self.names[index[0]] + (f"@{index[1]}" if self.n_pos is not None else "")

    def index(self, name: str) -> tuple[int, ...]:
        """Where an edge stands in arrays of `shape`. Also understands `inp->a5.1.k` and `m3->out`.

        Raises:
            LabError: no such edge, with the near misses; a position missing, superfluous or outside.
        """
        edge, _, pos = name.partition("@")
        sender, arrow, receiver = edge.partition("->")
        if not arrow:
            raise LabError(f"edge {name!r}; expected a sender and a receiver, such as {self.names[0]!r}.")
        given = (sender_name(sender), receiver_name(receiver))
        place = self._places.get("->".join(given))
        if place is None:
            choose("sender", given[0], self.sender_names)
            choose("receiver", given[1], self.receiver_names)
            raise LabError(f"there is no edge {'->'.join(given)}: {given[0]} writes after {given[1]} has read.")
        return (place, *self._position(name, pos))

    def _position(self, name: str, pos: str) -> tuple[int, ...]:
        if (self.n_pos is None) == bool(pos):
            expected = "no @ position" if self.n_pos is None else f"a position, @0 to @{self.n_pos - 1}"
            raise LabError(f"edge {name!r}; the edges of this graph have {expected}.")
        if not pos:
            return ()
        if not pos.isdigit() or int(pos) >= (self.n_pos or 0):
            raise LabError(f"edge {name!r}: expected a position from @0 to @{(self.n_pos or 0) - 1}.")
        return (int(pos),)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.names)}

    def of_receiver(self, receiver: int) -> slice:
        """The edges into one receiver, which stand together."""
        first, stop = np.searchsorted(self.ends[:, 1], [receiver, receiver + 1])
        return slice(int(first), int(stop))

    def heads_of(self, site: Site) -> range:
        """The heads whose query, key or value a site is."""
        assert site.head is not None
        group = 1 if site.kind == "q" else self.n_heads // self.n_kv_heads
        return range(site.head * group, (site.head + 1) * group)


def name_of(site: Site | None) -> str:
    """`input`, `a5.h1`, `m3`, `m3.n17` of a sender; `a5.h1<k>`, `m3` or, for None, `logits` of a receiver."""
    if site is None:
        return LOGITS
    layer = site.layer
    names = {"resid_pre": INPUT, "z": f"a{layer}.h{site.head}", "mlp_post": f"m{layer}.n{site.neuron}"}
    return names.get(site.kind) or (f"m{layer}" if site.head is None else f"a{layer}.h{site.head}<{site.kind}>")


def sender_name(given: str) -> str:
    """The name of a sender, however it is spelt; what is no spelling is given back."""
    found = _SENDER.fullmatch(given)
    if found is None:
        return _SPELLINGS.get(given, given)
    layer, head, mlp, neuron = found.groups()
    return f"a{layer}.h{head}" if mlp is None else f"m{mlp}" + (f".n{neuron}" if neuron else "")


def receiver_name(given: str) -> str:
    """The name of a receiver, however it is spelt; what is no spelling is given back."""
    found = _RECEIVER.fullmatch(given)
    if found is None:
        return _SPELLINGS.get(given, given)
    layer, head, kind, dotted, mlp = found.groups()
    return f"a{layer}.h{head}<{kind or dotted}>" if mlp is None else f"m{mlp}"
