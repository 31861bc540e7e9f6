"""A sweep's inputs, checked before anything runs, and how they are cut to fit the memory budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from interp.contract import HookedModel, ResumableModel
from interp.edits import check_row
from interp.errors import LabError, UnknownHookError
from interp.metrics import AnyMetric, get
from interp.prompts import PromptPairs
from interp.sites import hook_name
from interp.sweep.base import BaseRun, can_resume
from interp.sweep.costs import Costs, activation_bytes, free_memory
from interp.sweep.schedule import Climb, climbs, item_bytes
from interp.sweep.survey import FINISH, KNOWN, WHOLE, Row, Survey, ending_of, known_table
from interp.text import megabytes

RESUMED, BATCHED = "resumed", "batched hooks"


@dataclass(frozen=True)
class Block:
    """Some of the prompts: their base run, what there is to run of them, and in which climbs."""

    prompts: slice
    base: BaseRun
    survey: Survey
    climbs: list[Climb]
    metric: AnyMetric


@dataclass(frozen=True)
class Job:
    """A checked sweep. way: RESUMED, or BATCHED for a model that cannot resume; why: in words. budget: bytes."""

    model: HookedModel | Any
    pairs: PromptPairs
    rows: Sequence[Row]
    metric: AnyMetric
    budget: int
    way: str
    why: str

    @classmethod
    def of(
        cls,
        model: HookedModel | Any,
        pairs: PromptPairs,
        rows: Sequence[Row],
        metric: str | AnyMetric | Callable[..., Any],
        budget: int | None,
    ) -> Job:
        """Raises:
        UnknownHookError: an edit at a hook point that the model does not have.
        LabError: no rows; edits that contradict each other or were made for other prompts; a budget in which not
            even one row fits, with the size of one that does.
        """
        if not rows:
            raise LabError("a sweep needs at least one row; given none.")
        measure = get(metric)
        _check(model, pairs, rows)
        way, why = _way(model)
        given = free_memory(model.device) // 2 if budget is None else budget
        job = cls(model, pairs.to(model.device), rows, measure, given, way, why)
        job._check_budget()
        return job

    @property
    def runs(self) -> int:
        """How many (row, prompt) there are."""
        return len(self.rows) * len(self.pairs)

    @cached_property
    def names(self) -> set[str]:
        """The activations that the base run keeps: the edited ones, and what rows know where they join."""
        edited = {edit.site.hook_name for row in self.rows for edit in row}
        table = known_table(self.model.cfg, self.rows)
        joins = [(layer, KNOWN[known]) for layer, column in enumerate(table.T[:-1]) for known in np.unique(column)]
        return edited | {hook_name(kind, layer) for layer, kinds in joins for kind in kinds}

    @property
    def costs(self) -> Costs:
        """What running costs, in this model and at this length."""
        n_pos = self.pairs.clean.shape[1]
        return Costs.of(self.model, n_pos, sum(activation_bytes(self.model, name, n_pos) for name in self.names))

    @property
    def read(self) -> tuple[int, int]:
        """How many positions and vocabulary entries of a prompt the metric reads."""
        positions, tokens = self.metric.positions(self.pairs), self.metric.tokens(self.pairs)
        n_pos, vocabulary = self.pairs.clean.shape[1], self.model.W_U.shape[1]
        return (
            n_pos if positions is None else positions.shape[1],
            vocabulary if tokens is None else tokens.shape[1],
        )

    def blocks(self) -> Iterator[Block]:
        """The prompts, as many at a time as leave half of the budget to the climbs."""
        costs = self.costs
        size = max(1, self.budget // 2 // costs.base)
        for first in range(0, len(self.pairs), size):
            yield self._block(slice(first, min(first + size, len(self.pairs))), costs)

    def _block(self, prompts: slice, costs: Costs) -> Block:
        pairs = self.pairs.take(torch.arange(len(self.pairs), device=self.model.device)[prompts])
        metric = self.metric.take(torch.arange(len(self.pairs))[prompts])
        model: Any = self.model
        base = BaseRun.of(model, pairs, self.names, prompts.start)
        survey = Survey.of(base, self.rows, metric)
        room = self.budget - len(pairs) * costs.base
        return Block(prompts, base, survey, list(climbs(survey, costs, room, self.read)), metric)

    def _check_budget(self) -> None:
        costs = self.costs
        if self.way == BATCHED:
            needed = item_bytes(costs, 0, WHOLE, self.read)
        else:
            endings = {ending_of(self.model.cfg, row, self.metric) for row in self.rows} | {FINISH}
            needed = costs.base + max(item_bytes(costs, 0, ending, self.read) for ending in endings)
        if needed > self.budget:
            raise LabError(
                f"a budget of {megabytes(self.budget)} is too small for one row of this sweep, which needs about "
                f"{megabytes(needed)}; give a budget of at least {needed} bytes, or shorter prompts."
            )


def _check(model: HookedModel | Any, pairs: PromptPairs, rows: Sequence[Row]) -> None:
    for row in rows:
        for edit in row:
            if edit.site.hook_name not in model.hook_dict:
                raise UnknownHookError.near(edit.site.hook_name, model.hook_dict, model.cfg.model_name)
            edit.check_prompts(*pairs.clean.shape)
        check_row(row)


def _way(model: HookedModel | Any) -> tuple[str, str]:
    """How the sweep runs, and why not the other way."""
    if can_resume(model):
        return RESUMED, "rows resume from one base run"
    if isinstance(model, ResumableModel):
        return BATCHED, "hooks are attached to the model, and they may expect whole runs"
    return BATCHED, f"{type(model).__name__} cannot resume a run"
