"""First-order estimates of patching effects, for all sites of a kind at once.

A batch of prompts takes one forward of each run and one backward; GradDrop takes a backward for each layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor

from analyses import softmax_fix
from analyses.patching import cached_run
from analyses.recording import Recording, observed, record
from interp.contract import HookedModel
from interp.edits import Edit, replace
from interp.errors import LabError
from interp.metrics import AnyMetric
from interp.prompts import PromptPairs
from interp.results import to_numpy
from interp.sites import KINDS, PICKS, Site
from interp.sweep.costs import Costs, free_memory
from interp.text import megabytes

STREAM = ("resid_pre", "resid_mid", "resid_post", "normalized_resid_post")

Activations = Mapping[str, Tensor]


@dataclass(frozen=True)
class Estimates:
    """effects: the estimated change of the metric by each patch (with GradDrop, its size), in the metric's unit.

    base, source: the metric of the two unpatched runs. slope: the largest |dm/dlogit| at the base run. by_logits: what
    those slopes say that replacing all logits would change, where source - base is what it does change.
    """

    effects: Float[np.ndarray, "*axes prompt"]
    base: Float[np.ndarray, "prompt"]
    source: Float[np.ndarray, "prompt"]
    slope: Float[np.ndarray, "prompt"]
    by_logits: Float[np.ndarray, "prompt"]

    def largest(self, n: int) -> Int[np.ndarray, "check"]:
        """Where the `n` largest estimates stand, counted along the axes; the largest mean over prompts first."""
        return np.argsort(-np.abs(self.effects.mean(-1)), axis=None, kind="stable")[:n]


@dataclass(frozen=True)
class Estimator:
    """What is asked of every batch of prompts. axes: of the result, of `analyses.patching.AXES`."""

    model: HookedModel | Any
    site: str
    axes: tuple[str, ...]
    qk_fix: bool
    grad_drop: bool

    @property
    def fixes_softmax(self) -> bool:
        """Whether the site is queries or keys, whose patches the q/k fix recomputes the pattern for."""
        return self.qk_fix and self.site in (*softmax_fix.QUERIES, *softmax_fix.KEYS)

    @torch.inference_mode(False)  # whatever the caller's: tensors of inference mode cannot be part of a graph
    def run(self, runs: PromptPairs, sources: PromptPairs, metric: AnyMetric, budget: int | None) -> Estimates:
        """runs, sources: the pairs with what is patched, and what it is patched from, as their clean prompts."""
        batches = [
            self._batch(runs.take(prompts), sources.take(prompts), metric.take(prompts.cpu()))
            for prompts in batches_of(self.model, runs, budget)
        ]
        columns = zip(*batches, strict=True)
        return Estimates(*(np.concatenate([to_numpy(part.double()) for part in parts], -1) for parts in columns))

    def patches(self, sources: PromptPairs, found: Estimates, places: Int[np.ndarray, "check"]) -> list[list[Edit]]:
        """The exact patches at some places of the result, as rows of a sweep."""
        rows = []
        for place in zip(*np.unravel_index(places, found.effects.shape[:-1]), strict=True):
            at = {axis: int(index) for axis, index in zip(self.axes, place, strict=True)}
            layers = [at.pop("layer")] if "layer" in at else range(self.model.cfg.n_layers)
            rows.append([Site(self.site, layer, **at) for layer in layers])
        _, source = cached_run(self.model, sources, sorted({site.hook_name for row in rows for site in row}))
        return [[replace(site, source) for site in row] for row in rows]

    def _batch(self, runs: PromptPairs, sources: PromptPairs, metric: AnyMetric) -> tuple[Tensor, ...]:
        """The fields of `Estimates` for some of the prompts."""
        logits, source, other = observed(self.model, sources, metric, self._names())
        recording = record(self.model, runs, metric, self._names(), droppable=self.grad_drop)
        with torch.no_grad():
            effects = self._drop_averaged(recording, other) if self.grad_drop else self._effects(recording, other)
            slopes = recording.logit_gradient()
            by_logits = (slopes * (logits - recording.logits)).double().sum((1, 2))
            return effects, recording.scores, source, slopes.abs().amax((1, 2)), by_logits

    def _drop_averaged(self, recording: Recording, other: Activations) -> Float[Tensor, "*axes batch"]:
        """The mean size over the dropped layers that leave the site a gradient: all, or for most sites all others."""
        n_layers = self.model.cfg.n_layers
        sizes = sum(self._effects(recording, other, layer).abs() for layer in range(n_layers))
        return sizes / (n_layers if self.site in STREAM else n_layers - 1)

    def _effects(
        self, recording: Recording, other: Activations, dropped: int | None = None
    ) -> Float[Tensor, "*axes batch"]:
        """The estimate of every cell, layer by layer."""
        gradients = recording.gradients([names[-1] for names in self._by_layer()], dropped)
        effects = []
        for names in self._by_layer():
            change = self._patched_attention if len(names) > 1 else self._linear
            effects.append(change(names, recording.values, other, gradients[names[-1]]))
        return torch.stack(effects) if "layer" in self.axes else torch.stack(effects).sum(0)

    def _linear(
        self, names: list[str], run: Activations, other: Activations, gradient: Tensor
    ) -> Float[Tensor, "*axes batch"]:
        """(other - run) . gradient."""
        (name,) = names
        change = (_wide(other[name]) - _wide(run[name])) * _wide(gradient)
        return self._cells(change, " ".join(KINDS[self.site].axes))

    def _patched_attention(
        self, names: list[str], run: Activations, other: Activations, gradient: Tensor
    ) -> Float[Tensor, "*axes batch"]:
        """The change of the pattern . gradient at the pattern."""
        q, k, seen, pattern = (run[name] for name in names)
        softmax_fix.check_recomputed(q, k, seen, pattern)
        scores, gradient = softmax_fix.recomputed(q, k, seen), _wide(gradient)
        if self.site in softmax_fix.QUERIES:
            patched = softmax_fix.recomputed(other[names[0]], k, seen)
            return self._cells(softmax_fix.query_effects(scores, patched, gradient), "batch head pos")
        patched, kv_heads = softmax_fix.recomputed(q, other[names[1]], seen), k.shape[2]
        if "pos" in self.axes:
            return self._cells(softmax_fix.key_effects(scores, patched, gradient, kv_heads), "batch kv_head pos")
        return self._cells(softmax_fix.all_keys_effect(scores, patched, gradient, kv_heads), "batch kv_head")

    def _cells(self, change: Tensor, axes: str) -> Float[Tensor, "*axes batch"]:
        """Summed over the axes that are not told apart."""
        kept = [name for axis in self.axes if axis != "layer" for name in axes.split() if name in PICKS[axis]]
        return reduce(change, f"{axes} -> {' '.join([*kept, 'batch'])}", "sum")

    def _by_layer(self) -> list[list[str]]:
        """The hook names that each layer's estimate reads; the gradient is taken at the last."""
        layers = range(self.model.cfg.n_layers)
        if self.fixes_softmax:
            read = [softmax_fix.Layer.of(self.model, layer) for layer in layers]
            return [[layer.q, layer.k, layer.scores, layer.pattern] for layer in read]
        return [[Site(self.site, layer).hook_name] for layer in layers]

    def _names(self) -> list[str]:
        return [name for names in self._by_layer() for name in names]


def check_gradient(found: Estimates, metric: AnyMetric, dtype: torch.dtype) -> None:
    """Refuse a metric whose gradient at the base run is zero, or next to it, though it differs between the runs.

    Next to zero: replacing the logits would, to first order, change hardly any of what it changes in truth: less than
    1e-3 if the metric says that it is stationary somewhere, less than what rounding leaves for any other.

    Raises:
        LabError: such a metric.
    """
    rounding = min(100 * torch.finfo(dtype).eps, 1e-3)
    said, done = (float(np.abs(change).sum()) for change in (found.by_logits, found.source - found.base))
    differs = done > rounding * max(1.0, float(np.abs(found.base).sum()))
    hidden = differs and said < (1e-3 if metric.stationary else rounding) * done
    if hidden or not found.slope.any():
        raise LabError(
            f"the gradient of {metric.name!r} vanishes at the run that is patched: to first order the other run's "
            f"logits change it by {said:.2g}, in truth by {done:.2g}. A metric that is stationary there (a distance "
            "from that very run) or saturated tells gradients nothing; try 'logit_diff', 'log_prob', the other "
            "direction, or activation_patching."
        )


def _wide(activation: Tensor) -> Tensor:
    return activation.float() if activation.itemsize < 4 else activation


def batches_of(model: HookedModel | Any, pairs: PromptPairs, budget: int | None) -> Iterator[Int[Tensor, "batch"]]:
    """The prompts, as many at a time as their graphs fit the budget (bytes; by default half of what is free).

    Raises:
        LabError: without a budget, when a single prompt's do not fit the memory that there is.
    """
    n_pos = pairs.clean.shape[1]
    costs = Costs.of(model, n_pos)
    # Two runs, each about the activations of every layer, and the logits with their softmax and gradient.
    per_prompt = n_pos * (2 * costs.n_layers * costs.token + 5 * 4 * costs.vocabulary)
    free = free_memory(model.device)
    if budget is None and per_prompt > free:
        raise LabError(
            f"the gradients of one prompt of {n_pos} tokens need about {megabytes(per_prompt)}, and {megabytes(free)} "
            "are free; try shorter prompts, a narrower dtype, or exact patching, which needs no graph. A budget tries "
            "all the same."
        )
    size = max(1, (free // 2 if budget is None else budget) // per_prompt)
    yield from torch.arange(len(pairs), device=model.device).split(size)
