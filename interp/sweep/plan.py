"""What a sweep will take, before it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch

from interp.contract import HookedModel
from interp.metrics import AnyMetric
from interp.prompts import PromptPairs
from interp.sweep.costs import Costs
from interp.sweep.job import BATCHED, Job
from interp.sweep.schedule import item_bytes
from interp.sweep.survey import WHOLE, Row
from interp.text import duration, megabytes


@dataclass(frozen=True)
class Plan:
    """What a sweep will take.

    way, why: how it runs. rows, prompts. skipped: (row, prompt) runs whose edits change nothing, so that their effect
    is exactly zero. passes: climbs through the layers, or batches. layer_runs: how many times a layer is run in them.
    operations: floating-point operations; naive: those of one whole forward for each row and prompt. memory: bytes at
    the peak, beside the model; budget: bytes allowed. seconds: an estimate, to a factor of two or so, from the time of
    the base run and the survey and the speed of two short forwards.
    """

    way: str
    why: str
    rows: int
    prompts: int
    skipped: int
    passes: int
    layer_runs: int
    operations: float
    naive: float
    memory: int
    budget: int
    seconds: float

    def __str__(self) -> str:
        runs = self.rows * self.prompts
        saved = f", {self.naive / self.operations:.1f} times fewer than one forward a row" if self.operations else ""
        return "\n".join(
            [
                f"way         {self.way} ({self.why})",
                f"runs        {runs} = {self.rows} rows x {self.prompts} prompts; {self.skipped} change nothing",
                f"passes      {self.passes} ({self.layer_runs} times a layer)",
                f"operations  {self.operations / 1e9:.3g} GFLOP{saved}",
                f"memory      about {megabytes(self.memory)} of {megabytes(self.budget)}",
                f"time        about {duration(self.seconds)}",
            ]
        )


def plan(
    model: HookedModel | Any,
    pairs: PromptPairs,
    rows: Sequence[Row],
    metric: str | AnyMetric | Callable[..., Any] = "logit_diff",
    budget: int | None = None,
) -> Plan:
    """What `run` with the same arguments will take. Costs the base run and two short forwards.

    Raises:
        LabError: as `run`.
    """
    job = Job.of(model, pairs, rows, metric, budget)
    with torch.inference_mode():
        start = perf_counter()
        found = _batched(job) if job.way == BATCHED else _resumed(job)
        ahead = perf_counter() - start  # the base run and the survey, which running makes again
        return replace(found, seconds=ahead + _seconds(job, found))


def _resumed(job: Job) -> Plan:
    costs, read = job.costs, job.read
    runs = passes = layer_runs = memory = 0
    operations = 0.0
    for block in job.blocks():
        kept = len(block.base.pairs) * costs.base
        for climb in block.climbs:
            runs, passes = runs + len(climb), passes + 1
            layer_runs += climb.calls(costs.n_layers)
            operations += climb.operations(costs, read)
            memory = max(memory, kept + len(climb) * item_bytes(costs, climb.start, climb.ending, read))
        memory = max(memory, kept)
    return _plan(job, costs, runs, passes, layer_runs, operations, memory)


def _batched(job: Job) -> Plan:
    costs, runs = job.costs, len(job.rows) * len(job.pairs)
    each = item_bytes(costs, 0, WHOLE, job.read)
    size = min(runs, job.budget // each)
    passes = -(-runs // size)
    return _plan(job, costs, runs, passes, passes * costs.n_layers, runs * costs.forward(), size * each)


def _plan(job: Job, costs: Costs, runs: int, passes: int, layer_runs: int, operations: float, memory: int) -> Plan:
    every = len(job.rows) * len(job.pairs)
    naive = every * costs.forward()
    sizes = (len(job.rows), len(job.pairs), every - runs, passes, layer_runs)
    return Plan(job.way, job.why, *sizes, operations, naive, memory, job.budget, 0.0)


def _seconds(job: Job, found: Plan) -> float:
    """From a forward of one prompt and one of several: what a layer's start costs, and what an operation costs."""
    several = min(len(job.pairs), 8)
    one, many = _forward_seconds(job, 1), _forward_seconds(job, several)
    each = job.costs.forward()
    per_operation = max(many - one, 0.1 * many) / ((several - 1) * each) if several > 1 else one / each
    per_layer = max(0.0, one - each * per_operation) / job.costs.n_layers
    return found.operations * per_operation + found.layer_runs * per_layer


def _forward_seconds(job: Job, n: int) -> float:
    """The faster of two forwards of the first n prompts."""
    pairs, times = job.pairs[:n], []
    for _ in range(2):
        start = perf_counter()
        logits = job.model(pairs.clean, attention_mask=pairs.mask if pairs.padded else None)
        logits[0, 0, 0].item()  # waits for the device
        times.append(perf_counter() - start)
    return min(times)
