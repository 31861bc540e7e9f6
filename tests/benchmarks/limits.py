"""How far a sweep is from its limit: the operations that it needs, at the speed at which this machine multiplies.

The speed is measured in the same rounds as the sweep, on two products of matrices: a large square one, the most that
the machine gives, and that of an MLP layer on the positions of one climb, the most that a model of this shape gets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from interp.sweep import Plan
from interp.sweep.costs import POSITIONS, Costs
from models import GPT
from tests.benchmarks.harness import Work

SQUARE, OF_MLP = "a square matrix product", "the MLP's matrix product"


@dataclass(frozen=True)
class Products:
    """Matrix products to time beside a sweep. operations: of each, a multiplication and an addition being two."""

    sides: dict[str, Work]
    operations: dict[str, float]

    @classmethod
    def of(cls, model: GPT) -> Products:
        """Of the model's device, dtype and widths."""
        side = 8192 if model.device.type == "cuda" else 2048
        shapes = {
            SQUARE: (side, side, side),
            OF_MLP: (POSITIONS[model.device.type], model.cfg.d_model, model.cfg.d_mlp or 4 * model.cfg.d_model),
        }
        sides: dict[str, Work] = {}
        operations: dict[str, float] = {}
        for name, (rows, inner, columns) in shapes.items():
            one = torch.randn(rows, inner, device=model.device, dtype=model.dtype)
            other = torch.randn(inner, columns, device=model.device, dtype=model.dtype)
            sides[name], operations[name] = partial(torch.matmul, one, other), 2.0 * rows * inner * columns
        return cls(sides, operations)

    def speeds(self, record: Mapping[str, Any]) -> dict[str, float]:
        """Operations a second, by a harness's record in which they were sides."""
        return {name: each / record["sides"][name]["median_s"] for name, each in self.operations.items()}


def baseline_operations(model: GPT, prompts: int, positions: int) -> float:
    """Of the two runs that every patching needs: the source with its logits, the base run without."""
    costs = Costs.of(model, positions)
    return prompts * (2 * costs.forward() - positions * costs.logit * costs.vocabulary)


def reading(
    plan: Plan, baselines: float, record: Mapping[str, Any], products: Products, ours: str, naive: str
) -> list[str]:
    """In words how far the measured sweep is from the limit. ours, naive: labels in the record."""
    mine, loop = (record["sides"][label]["median_s"] for label in (ours, naive))
    needed = plan.operations + baselines
    fewer, faster = plan.naive / needed, 1 / record["sides"][ours]["ratio"] * record["sides"][naive]["ratio"]
    lines = [
        f"operations: {plan.operations / 1e9:.4g} GFLOP of rows and {baselines / 1e9:.3g} of baselines, {fewer:.1f} "
        f"times fewer than the naive loop's: the limit, were both equally fast at multiplying",
        f"reached: {faster:.1f} times faster than the naive loop, {faster / fewer:.0%} of the limit",
        f"speeds: sweep {_speed(needed / mine)}, naive loop {_speed(plan.naive / loop)}",
    ]
    for name, speed in products.speeds(record).items():
        floor = needed / speed
        lines.append(f"{name} {_speed(speed)}: at that the sweep would take {floor:.3g} s, {floor / mine:.0%} of it")
    return lines


def heaviest(work: Work, device: str, n: int = 8) -> dict[str, float]:
    """Where the time of one call goes: torch's operators by their own share of it, the n heaviest and "idle".

    On a CPU: of the time within operators, as profiling slows the Python between them. On a GPU: kernels as a share of
    the whole time; the rest is "idle", the GPU waiting for work.
    """
    on_gpu = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as recorded:
        start = perf_counter()
        work()
        if on_gpu:
            torch.cuda.synchronize(device)
        taken = (perf_counter() - start) * 1e6
    operators = [event for event in recorded.key_averages() if event.device_type == DeviceType.CPU]
    own = {e.key: float(e.self_device_time_total if on_gpu else e.self_cpu_time_total) for e in operators}
    whole = taken if on_gpu else sum(own.values())
    shares = {name: time / whole for name, time in sorted(own.items(), key=lambda each: -each[1])[:n]}
    return shares | ({"idle": max(0.0, 1 - sum(own.values()) / whole)} if on_gpu else {})


def _speed(operations: float) -> str:
    return f"{operations / 1e9:.4g} GFLOP/s"
