"""Runs of circuits: everything outside a circuit is ablated, however many circuits there are.

Let u' be what the sender u writes when it is ablated. In the run of the circuit C every receiver (a head's query, key
or value input, an MLP, the logits) reads the ablated stream, with what the circuit's own senders do on top:

    stream(v) = sum over all u of u'  +  sum over edges u -> v of C of (u - u'),     u as it is in this very run

(Conmy et al. 2023, arXiv:2304.14997, §3; Miller et al. 2024, arXiv:2407.08734). The whole graph gives the clean run, no
edge at all the ablated run. Where a norm comes after attention or MLPs, the second sum goes through it, layer by layer.

    resample     u' is what u writes in the corrupted run
    mean         its mean over the corrupted prompts; position by position where all prompts fill the same positions
    pooled mean  its mean over the corrupted prompts and their positions
    zero         nothing

Cost: two or three forwards, then for each circuit and prompt one forward in which every head reads a stream of its own:
as much as two to four plain ones. Circuits and prompts share batches, as large as the budget allows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.circuit_batch import Batch, input_of
from analyses.direct_paths import DirectPaths, check_closed_form, stream_name
from analyses.edge_scores import checked_graph
from analyses.effects import measure_of
from analyses.fills import fill_of
from analyses.path_runs import measure_streams
from interp import metrics, sweep
from interp.contract import HookedModel
from interp.errors import LabError, choose
from interp.graph import Graph
from interp.metrics import AnyMetric
from interp.progress import bar
from interp.prompts import PromptPairs
from interp.results import to_numpy
from interp.stream_points import end, read_at, written_at
from interp.sweep.base import pick
from interp.sweep.costs import POSITIONS, Costs, free_memory
from interp.text import megabytes

VALUES = ("resample", "mean", "pooled mean", "zero")
Kept = Bool[np.ndarray, "circuit edge *pos"]


@dataclass(frozen=True, eq=False)
class CircuitRuns:
    """A model and prompts, ready to run circuits of a graph.

    ablated: what ablated senders do, by hook name, for each prompt. streams: the ablated stream at each point that is
    read. clean, ablation: the metric of the clean run, and of the run with everything ablated. budget: bytes for a
    batch of runs.
    """

    model: Any
    graph: Graph
    pairs: PromptPairs
    metric: AnyMetric
    value: str
    ablated: Mapping[str, Float[Tensor, "prompt pos ..."]]
    streams: Mapping[int, Float[Tensor, "prompt pos d_model"]]
    clean: Float[np.ndarray, "prompt"]
    ablation: Float[np.ndarray, "prompt"]
    budget: int

    @classmethod
    def of(
        cls,
        model: HookedModel | Any,
        pairs: PromptPairs,
        metric: str | AnyMetric | Callable[..., Any] = "logit_diff",
        value: str = "resample",
        graph: Graph | None = None,
        budget: int | None = None,
    ) -> CircuitRuns:
        """metric: see `interp.metrics`; "kl" compares with the clean run. value: one of `VALUES`. budget: by default a
        quarter of what is free.

        Raises:
            LabError: an unknown metric or value; prompts that the model cannot take, a graph of another model, or with
                positions for prompts of unequal length; a model whose parts do not add up in closed form, that lacks a
                hook point, or with hooks attached; a budget that is too small for one run.
        """
        choose("ablation value", value, VALUES)
        if metric != "kl":
            metrics.get(metric)
        pairs.check(model)
        graph = checked_graph(model, pairs, graph)
        _check_inputs(model, graph)
        inputs = [site for site in graph.receivers if site is not None]
        check_closed_form(model, pairs.clean[:1, pairs.mask[0]], graph.senders, inputs, freeze_mlps=True)
        pairs = pairs.to(model.device)
        measure = measure_of(model, pairs, metric)
        written = sorted({site.hook_name for site in graph.senders})
        points = sorted({0, end(model.cfg), *(read_at(graph, site) for site in inputs)})
        names = sorted({*written, *(stream_name(model.cfg, point) for point in points)})
        own, clean = sweep.observe(model, pairs, names, measure)
        with torch.inference_mode():
            ablated = _ablated(model, graph, pairs, value, {name: own[name] for name in written})
            streams = _ablated_streams(DirectPaths(model, own, ablated, pairs.mask, True), graph, points)
            last = streams[end(model.cfg)].to(model.dtype)
            index = measure.positions(pairs)
            nothing = measure_streams(model, last if index is None else pick(last, index), pairs, measure)
        baselines = to_numpy(clean.double()), to_numpy(nothing.double())
        budget = free_memory(model.device) // 4 if budget is None else budget
        runs = cls(model, graph, pairs, measure, value, ablated, streams, *baselines, budget)
        runs._check_budget()
        return runs

    def scores(self, kept: Kept, progress: bool | None = None) -> Float[np.ndarray, "circuit prompt"]:
        """The metric of every circuit's run on every prompt; kept: the edges of each circuit.

        Raises:
            LabError: circuits of another graph.
        """
        if kept.shape[1:] != self.graph.shape:
            raise LabError(f"circuits {list(kept.shape[1:])}; expected the graph's {list(self.graph.shape)} each.")
        n_prompts = len(self.pairs)
        found = np.zeros((len(kept), n_prompts))
        circuit, prompt = np.indices(found.shape).reshape(2, -1)
        with torch.inference_mode(), bar(len(circuit), "circuits", progress) as advance:
            for start in range(0, len(circuit), self.size):
                some = slice(start, start + self.size)
                items = torch.from_numpy(prompt[some]).to(self.model.device)
                first = circuit[start]
                masks = self._masks(kept[first : circuit[some][-1] + 1])[torch.from_numpy(circuit[some] - first)]
                scores = self._batch(items, masks.to(self.model.device)).run()
                found[circuit[some], prompt[some]] = to_numpy(scores.double())
                advance(len(items))
        return found

    def soft_scores(self, shares: Float[Tensor, "edge *pos"], prompts: Int[Tensor, "item"]) -> Float[Tensor, "item"]:
        """The metric on some prompts when every edge carries a share of what its sender does, from 0 (ablated) to 1;
        with gradients."""
        senders, receivers = torch.from_numpy(self.graph.ends.copy()).to(shares.device).T
        sizes = (len(self.graph.receivers), len(self.graph.senders), *self.graph.shape[1:])
        table = shares.new_zeros(sizes).index_put((receivers, senders), shares)
        return self._batch(prompts, table.expand(len(prompts), *sizes)).run()

    def _batch(self, items: Int[Tensor, "item"], masks: Float[Tensor, "item receiver sender *pos"]) -> Batch:
        pairs, metric = self.pairs.take(items), self.metric.take(items)
        ablated = {name: each[items] for name, each in self.ablated.items()}
        streams = {point: each[items] for point, each in self.streams.items()}
        paths = DirectPaths(self.model, ablated, {}, pairs.mask, True)
        wide = torch.promote_types(self.model.dtype, torch.float32)
        return Batch(self.model, self.graph, pairs, metric, paths, streams, masks.to(wide))

    def _masks(self, kept: Kept) -> Float[Tensor, "circuit receiver sender *pos"]:
        """1 where an edge is kept, as a table of receivers and senders."""
        sizes = (len(kept), len(self.graph.receivers), len(self.graph.senders), *self.graph.shape[1:])
        masks = np.zeros(sizes, dtype=np.float32)
        senders, receivers = self.graph.ends.T
        masks[:, receivers, senders] = kept
        return torch.from_numpy(masks)

    @property
    def _item_bytes(self) -> int:
        """Memory that one run of one prompt needs."""
        cfg, n_pos = self.model.cfg, self.pairs.clean.shape[1]
        size = max(4, self.model.dtype.itemsize)
        streams = 2 * len(self.graph.senders) + 4 * (3 * cfg.n_heads + 1)
        masks = 8 * self.graph.reaches.size * (self.graph.n_pos or 1)
        logits = n_pos * self.model.W_U.shape[1] if self.metric.tokens(self.pairs) is None else 0
        return n_pos * (streams * cfg.d_model * size + Costs.of(self.model, n_pos).token) + masks + 4 * logits * size

    @property
    def size(self) -> int:
        """How many runs share a batch."""
        widest = POSITIONS.get(self.model.device.type, POSITIONS["cuda"]) // self.pairs.clean.shape[1]
        return max(1, min(widest, self.budget // self._item_bytes))

    def _check_budget(self) -> None:
        if self._item_bytes > self.budget:
            raise LabError(
                f"a budget of {megabytes(self.budget)} is too small for one run of a circuit, which needs about "
                f"{megabytes(self._item_bytes)}; give a budget of at least {self._item_bytes} bytes, shorter prompts, "
                "or a graph without neurons."
            )


def _ablated(
    model: Any, graph: Graph, pairs: PromptPairs, value: str, own: Mapping[str, Tensor]
) -> dict[str, Float[Tensor, "prompt pos ..."]]:
    """What ablated senders do, by hook name, for each prompt."""
    if value == "zero":
        return {name: torch.zeros_like(each) for name, each in own.items()}
    kinds = sorted({site.kind for site in graph.senders})
    tensors = fill_of(model, pairs, kinds, "resample" if value == "resample" else "mean").tensors
    if value == "pooled mean":  # either every position has the mean over all, or all prompts fill the same ones
        tensors = {name: tensors[name][:, pairs.mask[0]].mean(1, keepdim=True) for name in own}
    return {name: tensors[name].expand_as(each) for name, each in own.items()}


def _ablated_streams(
    paths: DirectPaths, graph: Graph, points: Sequence[int]
) -> dict[int, Float[Tensor, "prompt pos d_model"]]:
    """The stream at each point when all senders are ablated. paths: from the clean run to what ablated senders do."""
    streams = {point: paths.stream(point) for point in points}
    for _, group in groupby(graph.senders, key=lambda site: site.hook_name):
        senders = list(group)
        change = paths.computed(senders).sum(0, keepdim=True)
        (change,) = paths.through_post_norm(senders[0], change)
        streams = {
            point: stream + change if written_at(graph, senders[0]) <= point else stream
            for point, stream in streams.items()
        }
    return streams


def _check_inputs(model: Any, graph: Graph) -> None:
    """Raises:
    LabError: the model does not give every receiver a stream of its own.
    """
    sites = [site for site in graph.receivers if site is not None]
    names = {input_of(site) for site in sites}
    if missing := sorted(names - set(model.hook_dict)):
        raise LabError(
            f"running a circuit needs the hook points {', '.join(missing[:3])}, which {model.cfg.model_name!r} lacks; "
            "try backend='native'."
        )
