"""Runs along a way from the other run to the run that is patched, for the gradients of edge attribution.

Each way gives runs, with the senders whose edges their gradients are for, and how many runs the mean is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from analyses.recording import Past, Recording, record
from interp.contract import HookedModel, NamedHook
from interp.graph import Graph
from interp.markers import pure
from interp.metrics import AnyMetric
from interp.prompts import PromptPairs
from interp.sites import Site
from interp.sweep.base import can_resume

Activations = Mapping[str, Tensor]
Recorded = Iterator[tuple[range, int, Recording]]
Way = Callable[["Question", Activations, Activations, int], Recorded]


@dataclass(frozen=True)
class Question:
    """What is asked of a batch of prompts: the model, its graph, and the run whose metric the gradients are of.

    edits: hooks that the run has. points: where gradients are taken beside the receivers. past: the positions that no
    run along the way changes.
    """

    model: HookedModel | Any
    graph: Graph
    runs: PromptPairs
    metric: AnyMetric
    edits: Sequence[NamedHook] = ()
    points: Sequence[str] = ()
    past: Past | None = None

    @property
    def everyone(self) -> range:
        return range(len(self.graph.senders))

    @property
    def senders_points(self) -> list[str]:
        """The hook points of the senders."""
        return list(dict.fromkeys(site.hook_name for site in self.graph.senders))

    @property
    def streams(self) -> list[str]:
        return [Site("resid_pre", layer).hook_name for layer in range(self.graph.n_layers)]

    @property
    def receivers(self) -> list[str]:
        """The hook points at which the gradient is taken."""
        last = Site("resid_post", self.graph.n_layers - 1)
        return list(dict.fromkeys([*((site or last).hook_name for site in self.graph.receivers), *self.points]))

    @property
    def resumes(self) -> bool:
        """Whether runs may leave out positions at the start: the model can, and the metric reads known ones."""
        causal = getattr(self.model.cfg, "attention_dir", "causal") == "causal"
        return can_resume(self.model) and causal and self.metric.positions(self.runs) is not None

    def after(self, start: int, own: Activations) -> Question:
        """The same for runs that change nothing before `start`, and leave that out unless the metric reads there.

        own: the activations of the run that is patched, those of `past_names` among them.
        """
        read = self.metric.positions(self.runs) if start and self.resumes else None
        if read is None or int(read.min()) < start:
            return self
        return replace(self, past=Past.of(self.model, start, own))

    def recorded(self, *edits: NamedHook) -> Recording:
        """A run with its graph."""
        names = dict.fromkeys([*self.streams, *self.receivers, *self.senders_points])
        return record(self.model, self.runs, self.metric, list(names), edits=[*self.edits, *edits], past=self.past)


def along_inputs(question: Question, own: Activations, other: Activations, steps: int) -> Recorded:
    """EAP-IG (inputs): runs of input' + k/m (input - input'), k from 0 to m - 1; ' is the other run."""
    (name,) = (site.hook_name for site in question.graph.senders[:1])
    for step in range(steps):
        yield question.everyone, steps, question.recorded((name, between(own, other, step / steps)))


def along_activations(question: Question, own: Activations, other: Activations, steps: int) -> Recorded:
    """EAP-IG (activations): for the input, the heads of each layer and each MLP, runs in which those alone are
    x' + k/m (x - x'), k from 1 to m; ' is what they are replaced with."""
    graph = question.graph
    for name, group in groupby(question.everyone, key=lambda number: graph.senders[number].hook_name):
        numbers = list(group)
        for step in range(1, steps + 1):
            edit = (name, between(own, other, step / steps))
            yield range(numbers[0], numbers[-1] + 1), steps, question.recorded(edit)


def between(own: Activations, other: Activations, share: float) -> Callable[..., Tensor]:
    """A hook that puts an activation, of all positions or of the last, between the other run's and the run's own."""

    @pure
    def hook(activation: Tensor, hook: Any) -> Tensor:
        one, two = (run[hook.name][:, -activation.shape[1] :].to(activation) for run in (other, own))
        return torch.lerp(one, two, share)

    return hook
