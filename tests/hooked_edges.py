"""Edges by their definition, through the model's own hooks alone: what exact and estimated effects are held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp import PromptPairs, Site
from interp.graph import Graph
from models import GPT


@dataclass(frozen=True)
class Hooked:
    """The definition: what a sender writes anew is read by one receiver, everything through the model's own hooks."""

    model: GPT
    runs: PromptPairs
    metric: Any
    own: Any
    other: Any

    @classmethod
    def of(cls, model: GPT, pairs: PromptPairs, direction: str, metric: Any) -> Hooked:
        runs = pairs if direction == "noise" else pairs.swapped()
        caches = [
            model.run_with_cache(ids, attention_mask=pairs.mask, names_filter=lambda name: True)[1]
            for ids in (runs.clean, runs.corrupted)
        ]
        return cls(model, runs, metric, *caches)

    def written(self, sender: Site) -> Tensor:
        """By how much the stream changes right after the sender, which the model says when it alone is replaced."""
        if sender.kind == "resid_pre":
            change = self.other[sender.hook_name] - self.own[sender.hook_name]
        else:
            after = Site("attn_out" if sender.kind == "z" else "mlp_out", sender.layer).hook_name
            part = sender.head if sender.kind == "z" else sender.neuron

            def replaced(activation: Tensor, hook: Any) -> Tensor:
                new, other = activation.clone(), self.other[hook.name]
                new[:, :, slice(None) if part is None else part] = other[:, :, slice(None) if part is None else part]
                return new

            with torch.no_grad(), self.model.hooks([(sender.hook_name, replaced)]):
                _, cache = self.model.run_with_cache(
                    self.runs.clean, attention_mask=self.runs.mask, names_filter=[after]
                )
            change = cache[after] - self.own[after]
        return torch.where(self.runs.mask[..., None], change, 0.0)

    def effect(self, delta: Tensor, receiver: Site | None) -> Tensor:
        """The metric [prompt] when one receiver's stream is changed by delta."""
        point = self.point(receiver)

        def changed(stream: Tensor, hook: Any) -> Tensor:
            if receiver is None or receiver.head is None:
                return stream + delta
            new = stream.clone()
            new[:, :, receiver.head] += delta
            return new

        with torch.no_grad(), self.model.hooks([(point, changed)]):
            return self.metric(self.model(self.runs.clean, attention_mask=self.runs.mask), self.runs)

    def point(self, receiver: Site | None) -> str:
        """The hook point of the stream as a receiver reads it."""
        if receiver is None:
            return Site("resid_post", self.model.cfg.n_layers - 1).hook_name
        kind = "mlp_in" if receiver.kind == "mlp_in" else f"{receiver.kind}_input"
        return Site(kind, receiver.layer).hook_name

    def slope(self, receiver: Site | None, edits: list[Any]) -> Tensor:
        """dm/d(the stream as a receiver reads it) [prompt pos d_model], in a run with edits."""
        added: list[Tensor] = []

        def changed(stream: Tensor, hook: Any) -> Tensor:
            added.append(torch.zeros_like(stream[:, :, 0] if stream.ndim == 4 else stream).requires_grad_())
            if stream.ndim == 3:
                return stream + added[0]
            assert receiver is not None
            one = torch.zeros(stream.shape[2], dtype=stream.dtype).index_fill(0, torch.tensor(receiver.head), 1.0)
            return stream + added[0][:, :, None] * one[:, None]

        with torch.enable_grad(), self.model.hooks([*edits, (self.point(receiver), changed)]):
            score = self.metric(self.model(self.runs.clean, attention_mask=self.runs.mask), self.runs)
        return torch.autograd.grad(score.sum(), added)[0]

    def every_edge(self, graph: Graph) -> Tensor:
        """[edge prompt], or [edge pos prompt]."""
        deltas = [self.written(sender) for sender in graph.senders]
        found = []
        for sender, receiver in graph.ends.tolist():
            site = graph.receivers[receiver]
            if graph.n_pos is None:
                found.append(self.effect(deltas[sender], site))
            else:
                found.append(torch.stack([self.effect(only(deltas[sender], pos), site) for pos in range(graph.n_pos)]))
        return torch.stack(found)


def only(delta: Tensor, pos: int) -> Tensor:
    """The change at one position alone."""
    kept = torch.zeros_like(delta)
    kept[:, pos] = delta[:, pos]
    return kept
