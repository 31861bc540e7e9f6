"""Direct paths made into runs: to the logits in closed form, to every other receiver through the sweep.

The sweep is given, for each sender and receiver, one row: the edit that puts the receiver's new query, key, value or
MLP input in its place. All rows are one sweep. An edit holds no values: what arrives at a receiver is computed when the
edit is made, for all senders of a layer and all receivers of a kind and layer at once, and rows that need it stand
together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from analyses.direct_paths import Deltas, DirectPaths
from analyses.path_ends import Receiver
from interp import sweep
from interp.contract import ResumableModel
from interp.edits import Edit, Window
from interp.errors import LabError
from interp.metrics import AnyMetric, CustomMetric
from interp.prompts import PromptPairs
from interp.sites import Site
from interp.stream_points import end, read_at, written_at
from interp.sweep.base import measure
from interp.sweep.costs import activation_bytes, free_memory
from interp.text import megabytes

CLOSED_FORM = "closed form"
Activation = tuple[str, int]  # kind and layer


@dataclass(frozen=True, eq=False)
class PathRuns:
    """What to run. pairs: as the patched run has them. columns: the receivers. source: what senders take, in words.
    budget: bytes for what is computed of paths at a time; None is a quarter of what is free. wanted: which paths are
    run; None is all.
    """

    model: Any
    pairs: PromptPairs
    columns: Sequence[Receiver]
    senders: Sequence[Site]
    metric: AnyMetric
    paths: DirectPaths
    source: str = "the other run"
    budget: int | None = None
    wanted: Bool[np.ndarray, "sender column"] | None = None

    @cached_property
    def groups(self) -> list[range]:
        """The numbers of senders whose δ are found together: neighbours of one kind and layer, as many as fit.

        Raises:
            LabError: not even one fits.
        """
        each, room = self._sender_bytes, self.budget
        room = free_memory(self.model.device) // 4 if room is None else room
        if each > room:
            raise LabError(
                f"a budget of {megabytes(room)} is too small for one sender to these receivers, which needs about "
                f"{megabytes(each)}; give a budget of at least {each} bytes, or fewer prompts."
            )
        found, size = [], room // each
        for _, group in groupby(range(len(self.senders)), key=lambda number: self.senders[number].hook_name):
            numbers = list(group)
            parts = range(numbers[0], numbers[-1] + 1, size)
            found += [range(first, min(first + size, numbers[-1] + 1)) for first in parts]
        return found

    def sites(self, group: range) -> list[Site]:
        """The senders of a group."""
        return [self.senders[number] for number in group]

    def change(self, group: range, sender: int, site: Site) -> Float[Tensor, "prompt *axes"]:
        """By how much what a receiver reads at `site` changes when one of a group's senders does."""
        assert site.layer is not None
        return self._changes(group, (site.kind, site.layer))[sender - group.start][site.index]

    @cached_property
    def _changes(self) -> Callable[[range, Activation], Tensor]:
        """The changes of a whole activation by each of a group's senders; those asked for last are kept."""
        return lru_cache(max((len(column.sites) for column in self.columns), default=1))(self._find_changes)

    def _find_changes(self, group: range, read: Activation) -> Float[Tensor, "sender prompt pos *width"]:
        delta = self._deltas(group, read_at(self.model.cfg, Site(*read)))
        change, moving = self._moving.read(*read, delta), self.paths.moving
        within = [0, 0] * (change.ndim - 3) + [moving.start, self.pairs.clean.shape[1] - moving.stop]
        return pad(change, within)

    @cached_property
    def _moving(self) -> DirectPaths:
        """The paths at the positions where anything changes: all is position by position."""
        return self.paths.part(slice(None), self.paths.moving)

    @cached_property
    def _deltas(self) -> Callable[[range, int], Deltas]:
        """δ of a group's senders at a point of the stream; those asked for last are kept."""
        return lru_cache(1)(self._find_deltas)

    def _find_deltas(self, group: range, point: int) -> Deltas:
        start = written_at(self.model.cfg, self.senders[group.start])
        ((_, delta),) = self._moving.arriving(self._written(group), start, [point])
        return delta  # rows are made only where a path leads to the point

    @cached_property
    def _written(self) -> Callable[[range], Deltas]:
        """δ of a group's senders where it is written; the one asked for last is kept."""
        return lru_cache(1)(lambda group: self._moving.written(self.sites(group)))

    @property
    def _sender_bytes(self) -> int:
        """Bytes that one sender needs: its δ on the way, and what receivers make of it."""
        positions, tokens = self.metric.positions(self.pairs), self.metric.tokens(self.pairs)
        n_prompts, n_pos = self.pairs.clean.shape
        cfg, size = self.model.cfg, max(4, self.model.dtype.itemsize)
        on_the_way = 6 * cfg.d_model + (0 if self.paths.freeze_mlps or cfg.attn_only else 3 * cfg.d_mlp)
        reads = [{site.hook_name for site in column.sites} for column in self.columns]
        made = max(sum(activation_bytes(self.model, name, n_pos) for name in names) for names in reads)
        found = n_prompts * (made * size // self.model.dtype.itemsize + n_pos * on_the_way * size) if any(reads) else 0
        if not all(reads):
            read = n_pos if positions is None else positions.shape[1]
            width = self.model.W_U.shape[1] if tokens is None else tokens.shape[1] * (1 + cfg.d_model)
            found = max(found, n_prompts * (read * on_the_way + 4 * read * width) * size)
        return found


def patch(
    runs: PathRuns, out: str | os.PathLike[str] | None, progress: bool | None
) -> tuple[Float[np.ndarray, "sender column prompt"], str]:
    """The change of the metric by each path, 0 where there is none, and how receivers were run."""
    change = np.zeros((len(runs.senders), len(runs.columns), len(runs.pairs)))
    with torch.inference_mode():
        change[:, [number for number, column in enumerate(runs.columns) if not column.sites]] = to_logits(runs)
    cells, rows = rows_of(runs)
    if not rows:
        return change, CLOSED_FORM
    found = sweep.run(runs.model, runs.pairs, rows, runs.metric, runs.budget, out, progress)
    sender, column = np.array(cells).T
    change[sender, column] = found.values - found.base
    return change, found.way


def to_logits(runs: PathRuns) -> Float[np.ndarray, "sender column prompt"]:
    """The change of the metric when senders' δ reach the last stream alone, for each column that is the logits.

    Only what the metric reads is computed.
    """
    where = [column.pos for column in runs.columns if not column.sites]
    if not where:
        return np.zeros((len(runs.senders), 0, len(runs.pairs)))
    n_prompts, n_pos = runs.pairs.clean.shape
    device, index = runs.model.device, runs.metric.positions(runs.pairs)
    index = repeat(torch.arange(n_pos, device=device), "n -> prompt n", prompt=n_prompts) if index is None else index
    paths, last = runs.paths.at(index), end(runs.model.cfg)
    final, found = paths.stream(last), []
    base = _score(runs, rearrange(final, "prompt n model -> 1 prompt n model"))
    for group in runs.groups:
        sites = runs.sites(group)
        ((_, delta),) = paths.arriving(paths.written(sites), written_at(runs.model.cfg, sites[0]), [last])
        columns = []
        for pos in where:
            kept = delta if pos is None else torch.where((index == pos)[..., None], delta, 0.0)
            moved = kept.ne(0).any(-1).any(-1)
            columns.append(torch.where(moved, _score(runs, final + kept) - base, 0.0))
        found.append(torch.stack(columns, 1))
    return torch.cat(found).double().cpu().numpy()


def rows_of(runs: PathRuns) -> tuple[list[tuple[int, int]], list[list[Edit]]]:
    """(sender, receiver) for each that a direct path joins, and the edits for it."""
    cells, rows = [], []
    apart = groupby(range(len(runs.columns)), key=lambda number: _reads(runs.columns[number].sites))
    together = [list(columns) for _, columns in apart]
    for group in runs.groups:
        start = written_at(runs.model.cfg, runs.senders[group.start])
        for columns in together:
            for sender in group:
                for column in columns:
                    if runs.wanted is not None and not runs.wanted[sender, column]:
                        continue
                    if row := _row(runs, group, sender, start, runs.columns[column].sites):
                        cells.append((sender, column))
                        rows.append(row)
    return cells, rows


def _reads(sites: Sequence[Site]) -> list[Activation]:
    return [(site.kind, site.layer) for site in sites if site.layer is not None]


def _row(runs: PathRuns, group: range, sender: int, start: int, sites: Sequence[Site]) -> list[Edit]:
    """The edits that put one receiver's new inputs in place; those that no path reaches stay as they are.

    Several are written, not added to: an upstream one must not move what a downstream one reads.
    """
    reached = [site for site in sites if start <= read_at(runs.model.cfg, site)]
    return [_edit(runs, group, sender, site, alone=len(reached) == 1) for site in reached]


def _edit(runs: PathRuns, group: range, sender: int, site: Site, alone: bool) -> Edit:
    def new(old: Tensor, window: Window) -> Tensor:
        change = window.of(runs.change(group, sender, site), site.free_axes)
        if alone:
            return old + change.to(old)
        return (window.of(runs.paths.run[site.hook_name][site.index], site.free_axes) + change).to(old)

    name = f"direct path from {runs.senders[sender]} ({runs.source}) to"
    return Edit(site, new, name, overwrites=not alone, per_position=True)


def _score(runs: PathRuns, final: Float[Tensor, "sender prompt n d_model"]) -> Float[Tensor, "sender prompt"]:
    """The metric of final streams at the positions that it reads."""
    prompts = repeat(torch.arange(len(runs.pairs), device=final.device), "p -> (sender p)", sender=len(final))
    pairs, metric = runs.pairs.take(prompts), runs.metric.take(prompts)
    items = rearrange(final, "sender prompt n model -> (sender prompt) n model").to(runs.model.dtype)
    scores = measure_streams(runs.model, items, pairs, metric)
    return rearrange(scores, "(sender prompt) -> sender prompt", prompt=len(runs.pairs))


def measure_streams(
    model: Any, picked: Float[Tensor, "item n d_model"], pairs: PromptPairs, metric: AnyMetric
) -> Float[Tensor, "item"]:
    """As `interp.sweep.base.measure`, also of a model that has no `logits_at`."""
    if isinstance(model, ResumableModel):
        return measure(model, picked, pairs, metric)
    logits = model.unembed(model.ln_final(picked))
    if isinstance(metric, CustomMetric):
        return metric(logits, pairs)
    if (tokens := metric.tokens(pairs)) is not None:
        logits = logits.gather(-1, repeat(tokens.clamp(min=0), "item n -> item pos n", pos=picked.shape[1]))
    logits = logits.float() if logits.itemsize < 4 else logits
    return metric.score(rearrange(logits, "item pos token -> item (pos token)"), pairs)
