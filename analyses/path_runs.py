"""Direct paths made into runs: to the logits in closed form, to every other receiver through the sweep.

The sweep is given, for each sender and receiver, one row: the edit that puts the receiver's new query, key, value or
MLP input in its place. Senders go in chunks, so that the edits held at a time fit the budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from analyses.direct_paths import DirectPaths, end, read_at, written_at
from analyses.path_ends import Receiver
from interp import edits, sweep
from interp.contract import ResumableModel
from interp.edits import Edit
from interp.errors import LabError
from interp.metrics import AnyMetric, CustomMetric
from interp.prompts import PromptPairs
from interp.sites import Site
from interp.sweep.base import measure
from interp.sweep.costs import activation_bytes, free_memory
from interp.text import megabytes

CLOSED_FORM = "closed form"
Activation = tuple[str, int]  # kind and layer
Change = Float[np.ndarray, "sender receiver prompt"]


@dataclass(frozen=True)
class PathRuns:
    """What to run. pairs: as the patched run has them. columns: the receivers."""

    model: Any
    pairs: PromptPairs
    columns: list[Receiver]
    senders: list[Site]
    metric: AnyMetric
    paths: DirectPaths

    @property
    def reads(self) -> dict[Activation, int]:
        """The activations that receivers read into, and the point of the stream where each reads."""
        sites = [site for column in self.columns for site in column.sites]
        return {(site.kind, site.layer): read_at(self.model.cfg, site) for site in sites if site.layer is not None}

    @property
    def rows_bytes(self) -> int:
        """Bytes of the edits of one sender."""
        n_prompts, n_pos = self.pairs.clean.shape
        size = _wide_size(self.model)
        whole = sum(activation_bytes(self.model, Site(*read).hook_name, n_pos) for read in self.reads)
        edited = sum(_edit_width(self.model, site) for column in self.columns for site in column.sites)
        return n_prompts * (whole * size // self.model.dtype.itemsize + n_pos * edited * size)

    @property
    def sender_bytes(self) -> int:
        """Bytes that one sender needs: its δ on the way, what receivers make of it, and the edits."""
        positions, tokens = self.metric.positions(self.pairs), self.metric.tokens(self.pairs)
        n_prompts, n_pos = self.pairs.clean.shape
        cfg, size = self.model.cfg, _wide_size(self.model)
        on_the_way = 6 * cfg.d_model + (0 if self.paths.freeze_mlps or cfg.attn_only else 3 * cfg.d_mlp)
        found = self.rows_bytes + (n_prompts * n_pos * on_the_way * size if self.reads else 0)
        if any(not column.sites for column in self.columns):
            read = n_pos if positions is None else positions.shape[1]
            width = self.model.W_U.shape[1] if tokens is None else tokens.shape[1] * (1 + cfg.d_model)
            found += n_prompts * (read * on_the_way + 4 * read * width) * size
        return found


def chunks(runs: PathRuns, budget: int | None) -> Iterator[range]:
    """The senders' numbers, as many at a time as fit the budget (None: a quarter of what is free).

    Raises:
        LabError: not even one fits.
    """
    each = runs.sender_bytes
    room = free_memory(runs.model.device) // 4 if budget is None else budget
    if each > room:
        raise LabError(
            f"a budget of {megabytes(room)} is too small for one sender to these receivers, which needs about "
            f"{megabytes(each)}; give a budget of at least {each} bytes, or fewer receivers or prompts."
        )
    size = room // each
    for first in range(0, len(runs.senders), size):
        yield range(first, min(first + size, len(runs.senders)))


def patch(runs: PathRuns, chunk: range, change: Change, budget: int | None, progress: bool | None) -> str:
    """Fill in the change of the metric for a chunk of senders, and say how it was found."""
    way = CLOSED_FORM
    with torch.inference_mode():
        for number, column in enumerate(runs.columns):
            if not column.sites:
                change[chunk.start : chunk.stop, number] = _to_logits(runs, chunk)
        cells, rows = _rows(runs, chunk)
    if rows:
        found = sweep.run(runs.model, runs.pairs, rows, runs.metric, budget, progress=progress)
        sender, receiver = np.array(cells).T
        change[sender, receiver] = found.values - found.base
        way = found.way
    return way


def _batches(runs: PathRuns, chunk: range) -> Iterator[tuple[list[int], list[Site]]]:
    """The numbers and sites of senders whose δ are found together: neighbours of one kind and layer."""
    for _, group in groupby(chunk, key=lambda number: runs.senders[number].hook_name):
        numbers = list(group)
        yield numbers, [runs.senders[number] for number in numbers]


def _to_logits(runs: PathRuns, chunk: range) -> Float[np.ndarray, "chunk prompt"]:
    """The change of the metric when senders' δ reach the last stream alone; only what the metric reads is computed."""
    index = runs.metric.positions(runs.pairs)
    paths = runs.paths if index is None else runs.paths.at(index)
    last = end(runs.model.cfg)
    final, found = paths.stream(last), []
    base = _score(runs, rearrange(final, "prompt n model -> 1 prompt n model"))
    for _, sites in _batches(runs, chunk):
        start = written_at(runs.model.cfg, sites[0])
        for _, delta in paths.arriving(paths.written(sites), start, [last]):
            moved = delta.ne(0).any(-1).any(-1)
            found.append(torch.where(moved, _score(runs, final + delta) - base, 0.0))
    return torch.cat(found).double().cpu().numpy()


def _score(runs: PathRuns, final: Float[Tensor, "sender prompt n d_model"]) -> Float[Tensor, "sender prompt"]:
    """The metric of final streams at the positions that it reads."""
    prompts = repeat(torch.arange(len(runs.pairs), device=final.device), "p -> (sender p)", sender=len(final))
    pairs, metric = runs.pairs.take(prompts), runs.metric.take(prompts)
    items = rearrange(final, "sender prompt n model -> (sender prompt) n model").to(runs.model.dtype)
    scores = _measure(runs.model, items, pairs, metric)
    return rearrange(scores, "(sender prompt) -> sender prompt", prompt=len(runs.pairs))


def _measure(
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


def _rows(runs: PathRuns, chunk: range) -> tuple[list[tuple[int, int]], list[list[Edit]]]:
    """The edits for each (sender, receiver) that a direct path joins."""
    cells, rows, reads = [], [], runs.reads
    for numbers, sites in _batches(runs, chunk) if reads else ():
        changes: dict[Activation, Tensor] = {}
        start = written_at(runs.model.cfg, sites[0])
        for point, delta in runs.paths.arriving(runs.paths.written(sites), start, set(reads.values())):
            changes |= {read: runs.paths.read(*read, delta) for read, where in reads.items() if where == point}
        for place, sender in enumerate(numbers):
            own = {read: whole[place] for read, whole in changes.items()}
            for receiver, column in enumerate(runs.columns):
                if row := _row(column.sites, own, runs.paths.run):
                    cells.append((sender, receiver))
                    rows.append(row)
    return cells, rows


def _row(sites: Sequence[Site], changes: Mapping[Activation, Tensor], run: Mapping[str, Tensor]) -> list[Edit]:
    """The edits that put one receiver's new inputs in place; those that no path reaches stay as they are.

    Several are written, not added to: an upstream one must not move what a downstream one reads.
    """
    values = {
        site: changes[site.kind, site.layer][site.index]
        for site in sites
        if site.layer is not None and (site.kind, site.layer) in changes
    }
    if len(values) == 1:
        return [edits.add(site, change) for site, change in values.items()]
    return [edits.write(site, run[site.hook_name][site.index] + change) for site, change in values.items()]


def _edit_width(model: Any, site: Site) -> int:
    """Numbers that an edit at a site holds for a position of a prompt."""
    cfg, shared = model.cfg, site.kind in ("k", "v")
    heads = (getattr(cfg, "n_key_value_heads", None) if shared else None) or cfg.n_heads
    return cfg.d_model if site.kind == "mlp_in" else cfg.d_head * (heads if site.head is None else 1)


def _wide_size(model: Any) -> int:
    return max(4, model.dtype.itemsize)
