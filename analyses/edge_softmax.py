"""Attribution patching at edges: edges into queries and keys with the q/k fix of AtP*.

A softmax that is saturated has hardly any gradient (see `analyses.softmax_fix`). So for edges u -> v into queries and
keys the pattern is recomputed, and only what comes after it is linearised:

    score(u -> v) = sum over i, k of [pattern(u -> v patched)_ik - pattern_ik] . dm/dpattern_ik

where v's queries, or its keys at all positions together, are those that it computes when the edge is patched, its
norm included (see `analyses.direct_paths`). At one position it is that query, or that key, alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from analyses import softmax_fix
from analyses.edge_products import PART, Activations, EdgeProducts, Products
from analyses.softmax_fix import Edges, Keys, Layer, Queries
from interp.contract import HookedModel
from interp.errors import LabError
from interp.sites import Site

Changes = Float[Tensor, "sender prompt pos head d_head"]
Turn = Float[Tensor, "prompt pos out d_head"]


class SoftmaxProducts(EdgeProducts):
    """The products of `analyses.edge_products`, but for edges into queries and keys."""

    def of(self, senders: range, streams: Activations, gradients: Activations, start: int = 0) -> Products:
        """streams: also all that `softmax_fix.Layer` names, of a run that keeps its graph. gradients: also at the
        patterns.

        Raises:
            LabError: the model's patterns are not the softmax of q . k / sqrt(d_head), rotated or not.
        """
        found = super().of(senders, streams, gradients, start)
        for layer in range(self.graph.n_layers):
            self._recompute(found, senders, _Attention.of(self.model, layer, streams, gradients))
        return found

    def _recompute(self, found: Products, senders: range, attention: _Attention) -> None:
        """Write the scores of all edges into the queries and keys of a layer."""
        graph, layer = self.graph, attention.layer
        firsts = {kind: graph.receivers.index(Site(kind, layer, 0)) for kind in ("q", "k")}
        before = [number for number in senders if graph.reaches[number, firsts["q"]]]
        for some, prompts in self._shares(before, attention):
            paths, here = self.paths.part(prompts, slice(None)), attention.part(prompts)
            delta = paths.written([graph.senders[number] for number in some])
            rows = slice(some[0] - senders.start, some[-1] + 1 - senders.start)
            for kind, first in firsts.items():
                effects = here.effects(kind, paths.read(kind, layer, delta), graph.n_pos is not None)
                found[rows, first : first + effects.shape[1], prompts] = effects.to(found)

    def _shares(self, numbers: list[int], attention: _Attention) -> Iterator[tuple[list[int], slice]]:
        """Senders at one hook point with some of the prompts, so that their patterns stay within `PART` bytes."""
        size = max(1, PART // (attention.scores[0].numel() * attention.scores.itemsize))
        for _, together in groupby(numbers, key=lambda number: self.graph.senders[number].hook_name):
            group = list(together)
            for start in range(0, len(group), size):
                some = group[start : start + size]
                width = max(1, size // len(some))
                for prompt in range(0, len(attention.scores), width):
                    yield some, slice(prompt, prompt + width)


@dataclass(frozen=True)
class _Attention:
    """One layer's attention in the run that is patched. q, k: as the scores read them. turns: by what a change of
    queries or keys is multiplied on the way there; None where they are read as they are."""

    layer: int
    q: Queries
    k: Keys
    scores: Edges
    gradient: Edges
    turns: dict[str, Turn | None]

    @classmethod
    def of(cls, model: HookedModel | Any, layer: int, run: Activations, gradients: Activations) -> _Attention:
        """Raises:
        LabError: as `SoftmaxProducts.of`.
        """
        names = Layer.of(model, layer)
        q, k = run[names.q].detach(), run[names.k].detach()
        softmax_fix.check_recomputed(q, k, run[names.scores], run[names.pattern])
        scores = softmax_fix.recomputed(q, k, run[names.scores])
        turns = {
            kind: _turn(run[Site(kind, layer).hook_name], run[name]) for kind, name in (("q", names.q), ("k", names.k))
        }
        return cls(layer, q.to(scores), k.to(scores), scores, gradients[names.pattern].to(scores), turns)

    def part(self, prompts: slice) -> _Attention:
        """The same of some prompts."""
        turns = {kind: None if turn is None else turn[prompts] for kind, turn in self.turns.items()}
        q, k, scores, gradient = (each[prompts] for each in (self.q, self.k, self.scores, self.gradient))
        return _Attention(self.layer, q, k, scores, gradient, turns)

    def effects(self, kind: str, change: Changes, by_position: bool) -> Float[Tensor, "sender head prompt *pos"]:
        """The change of the pattern . gradient at the pattern, for changed queries or keys of every sender."""
        n_senders, kv_heads = len(change), self.k.shape[2]
        turn = self.turns[kind]
        if turn is not None:
            change = einsum(change, turn, "s b pos head d, b pos out d -> s b pos head out")
        group, change = self.q.shape[2] // kv_heads, change.to(self.scores)
        if kind == "q":
            k = repeat(self.k, "b k_pos kv d -> b k_pos (kv group) d", group=group)
            moved = einsum(change, k, "s b q_pos head d, b k_pos head d -> s b head q_pos k_pos")
        else:
            change = repeat(change, "s b k_pos kv d -> s b k_pos (kv group) d", group=group)
            moved = einsum(self.q, change, "b q_pos head d, s b k_pos head d -> s b head q_pos k_pos")
        patched = rearrange(self.scores + moved / math.sqrt(self.q.shape[-1]), "s b ... -> (s b) ...")
        scores, gradient = (repeat(each, "b ... -> (s b) ...", s=n_senders) for each in (self.scores, self.gradient))
        if kind == "q":
            found = softmax_fix.query_effects(scores, patched, gradient)
            found = found if by_position else found.sum(-1)
        elif by_position:
            found = softmax_fix.key_effects(scores, patched, gradient, kv_heads)
        else:
            found = softmax_fix.all_keys_effect(scores, patched, gradient, kv_heads)
        return rearrange(found, "(s b) head ... -> s head b ...", s=n_senders)


def attention_points(model: HookedModel | Any) -> list[str]:
    """The hook points that the fix reads, patterns last.

    Raises:
        LabError: the model lacks one.
    """
    layers = [Layer.of(model, layer) for layer in range(model.cfg.n_layers)]
    return [name for each in layers for name in (each.q, each.k, each.scores)] + [each.pattern for each in layers]


def _turn(before: Tensor, after: Tensor) -> Turn | None:
    """The matrix by which each position's queries or keys are turned, the same for all heads; read off the graph.

    Raises:
        LabError: something else lies between the two, such as a norm.
    """
    if after is before:
        return None
    rows = []
    for direction in torch.eye(after.shape[-1], dtype=after.dtype, device=after.device):
        (row,) = torch.autograd.grad(after, before, direction.expand_as(after), retain_graph=True)
        rows.append(row[:, :, 0])
    turn = torch.stack(rows, 2)
    found = einsum(before.detach(), turn, "b pos head d, b pos out d -> b pos head out")
    error = float((found - after.detach()).abs().max())
    if not error <= torch.finfo(after.dtype).eps ** 0.5 * max(1.0, float(after.detach().abs().max())):
        raise LabError(
            f"the q/k fix takes queries and keys to be rotated and no more before they meet, but here they differ by "
            f"{error:.2g} from that, as where a norm lies in between; method='EAP' linearises the softmax instead."
        )
    return turn
