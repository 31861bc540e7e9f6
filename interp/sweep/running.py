"""Running a sweep, and keeping it while it runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from interp import provenance
from interp.contract import HookedModel
from interp.metrics import AnyMetric
from interp.progress import bar
from interp.prompts import PromptPairs
from interp.results import Result
from interp.sweep.base import baseline
from interp.sweep.batched import batches, run_batch
from interp.sweep.climb import run_climb
from interp.sweep.job import BATCHED, Block, Job
from interp.sweep.saved import Saved
from interp.sweep.schedule import item_bytes
from interp.sweep.survey import WHOLE, Row

Advance = Callable[[int], None]


@dataclass(frozen=True, eq=False, repr=False)
class SweepResult(Result):
    """The metric of every row on every prompt.

    values: a row whose edits change nothing has exactly the base run's number. base: the unedited run. way: "resumed"
    from the base run, or "batched hooks" (whole runs). skipped: how many (row, prompt) runs change nothing.
    """

    title = "Sweep"
    shows = "the metric of every edited run"

    values: Float[np.ndarray, "row prompt"]
    base: Float[np.ndarray, "prompt"]
    metric: str
    way: str
    skipped: int


def run(
    model: HookedModel | Any,
    pairs: PromptPairs,
    rows: Sequence[Row],
    metric: str | AnyMetric | Callable[..., Any] = "logit_diff",
    budget: int | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> SweepResult:
    """The metric of every row on every prompt: `.values[row, prompt]`, in float64.

    pairs: the runs are of `pairs.clean` (`pairs.swapped()` runs the corrupted prompts), and the metric is told
    `pairs`. rows: the edits of each row; an empty row is the unedited run. budget: bytes of memory to use beside the
    model and what the edits hold, by default half of what is free; numbers depend on it by rounding alone. out: a file
    (.safetensors) that keeps the sweep while it runs: the same call, after a crash or a kill, goes on from it to
    the same numbers. progress: None shows a bar on a terminal.

    Raises:
        UnknownHookError: an edit at a hook point that the model does not have; before anything runs.
        LabError: no rows, contradictory edits, values for other prompts, a site outside its activation, too small a
            budget, a metric that is not one number per prompt, or an `out` that holds another sweep.
    """
    job = Job.of(model, pairs, rows, metric, budget)
    saved = Saved.of(job, out)
    with torch.inference_mode(), saved, bar(job.runs, "sweep", progress) as advance:
        advance(int(saved.done.sum()))
        base, skipped = (_batched if job.way == BATCHED else _resumed)(saved.job, saved, advance)
    return SweepResult(
        saved.values,
        base,
        job.metric.name,
        job.way,
        skipped,
        labels={"row": [_label(row) for row in rows]},
        provenance=provenance.of(model, prompts=pairs, metric=job.metric.name),
    )


def _resumed(job: Job, saved: Saved, advance: Advance) -> tuple[Float[np.ndarray, "prompt"], int]:
    """The base run's metric, and how many runs were skipped."""
    bases, skipped = [], 0
    for block in job.blocks():
        bases.append(baseline(block.base, block.metric).double().cpu().numpy())
        skipped += _skip(block, bases[-1], saved, advance)
        for climb in block.climbs:
            row, prompt = climb.row, climb.prompt + block.prompts.start
            if saved.done[row, prompt].all():
                continue
            scores = run_climb(block.base, job.rows, climb, block.metric)
            saved.keep(row, prompt, scores.double().cpu().numpy())
            advance(len(climb))
    return np.concatenate(bases), skipped


def _skip(block: Block, base: Float[np.ndarray, "prompt"], saved: Saved, advance: Advance) -> int:
    """Give the base run's number to what is not run."""
    runs: Bool[np.ndarray, "row prompt"] = np.zeros((len(saved.values), len(base)), dtype=bool)
    runs[block.survey.row, block.survey.prompt] = True
    row, prompt = np.nonzero(~runs)
    fresh = int((~saved.done[row, prompt + block.prompts.start]).sum())
    saved.keep(row, prompt + block.prompts.start, base[prompt])
    advance(fresh)
    return len(row)


def _batched(job: Job, saved: Saved, advance: Advance) -> tuple[Float[np.ndarray, "prompt"], int]:
    """The unedited run's metric; nothing is skipped."""
    size = max(1, job.budget // item_bytes(job.costs, 0, WHOLE, job.read))
    n = len(job.pairs)

    def scores(
        rows: Sequence[Row], row: Int[np.ndarray, "item"], prompt: Int[np.ndarray, "item"]
    ) -> Float[np.ndarray, "item"]:
        return run_batch(job.model, job.pairs, rows, row, prompt, job.metric).double().cpu().numpy()

    base = [scores([()], row, prompt) for row, prompt in batches([()], n, size)]
    for row, prompt in batches(job.rows, n, size):
        if not saved.done[row, prompt].all():
            saved.keep(row, prompt, scores(job.rows, row, prompt))
            advance(len(row))
    return np.concatenate(base), 0


def _label(row: Row) -> str:
    """The edits of a row, in words; of many, the first ones."""
    words = [str(edit) for edit in row[:3]] + ([f"and {len(row) - 3} more"] if len(row) > 3 else [])
    return " + ".join(words) or "unedited"
