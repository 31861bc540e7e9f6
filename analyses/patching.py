"""Activation patching: put one run's activation into another run and read what it does to the answer.

    effect(site) = [m(patched) - m(corrupted)] / [m(clean) - m(corrupted)]

Heimersheim & Nanda 2024 (arXiv:2404.15255), Zhang & Nanda 2023 (arXiv:2309.16042). Both directions are on the one
scale, 0 = the corrupted run and 1 = the clean run:

- denoise: the corrupted run gets clean activations. An effect near 1 says that the site is sufficient.
- noise: the clean run gets corrupted activations. An effect near 0 says that the site is necessary.

Cost: two forwards for the baselines and the cache, and for each site and prompt the part of a forward that the patch
can change (see `interp.sweep`); one whole forward on models that cannot resume.
It does not show: how the effect comes about downstream, or sites that matter only together.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.labels import position_labels
from interp import files, metrics, provenance, sweep
from interp.contract import HookedModel
from interp.edits import Edit, replace
from interp.errors import LabError, choose
from interp.metrics import AnyMetric
from interp.prompts import PromptPairs
from interp.results import Result, to_numpy
from interp.shares import sides_of
from interp.sites import CROSS, HEAD_AXES, KINDS, PICKS, POSITION_AXES, RECURRENT, Site
from interp.style import SIGNED, Scale

AXES = ("layer", "head", "pos", "neuron")
DIRECTIONS = ("denoise", "noise")


@dataclass(frozen=True, eq=False, repr=False)
class PatchingResult(Result):
    """The effect of patching each site; `values` on the scale 0 = corrupted, 1 = clean when `normalized`.

    values: mean over prompts, [layer pos], [layer head], ... as asked. raw: the metric of every patched run.
    clean, corrupted: the metric of the two unpatched runs. way: how the sweep ran (see `interp.sweep`).
    """

    title = "Activation patching"
    caveat = "Later components may repair or hide an effect, and sites that only matter together show nothing alone."

    values: Float[np.ndarray, "*axes"]
    raw: Float[np.ndarray, "*axes prompt"]
    clean: Float[np.ndarray, "prompt"]
    corrupted: Float[np.ndarray, "prompt"]
    site: str
    metric: str
    direction: str
    normalized: bool
    way: str

    @property
    def shows(self) -> str:  # type: ignore[override]
        run, source = ("corrupted", "clean") if self.direction == "denoise" else ("clean", "corrupted")
        scale = "0 is the corrupted run, 1 the clean run" if self.normalized else f"in units of {self.metric}"
        return f"{self.metric} of the {run} run with {self.site} taken from the {source} run; {scale}."

    @property
    def unit(self) -> str:  # type: ignore[override]
        return "0 corrupted, 1 clean" if self.normalized else self.metric

    @property
    def scale(self) -> Scale:  # type: ignore[override]
        """White is the run without a patch."""
        unpatched = self.corrupted if self.direction == "denoise" else self.clean
        if not self.normalized:
            return Scale(SIGNED.colors, middle=float(unpatched.mean()))
        return Scale(SIGNED.colors, middle=0.0 if self.direction == "denoise" else 1.0)


def activation_patching(
    model: HookedModel | Any,
    pairs: PromptPairs,
    site: str = "resid_pre",
    metric: str | AnyMetric | Callable[..., Any] = "logit_diff",
    direction: str = "denoise",
    normalize: bool = True,
    by: Sequence[str] | None = None,
    budget: int | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> PatchingResult:
    """Patch every site of one kind, one at a time: `.values[layer, pos]`, or `.values[layer, head]`.

    site: a kind of `interp.sites.KINDS` that lives in blocks, such as "resid_pre", "attn_out", "mlp_out", "z", "q",
    "k", "v", "pattern", "mlp_post", or a state of a recurrent model, such as "encoder.hidden" (`.values[pos]`).
    by: the axes to tell apart, of "layer", "head", "pos" (for patterns the query position) and "neuron"; what is left
    out is patched together. By default layer and head where there are heads, else layer and position. metric: see
    `interp.metrics`; "kl" compares with the clean run. Positions count in the padded batch. normalize: False gives the
    metric itself, averaged over prompts. budget, out, progress: as in `interp.sweep.run`; `out` keeps the sweep while
    it runs, so that the same call goes on after a kill.

    When the two baselines differ by no more than rounding error, normalising would divide by it: a warning says so
    and the raw values are given.

    Raises:
        LabError: an unknown site, metric, direction or axis, prompts that the model cannot take, and as `sweep.run`.
    """
    if out is not None:
        files.check_writable(out)
    work = _prepare(model, pairs, site, metric, direction, by)
    found = sweep.run(model, work.runs, work.rows, work.metric, budget, out, progress)
    unpatched, raw = found.base, found.values.reshape(*work.shape, len(pairs))
    clean, corrupted = (work.source, unpatched) if direction == "denoise" else (unpatched, work.source)
    values, normalized = on_the_baselines_scale(raw.mean(-1), clean, corrupted, normalize, model.dtype)
    picked = next((axis for axis in KINDS[site].axes if axis in PICKS["pos"]), None)
    of_prompts = "pos" in work.axes and picked in getattr(model, "prompt_axes", POSITION_AXES)
    return PatchingResult(
        values,
        raw,
        clean,
        corrupted,
        site,
        work.metric.name,
        direction,
        normalized,
        found.way,
        axes=work.axes,
        labels={"pos": position_labels(model, work.pairs)} if of_prompts else {},
        provenance=provenance.of(
            model, prompts=work.pairs, metric=work.metric.name, site=site, direction=direction, ablation="replace"
        ),
    )


def patching_plan(
    model: HookedModel | Any,
    pairs: PromptPairs,
    site: str = "resid_pre",
    metric: str | AnyMetric | Callable[..., Any] = "logit_diff",
    direction: str = "denoise",
    by: Sequence[str] | None = None,
    budget: int | None = None,
) -> sweep.Plan:
    """What `activation_patching` with the same arguments will take, before it runs; see `interp.sweep.Plan`.

    Raises:
        LabError: as there.
    """
    work = _prepare(model, pairs, site, metric, direction, by)
    return sweep.plan(model, work.runs, work.rows, work.metric, budget)


@dataclass(frozen=True)
class _Work:
    """A patching sweep. runs: the pairs as the sweep runs them. source: the metric of the run that is patched from."""

    pairs: PromptPairs
    runs: PromptPairs
    axes: tuple[str, ...]
    shape: list[int]
    rows: list[list[Edit]]
    metric: AnyMetric
    source: Float[np.ndarray, "prompt"]


def _prepare(
    model: HookedModel | Any,
    pairs: PromptPairs,
    site: str,
    metric: str | AnyMetric | Callable[..., Any],
    direction: str,
    by: Sequence[str] | None,
) -> _Work:
    """Check everything, run what is patched from, and make the rows."""
    choose("direction", direction, DIRECTIONS)
    axes = axes_of(site, by)
    check_site(model, site, (*RECURRENT, *CROSS))
    pairs.check(model)
    if metric != "kl":
        metric = metrics.get(metric)
    pairs = pairs.to(model.device)
    sources, runs = (pairs, pairs.swapped()) if direction == "denoise" else (pairs.swapped(), pairs)
    names = [Site(site, layer).hook_name for layer in _layers(model, site)]
    measure = metrics.kl(run(model, pairs), pairs) if metric == "kl" else metrics.get(metric)
    source, source_metric = sweep.observe(model, sources, names, measure)
    shape, rows = _rows(model, site, axes, pairs, source)
    return _Work(pairs, runs, axes, shape, rows, measure, to_numpy(source_metric.double()))


def run(model: HookedModel | Any, pairs: PromptPairs) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of the clean prompts."""
    with torch.inference_mode():
        return model(pairs.clean, attention_mask=pairs.mask if pairs.padded else None)


def cached_run(
    model: HookedModel | Any, pairs: PromptPairs, names: Sequence[str]
) -> tuple[Float[Tensor, "batch pos d_vocab"], Any]:
    """Logits and cache of the clean prompts."""
    mask = pairs.mask if pairs.padded else None
    with torch.inference_mode():
        return model.run_with_cache(pairs.clean, attention_mask=mask, names_filter=list(names))


def check_site(model: HookedModel | Any, site: str, others: Sequence[str] = ()) -> None:
    """others: kinds that live in no block of the model's own, which the caller takes too.

    Raises:
        LabError: a kind that is unknown, does not live in blocks, or that this model does not have.
    """
    kinds = [name for name, kind in KINDS.items() if name in others or (kind.per_layer and name not in CROSS)]
    present = [name for name in kinds if Site(name, 0 if KINDS[name].per_layer else None).hook_name in model.hook_dict]
    if not present:
        raise LabError(
            f"this analysis is defined on models with blocks, which {model.cfg.model_name!r} does not have."
            f"{sides_of(model)}"
        )
    if site in kinds and site not in present:
        raise LabError(f"the model {model.cfg.model_name!r} has no {site!r}; its sites: {', '.join(present)}.")
    choose("site", site, present)


def axes_of(site: str, by: Sequence[str] | None) -> tuple[str, ...]:
    """The axes to tell apart, in the lab's order."""
    choose("site", site, KINDS)
    kind = KINDS[site]
    heads = bool(set(kind.axes) & set(HEAD_AXES))
    usual = ("layer", "head") if heads else ("layer", "pos") if kind.per_layer else ("pos",)
    wanted = usual if by is None else by
    wanted = (wanted,) if isinstance(wanted, str) else wanted
    for axis in wanted:
        choose("axis", axis, AXES)
        if not (kind.per_layer if axis == "layer" else set(kind.axes) & set(PICKS[axis])):
            raise LabError(f"site {site!r} has the axes {' '.join(kind.axes)}, so it cannot be told apart by {axis}.")
    if not wanted:
        raise LabError(f"by={by!r}; expected at least one of {', '.join(AXES)}.")
    return tuple(axis for axis in AXES if axis in wanted)


def _rows(
    model: HookedModel | Any, site: str, axes: tuple[str, ...], pairs: PromptPairs, source: Any
) -> tuple[list[int], list[list[Edit]]]:
    """The shape of the result, and the edits of each of its entries in order."""
    every = _layers(model, site)
    activation = source[Site(site, every[0]).hook_name].shape
    sizes = {"layer": len(every)}
    sizes |= {
        axis: next(n for n, name in zip(activation, KINDS[site].axes, strict=True) if name in PICKS[axis])
        for axis in axes
        if axis != "layer"
    }
    rows = []
    for place in product(*(range(sizes[axis]) for axis in axes)):
        at = dict(zip(axes, place, strict=True))
        layers = [at.pop("layer")] if "layer" in at else every
        rows.append([replace(Site(site, layer, **at), source) for layer in layers])
    return [sizes[axis] for axis in axes], rows


def _layers(model: HookedModel | Any, site: str) -> Sequence[int | None]:
    """The layers that have the site; None stands for none, of a kind that lives in no block.

    They need not be the model's own: the decoder's cross-attention belongs to a view of the encoder.
    """
    if not KINDS[site].per_layer:
        return [None]
    return [layer for layer in range(len(model.hook_dict)) if Site(site, layer).hook_name in model.hook_dict]


def on_the_baselines_scale(
    values: Float[np.ndarray, "*axes"],
    clean: Float[np.ndarray, "prompt"],
    corrupted: Float[np.ndarray, "prompt"],
    wanted: bool,
    dtype: torch.dtype,
) -> tuple[Float[np.ndarray, "*axes"], bool]:
    """The values on the scale of the baselines, and whether that was done."""
    if not wanted:
        return values, False
    top, bottom = float(clean.mean()), float(corrupted.mean())
    noise = 100 * torch.finfo(dtype).eps * max(1.0, abs(top), abs(bottom))
    if abs(top - bottom) <= noise:
        warnings.warn(
            f"the clean baseline {top:.6g} and the corrupted one {bottom:.6g} differ by no more than rounding "
            f"({noise:.1g}), so the values are not normalised: they are the metric itself.",
            stacklevel=3,
        )
        return values, False
    return (values - bottom) / (top - bottom), True
