"""What a result of knock-outs holds: how far each changes the metric, over prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from analyses.patching import run
from interp import metrics
from interp.contract import HookedModel
from interp.metrics import AnyMetric
from interp.prompts import PromptPairs
from interp.results import Result
from interp.style import SIGNED
from interp.sweep import SweepResult

SELF_REPAIR = "Later components may make up for what is gone (self-repair), also through the norm's changed scale."


@dataclass(frozen=True, eq=False, repr=False)
class Effects(Result):
    """Changes of a metric.

    values: m(edited) - m(base), mean over prompts. spread: its interquartile range over prompts. raw: the metric of
    every edited run. base: that of the unedited run. way: how the sweep ran (see `interp.sweep`).
    """

    scale = SIGNED

    values: Float[np.ndarray, "*axes"]
    spread: Float[np.ndarray, "*axes"]
    raw: Float[np.ndarray, "*axes prompt"]
    base: Float[np.ndarray, "prompt"]
    metric: str
    way: str

    @property
    def unit(self) -> str:  # type: ignore[override]
        return f"change of {self.metric}"


EffectFields = tuple[
    Float[np.ndarray, "*axes"],
    Float[np.ndarray, "*axes"],
    Float[np.ndarray, "*axes prompt"],
    Float[np.ndarray, "prompt"],
    str,
    str,
]


def effects(found: SweepResult, shape: Sequence[int]) -> EffectFields:
    """The fields of `Effects`, from a sweep whose rows are arranged in this shape."""
    raw = found.values.reshape(*shape, len(found.base))
    change = raw - found.base
    lower, upper = np.percentile(change, [25, 75], axis=-1)
    return change.mean(-1), upper - lower, raw, found.base, found.metric, found.way


def measure_of(model: HookedModel | Any, pairs: PromptPairs, metric: str | AnyMetric | Callable[..., Any]) -> AnyMetric:
    """The metric; "kl" compares with the unedited run of the clean prompts."""
    return metrics.kl(run(model, pairs), pairs) if metric == "kl" else metrics.get(metric)
