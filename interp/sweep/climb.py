"""The climb: many edited runs go up the layers as one batch, each joining at the layer of its first change.

for each layer:
    rows whose first edit is here join, with the base run's stream
    edits of the stream are made on it
    the layer runs once, for all rows, from `start` on, after the base run's keys and values;
        hooks make each row's edits in its own part of the batch
the metric is read off the last stream
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.edits import Edit, Window
from interp.markers import pure
from interp.metrics import AnyMetric
from interp.sites import hook_name
from interp.sweep.base import BaseRun, measure, pick
from interp.sweep.schedule import Climb
from interp.sweep.survey import EMBEDDING, FINISH, KNOWN, WHOLE, Row, entries, step_of


@dataclass(frozen=True)
class Part:
    """A stretch of a batch that runs one row from layer `step` on: prompts `prompts`, in the batch's rows `rows`."""

    row: int
    step: int
    rows: slice
    prompts: slice

    def shifted(self, first: int) -> Part:
        """The same part of a batch that begins at row `first`."""
        return replace(self, rows=slice(self.rows.start - first, self.rows.stop - first))


PartEdits = list[tuple[Part, Edit]]


def run_climb(base: BaseRun, rows: Sequence[Row], climb: Climb, metric: AnyMetric) -> Float[Tensor, "item"]:
    """The metric of every item of a climb, on the model's device."""
    model, n_layers, start = base.model, base.model.cfg.n_layers, climb.start
    parts = list(parts_of(climb.row, climb.prompt, climb.step))
    edits = edits_by_step(model, rows, parts)
    prompts = torch.from_numpy(climb.prompt).to(model.device)
    joined = np.searchsorted(climb.step, np.arange(EMBEDDING, n_layers + 1), side="right")
    wanted = None if climb.ending == WHOLE else metric.positions(base.pairs)
    finish = None if wanted is None else wanted[prompts] - start

    stream = base.final[:0, start:]
    for step in range(max(EMBEDDING, int(climb.step[0])), n_layers + 1):
        before, now = len(stream), int(joined[step - EMBEDDING])
        if step == EMBEDDING:
            stream = _embed(base, prompts[:now], start, edits[step])
            continue
        if now > before:
            newcomers = base.stream(step)[prompts[before:now], start:]
            stream = torch.cat([stream, newcomers]) if before else newcomers
        for kind in entries(model.cfg):
            for part, edit in edits[step]:
                if edit.site.kind == kind:
                    edit.write(stream, part.rows, base.window(part.prompts, start))
        if step == n_layers:
            break
        leaving = finish if climb.ending == FINISH and step == n_layers - 1 else None
        # Newcomers that know something of this layer go through it on their own.
        bounds = sorted({0, before, now}) if climb.known else [0, now]
        through = []
        for first, stop in pairwise(bounds):
            known = KNOWN[climb.known] if first == before else ()
            stretch = stream[first:stop], prompts[first:stop]
            through.append(_layer(base, step, *stretch, start, edits[step], first, leaving, known))
        stream = through[0] if len(through) == 1 else torch.cat(through)
    return _end(base, stream, prompts, climb, metric, finish, edits[n_layers])


def _layer(
    base: BaseRun,
    layer: int,
    stream: Float[Tensor, "item pos d_model"],
    prompts: Int[Tensor, "item"],
    start: int,
    edits: PartEdits,
    first: int,
    finish: Int[Tensor, "item n"] | None,
    known: Sequence[str],
) -> Float[Tensor, "item pos_or_n d_model"]:
    """One layer of a stretch of the batch that begins at row `first`, with its edits."""
    given = {kind: base.tensors[hook_name(kind, layer)][prompts, start:] for kind in known}
    own = [(part, edit) for part, edit in edits if first <= part.rows.start < first + len(stream)]
    with base.model.hooks(_inside(base, own, start, first)):
        return base.model(
            stream,
            start_at_layer=layer,
            stop_at_layer=layer + 1,
            attention_mask=base.mask(start, prompts),
            past_kv_cache=base.before(start, prompts, layer),
            finish=finish,
            known=given or None,
        )


def _embed(
    base: BaseRun, prompts: Int[Tensor, "item"], start: int, edits: PartEdits
) -> Float[Tensor, "item pos d_model"]:
    """The stream at the input of the first layer, with edited embeddings."""
    with base.model.hooks(_inside(base, edits, start)):
        return base.model(
            base.pairs.clean[prompts, start:],
            stop_at_layer=0,
            attention_mask=base.mask(start, prompts),
            past_kv_cache=base.before(start, prompts),
        )


def _end(
    base: BaseRun,
    stream: Float[Tensor, "item pos d_model"],
    prompts: Int[Tensor, "item"],
    climb: Climb,
    metric: AnyMetric,
    finish: Int[Tensor, "item n"] | None,
    edits: PartEdits,
) -> Float[Tensor, "item"]:
    """The metric of the last streams."""
    pairs, metric = base.pairs.take(prompts), metric.take(prompts)
    if finish is None:
        whole = torch.cat([base.final[prompts, : climb.start], stream], 1)
        with base.model.hooks(_inside(base, edits, 0)):
            return metric(base.model.logits_at(whole), pairs)
    picked = stream if climb.ending == FINISH else pick(stream, finish)
    return measure(base.model, picked, pairs, metric)


def parts_of(
    row: Int[np.ndarray, "item"], prompt: Int[np.ndarray, "item"], step: Int[np.ndarray, "item"]
) -> Iterator[Part]:
    """The items as stretches of one row and neighbouring prompts."""
    same = (np.diff(row) == 0) & (np.diff(prompt) == 1) & (np.diff(step) == 0)
    bounds = np.concatenate([[0], np.nonzero(~same)[0] + 1, [len(row)]]).tolist()
    for first, stop in pairwise(bounds):
        start = int(prompt[first])
        yield Part(int(row[first]), int(step[first]), slice(first, stop), slice(start, start + stop - first))


def _inside(base: BaseRun, edits: PartEdits, start: int, first: int = 0) -> list[tuple[str, Callable[..., Any]]]:
    """The hooks of the edits inside a layer. Activations begin at position `start` and at row `first` of the batch."""
    between = entries(base.model.cfg)
    inside = [(part.shifted(first), edit) for part, edit in edits if edit.site.kind not in between]
    return hooks_of(inside, lambda part: base.window(part.prompts, start))


def edits_by_step(model: Any, rows: Sequence[Row], parts: Sequence[Part]) -> dict[int, PartEdits]:
    """What each part edits in each layer from the one at which it joins; before that it changes nothing."""
    found: dict[int, PartEdits] = defaultdict(list)
    for part in parts:
        for edit in rows[part.row]:
            step = step_of(model.cfg, edit.site)
            if step >= part.step:
                found[step].append((part, edit))
    return found


def hooks_of(edits: PartEdits, windows: Callable[[Part], Window]) -> list[tuple[str, Callable[..., Any]]]:
    """One hook per hook point, which makes each part's edits there. windows: what the batch holds of a part."""
    by_name: dict[str, PartEdits] = defaultdict(list)
    for part, edit in edits:
        by_name[edit.site.hook_name].append((part, edit))

    def hook_for(work: PartEdits) -> Callable[..., Any]:
        @pure
        def hook(activation: Tensor, hook: Any = None) -> Tensor:
            edited = activation.clone()
            for part, edit in work:
                edit.write(edited, part.rows, windows(part))
            return edited

        return hook

    return [(name, hook_for(work)) for name, work in by_name.items()]
