"""(u' - u) . dm/d(what v reads), for every edge u -> v, from gradients in head space.

A head's query is W_Q^T norm(stream) + b_Q, so with g the gradient of the metric at the query, the gradient at the
stream as that head reads it is

    J^T W_Q g,   J^T y = (gain y - mean(gain y) - x̂ mean(x̂ · gain y)) / scale

x̂ being the normalised stream (without the means for an RMS norm); keys and values alike. For all heads that would be a
tensor [batch pos head d_model]. It is made for some positions at a time; the mean is taken off the senders' side, once
for all receivers, and the scale off the gradient in head space.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from analyses.direct_paths import WEIGHTS, Deltas, DirectPaths
from interp.graph import Graph
from interp.shares import gain_of
from interp.sites import Site
from interp.stream_points import end, read_at, written_at

PART = 2**26
"""Bytes of the senders' changes at a time: few enough to stay near the processor, enough for large products."""
Activations = Mapping[str, Tensor]
Products = Float[Tensor, "sender receiver prompt *pos"]


@dataclass(frozen=True)
class EdgeProducts:
    """The products of some prompts. paths: what the senders change, of the run that the gradients belong to."""

    model: Any
    graph: Graph
    paths: DirectPaths
    _last: dict[tuple[Any, ...], Deltas] = field(default_factory=dict, repr=False)

    def of(self, senders: range, streams: Activations, gradients: Activations, start: int = 0) -> Products:
        """The products from some senders, neighbours in the graph, to every receiver; 0 where there is no edge.

        streams: at the input of every layer. gradients: at q, k, v and mlp_in of every layer, and at the last stream.
        start: the position of their first entries; before it no sender may change anything.
        """
        n_prompts, n_pos = self.paths.chosen.shape
        positions = () if self.graph.n_pos is None else (n_pos,)
        shape = (len(senders), len(self.graph.receivers), n_prompts, *positions)
        wide = torch.promote_types(self.model.dtype, torch.float32)
        found = torch.zeros(shape, dtype=wide, device=self.model.device)
        for part in self._parts(len(senders)):
            delta, (prompts, pos) = self._written(senders, *part), part
            entries = prompts, slice(pos.start - start, pos.stop - start)
            for receivers, count in self._layers(senders):
                if count:
                    products = self._products(receivers, entries, delta[:count], streams, gradients)
                    here = part if positions else part[:1]
                    found[(slice(count), slice(receivers.start, receivers.stop), *here)] += products
        return found

    def _written(self, senders: range, prompts: slice, positions: slice) -> Deltas:
        """What senders change; that of the last part is kept, since runs along a way ask for the same."""
        asked = (senders, prompts.start, prompts.stop, positions.start, positions.stop)
        if asked not in self._last:
            self._last.clear()
            self._last[asked] = self._find_written(senders, self.paths.part(prompts, positions))
        return self._last[asked]

    def _find_written(self, senders: range, paths: DirectPaths) -> Deltas:
        sites = self.graph.senders
        groups = groupby(senders, key=lambda number: sites[number].hook_name)
        changes = [paths.written([sites[number] for number in group]) for _, group in groups]
        delta = torch.cat(changes) if len(changes) > 1 else changes[0]
        return delta.sub_(delta.mean(-1, keepdim=True)) if self._centres else delta  # as every receiver's norm does

    def _products(
        self,
        receivers: range,
        part: tuple[slice, slice],
        delta: Deltas,
        streams: Activations,
        gradients: Activations,
    ) -> Products:
        """Of all queries, keys and values of a layer, of an MLP, or of the logits."""
        site = self.graph.receivers[receivers.start]
        if site is None or site.kind == "mlp_in":
            name = Site("resid_post", self.model.cfg.n_layers - 1).hook_name if site is None else site.hook_name
            gradient = rearrange(gradients[name][part], "prompt pos model -> 1 prompt pos model").to(delta)
            return self._product(delta, gradient)
        block, stream = self.model.blocks[site.layer], streams[Site("resid_pre", site.layer).hook_name][part].to(delta)
        normed, scale = self._normalised(block, stream)
        reads = [Site(kind, site.layer).hook_name for kind in WEIGHTS]
        heads = torch.cat([gradients[name][part] for name in reads], 2).to(delta) / scale[..., None]
        weight = torch.cat([getattr(block.attn, name) for name in WEIGHTS.values()]).to(delta)
        through = "prompt pos head d_head, head model d_head -> head prompt pos model"
        gradient = einsum(heads, weight, through)
        if normed is not None:
            gain = gain_of(block.ln1)
            gradient = gradient if gain is None else gradient.mul_(gain.to(delta))
            along = einsum(gradient, normed, "head prompt pos model, prompt pos model -> head prompt pos")
            gradient.addcmul_(normed, along[..., None], value=-1 / stream.shape[-1])
        return self._product(delta, gradient)

    def _product(self, delta: Deltas, gradient: Float[Tensor, "receiver prompt pos d_model"]) -> Products:
        """Summed over the stream's width, and over positions unless they are told apart.

        As a product of matrices for each prompt: einsum would copy both sides.
        """
        if self.graph.n_pos is None:
            one = rearrange(delta, "sender prompt pos model -> prompt sender (pos model)")
            other = rearrange(gradient, "receiver prompt pos model -> prompt (pos model) receiver")
            return rearrange(one @ other, "prompt sender receiver -> sender receiver prompt")
        one = rearrange(delta, "sender prompt pos model -> prompt pos sender model")
        other = rearrange(gradient, "receiver prompt pos model -> prompt pos model receiver")
        return rearrange(one @ other, "prompt pos sender receiver -> sender receiver prompt pos")

    def _normalised(self, block: Any, stream: Tensor) -> tuple[Tensor | None, Tensor]:
        """x̂ and the scale; None and 1 where nothing is normalised."""
        if not self._normalises:
            return None, torch.ones_like(stream[..., :1])
        centred = stream - stream.mean(-1, keepdim=True) if self._centres else stream
        eps = getattr(block.ln1, "eps", self.model.cfg.eps)
        scale = (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return centred / scale, scale

    @property
    def _normalises(self) -> bool:
        """Whether what attention reads is normalised."""
        cfg = self.model.cfg
        return cfg.normalization_type is not None and getattr(cfg, "norm_places", "pre") != "post"

    @property
    def _centres(self) -> bool:
        return self._normalises and self.model.cfg.normalization_type.startswith("LN")

    def _parts(self, n_senders: int) -> Iterator[tuple[slice, slice]]:
        """Some prompts and some of their positions at a time, of the positions where any sender changes."""
        n_prompts = len(self.paths.chosen)
        moving = self.paths.moving
        first, last = moving.start, moving.stop
        if first == last:
            return
        size = max(1, PART // (n_senders * self.model.cfg.d_model * max(4, self.model.dtype.itemsize)))
        positions, prompts = min(size, last - first), max(1, size // (last - first))
        for prompt in range(0, n_prompts, prompts):
            for pos in range(first, last, positions):
                yield slice(prompt, prompt + prompts), slice(pos, min(pos + positions, last))

    def _layers(self, senders: range) -> Iterator[tuple[range, int]]:
        """Receivers that read the stream at one point for one purpose, and how many of the senders have written."""
        written = [written_at(self.graph, self.graph.senders[number]) for number in senders]
        for (point, _), together in groupby(range(len(self.graph.receivers)), key=lambda number: self._reads[number]):
            numbers = list(together)
            yield range(numbers[0], numbers[-1] + 1), sum(each <= point for each in written)

    @cached_property
    def _reads(self) -> list[tuple[int, str]]:
        """Where each receiver reads, and whether as attention, MLP or logits."""
        return [
            (end(self.graph), "logits") if site is None else (read_at(self.graph, site), str(site.head is None))
            for site in self.graph.receivers
        ]
