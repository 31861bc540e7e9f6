"""Some runs of circuits at once: each receiver's stream is put together from what the circuit keeps of the senders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Any

from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from analyses.direct_paths import DirectPaths
from analyses.path_runs import measure_streams
from interp.graph import Graph
from interp.markers import pure, reads_only
from interp.metrics import AnyMetric
from interp.prompts import PromptPairs
from interp.sites import Site
from interp.stream_points import end, read_at, written_at
from interp.sweep.base import can_resume, pick


@dataclass(frozen=True, eq=False)
class Batch:
    """One item is the run of one circuit on one prompt.

    paths: from what ablated senders do, item by item. streams: the ablated stream at each point that is read. masks: 1
    where an edge is kept, or anything in between. written: what each sender does more than when it is ablated, before
    any norm on it, filled in while the batch runs. Gradients go through all of it.
    """

    model: Any
    graph: Graph
    pairs: PromptPairs
    metric: AnyMetric
    paths: DirectPaths
    streams: Mapping[int, Float[Tensor, "item pos d_model"]]
    masks: Float[Tensor, "item receiver sender *pos"]
    written: dict[range, Float[Tensor, "sender item pos d_model"]] = field(default_factory=dict)

    @cached_property
    def groups(self) -> list[range]:
        """The numbers of senders that are found at one hook point."""
        senders = self.graph.senders
        apart = groupby(range(len(senders)), key=lambda number: senders[number].hook_name)
        return [range(numbers[0], numbers[-1] + 1) for numbers in (list(group) for _, group in apart)]

    def run(self) -> Float[Tensor, "item"]:
        """The metric of every run."""
        model, n_receivers = self.model, len(self.graph.receivers)
        mask = self.pairs.mask if self.pairs.padded else None
        stop = {"stop_at_layer": model.cfg.n_layers} if can_resume(model) else {}
        with model.hooks(self._hooks()):
            model(self.pairs.clean, attention_mask=mask, **stop)
        final = self._read(range(n_receivers - 1, n_receivers), end(model.cfg))[:, :, 0].to(model.dtype)
        index = self.metric.positions(self.pairs)
        return measure_streams(model, final if index is None else pick(final, index), self.pairs, self.metric)

    def _hooks(self) -> list[Any]:
        """What keeps the senders' outputs, and gives the receivers their streams."""
        hooks: list[Any] = [(self.graph.senders[group[0]].hook_name, self._keep(group)) for group in self.groups]
        sites = [site for site in self.graph.receivers if site is not None]
        apart = groupby(range(len(sites)), key=lambda number: input_of(sites[number]))
        for name, group in apart:
            numbers = list(group)
            hooks.append((name, self._give(range(numbers[0], numbers[-1] + 1), sites[numbers[0]])))
        return hooks

    def _keep(self, group: range) -> Callable[..., None]:
        sites = [self.graph.senders[number] for number in group]

        @reads_only
        def keep(activation: Tensor, hook: Any) -> None:
            self.written[group] = replace(self.paths, other={sites[0].hook_name: activation}).computed(sites)

        return keep

    def _give(self, receivers: range, site: Site) -> Callable[..., Tensor]:
        point = read_at(self.model.cfg, site)

        @pure
        def give(stream: Tensor, hook: Any) -> Tensor:
            found = self._read(receivers, point).to(stream)
            return found[:, :, 0] if site.head is None else found

        return give

    def _read(self, receivers: range, point: int) -> Float[Tensor, "item pos receiver d_model"]:
        """What some receivers read at a point of the stream."""
        total = self.streams[point]
        for group in self.groups:
            first = self.graph.senders[group.start]
            if written_at(self.graph, first) <= point:
                total = total + self.paths.through_post_norm(first, self._kept(receivers, group))
        return rearrange(total, "receiver item pos model -> item pos receiver model")

    def _kept(self, receivers: range, group: range) -> Float[Tensor, "receiver item pos d_model"]:
        """What a circuit's senders do more than ablated ones, added up for each receiver."""
        masks = self.masks[:, receivers.start : receivers.stop, group.start : group.stop]
        pos = "pos" if self.graph.n_pos is not None else ""
        pattern = f"item receiver sender {pos}, sender item pos model -> receiver item pos model"
        return einsum(masks, self.written[group], pattern)


def input_of(site: Site) -> str:
    """The hook point at which a receiver's own stream can be put."""
    return Site(site.kind if site.head is None else f"{site.kind}_input", site.layer).hook_name
