"""The survey: where each row of a sweep first changes anything, found by making its edits on the base run.

Every edit is tried on the base run's own activations, neighbours of one shape together. Where all of a row's edits
write what was there already, nothing can change: the row's effect on that prompt is exactly zero and it is not run.
Otherwise it needs running from the lowest layer with a change, and, as attention looks back only, from the first
position with a change: up to there every activation is the base run's, whatever the edits downstream do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp.edits import Edit
from interp.metrics import AnyMetric, CustomMetric
from interp.sites import POSITION_AXES, Site
from interp.stream_points import after_layers
from interp.sweep.base import BaseRun

Row = Sequence[Edit]
EMBEDDING = -1
EMBEDDINGS = ("embed", "pos_embed", "token_type_embed", "embed_ln.scale", "embed_ln.normalized", "full_embed")
AFTER_ATTENTION = {
    *("attn_out", "resid_mid", "mlp_in", "ln2.scale", "ln2.normalized"),
    *("mlp_pre", "mlp_pre_linear", "mlp_post", "ln2_post.scale", "ln2_post.normalized", "mlp_out"),
}
NORMS_AFTER = {"ln1.scale", "ln1.normalized", "resid_post"}
"""What comes after attention, beside those, where norms stand on the stream."""
IN_ATTENTION = {
    *("q", "k", "v", "q_norm.scale", "q_norm.normalized", "k_norm.scale", "k_norm.normalized", "rot_q", "rot_k"),
    *("attn_scores", "pattern", "z", "result", "ln1_post.scale", "ln1_post.normalized"),
}
KNOWN = ((), ("q", "k", "v"), ("attn_out",))
"""What a row may know of the layer at which it joins, because its edits come later in the layer."""
TOGETHER = 2**18
"""Values that are tried at a time: enough to hide what starting an operation takes, few enough to stay in the cache."""
FORKS = {"attn_in", "q_input", "k_input", "v_input"}
FINISH, LATE, WHOLE = range(3)
"""How a row ends: only the read positions leave the last block; all leave it, and the read ones are unembedded;
all are unembedded."""


def entries(cfg: Any) -> tuple[str, str]:
    """The kinds that are the stream between layers, in the order in which a run passes them: edited without a layer."""
    return after_layers(cfg), "resid_pre"


def step_of(cfg: Any, site: Site) -> int:
    """The layer that an edit belongs to: one before the first for embeddings, one after the last for what follows it.

    The stream after a layer is the stream before the next.
    """
    if site.layer is None:
        return EMBEDDING if site.kind in EMBEDDINGS else cfg.n_layers
    return site.layer + (site.kind == after_layers(cfg))


@dataclass(frozen=True)
class Survey:
    """What there is to run: one entry per (row, prompt) whose run can differ from the base run and be seen to.

    row, prompt: their numbers. step: the layer to join at. start: the first position to run. ending: see FINISH.
    company: see `company_of`. known: an index of KNOWN.
    """

    row: Int[np.ndarray, "item"]
    prompt: Int[np.ndarray, "item"]
    step: Int[np.ndarray, "item"]
    start: Int[np.ndarray, "item"]
    ending: Int[np.ndarray, "item"]
    company: Int[np.ndarray, "item"]
    known: Int[np.ndarray, "item"]

    @classmethod
    def of(cls, base: BaseRun, rows: Sequence[Row], metric: AnyMetric) -> Survey:
        """Try every row's edits on the base run."""
        n_layers, n_pos = base.model.cfg.n_layers, base.pairs.clean.shape[1]
        firsts = _first_changes(base, [edit for row in rows for edit in row])
        steps = np.array([step_of(base.model.cfg, edit.site) for row in rows for edit in row], dtype=np.int64)
        bounds = np.cumsum([0, *(len(row) for row in rows)])

        start = np.full((len(rows), len(base.pairs)), n_pos)
        step = np.zeros_like(start)
        for number, row in enumerate(rows):
            if not row:
                continue
            own, layers = firsts[bounds[number] : bounds[number + 1]], steps[bounds[number] : bounds[number + 1], None]
            start[number] = own.min(0)
            step[number] = np.where(own < n_pos, layers, n_layers).min(0)
            if not _can_resume(base, row):
                start[number] = np.where(start[number] < n_pos, 0, n_pos)
        row_number, prompt = np.nonzero(start <= last_read(base, metric))
        ending = np.array([ending_of(base.model.cfg, row, metric) for row in rows], dtype=np.int64)
        company = np.array([company_of(number, row) for number, row in enumerate(rows)], dtype=np.int64)
        at = (row_number, prompt)
        known = known_table(base.model.cfg, rows)[row_number, step[at]]
        return cls(row_number, prompt, step[at], start[at], ending[row_number], company[row_number], known)


def last_read(base: BaseRun, metric: AnyMetric) -> Int[np.ndarray, "prompt"]:
    """The last position of each prompt that the metric reads; what changes after it cannot be seen."""
    positions, n_pos = metric.positions(base.pairs), base.pairs.clean.shape[1]
    if positions is None:
        return np.full(len(base.pairs), n_pos - 1)
    return positions.amax(1).cpu().numpy()


def _first_changes(base: BaseRun, edits: Sequence[Edit]) -> Int[np.ndarray, "edit prompt"]:
    """For each edit and prompt the first position at which it changes the base run; the length where there is none."""
    distinct = list({id(edit): edit for edit in edits}.values())  # one that several rows share is tried once
    if not distinct:
        return np.zeros((0, len(base.pairs)), dtype=np.int64)
    tried = [_try_together(base, part) for _, alike in groupby(distinct, _shape) for part in _parts(base, list(alike))]
    number = {id(edit): place for place, edit in enumerate(distinct)}
    return torch.cat(tried).cpu().numpy()[[number[id(edit)] for edit in edits]]  # one transfer for the whole survey


def _shape(edit: Edit) -> tuple[str, tuple[str, ...]]:
    """What edits have in common whose values can be stacked."""
    return edit.site.hook_name, tuple(edit.site.picks)


def _parts(base: BaseRun, alike: list[Edit]) -> Iterator[list[Edit]]:
    """Neighbours, as many at a time as TOGETHER allows."""
    for edit in alike:
        edit.check_place(base.tensors[edit.site.hook_name])
    size = max(1, TOGETHER // base.tensors[alike[0].site.hook_name][alike[0].site.index].numel())
    for first in range(0, len(alike), size):
        yield alike[first : first + size]


def _try_together(base: BaseRun, edits: list[Edit]) -> Int[Tensor, "edit prompt"]:
    """The first changes of edits whose values have one shape."""
    n_pos, activation, site = base.pairs.clean.shape[1], base.tensors[edits[0].site.hook_name], edits[0].site
    old = [activation[edit.site.index] for edit in edits]
    new = [edit.applied(values, base.window()) for edit, values in zip(edits, old, strict=True)]
    differ = torch.stack(new) != torch.stack(old)
    if site.pos is not None:
        pos = torch.tensor([[(edit.site.pos or 0) % n_pos] for edit in edits], device=differ.device)
        return torch.where(differ.reshape(*differ.shape[:2], -1).any(2), pos, n_pos)
    position = next(axis for axis, name in enumerate(site.free_axes) if name in POSITION_AXES)
    changed = differ.movedim(position + 1, 2).reshape(*differ.shape[:2], n_pos, -1).any(3)
    return torch.where(changed.any(2), changed.int().argmax(2), n_pos)


def _can_resume(base: BaseRun, row: Row) -> bool:
    """Whether what comes before the first change is certain to stay the base run's."""
    return _causal(base) and all(edit.per_position for edit in row)


def _causal(base: BaseRun) -> bool:
    return base.model.cfg.attention_dir == "causal"


def ending_of(cfg: Any, row: Row, metric: AnyMetric) -> int:
    """FINISH, LATE or WHOLE."""
    n_layers, between = cfg.n_layers, entries(cfg)
    if isinstance(metric, CustomMetric):
        return WHOLE
    steps = {(step_of(cfg, edit.site), edit.site.kind in between) for edit in row}
    if (n_layers, False) in steps:
        return WHOLE
    return LATE if (n_layers - 1, False) in steps or (n_layers, True) in steps else FINISH


def known_table(cfg: Any, rows: Sequence[Row]) -> Int[np.ndarray, "row step"]:
    """For each row and each layer at which it might join, what it knows there: an index of KNOWN."""
    deepest = max([cfg.n_layers, *(step_of(cfg, edit.site) for row in rows for edit in row)])
    table = np.zeros((len(rows), deepest + 2), dtype=np.int64)  # the last is for EMBEDDING, which is -1
    after = AFTER_ATTENTION if after_layers(cfg) == "resid_post" else AFTER_ATTENTION | NORMS_AFTER
    for number, row in enumerate(rows):
        kinds: dict[int, set[str]] = defaultdict(set)
        for edit in row:
            kinds[step_of(cfg, edit.site)].add(edit.site.kind)
        for step, here in kinds.items():
            table[number, step] = 2 if here <= after else 1 if here <= after | IN_ATTENTION else 0
    return table


def company_of(number: int, row: Row) -> int:
    """Rows of one company may share a batch.

    A hook on heads' own inputs (`hook_q_input`, ...) takes them past the hook points of ln1, in the whole batch. So
    rows that edit those inputs keep to themselves, and one that edits ln1 as well runs alone.
    """
    kinds = {edit.site.kind for edit in row}
    if not kinds & FORKS:
        return 0
    return 2 + number if any(kind.startswith("ln1.") for kind in kinds) else 1
