"""Activation patching: put one run's activation into another run and read what it does to the answer.

    effect(site) = [m(patched) - m(corrupted)] / [m(clean) - m(corrupted)]

Heimersheim & Nanda 2024 (arXiv:2404.15255), Zhang & Nanda 2023 (arXiv:2309.16042). Both directions are on the one
scale, 0 = the corrupted run and 1 = the clean run:

- denoise: the corrupted run gets clean activations. An effect near 1 says that the site is sufficient.
- noise: the clean run gets corrupted activations. An effect near 0 says that the site is necessary.

Cost: one forward per site and prompt, batched, and two for the baselines and the cache.
It does not show: how the effect comes about downstream, or sites that matter only together.
"""

from __future__ import annotations

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
from interp import metrics, provenance, sweep
from interp.contract import HookedModel
from interp.edits import Edit, replace
from interp.errors import LabError, choose
from interp.metrics import AnyMetric
from interp.prompts import PromptPairs
from interp.results import Result, to_numpy
from interp.sites import HEAD_AXES, KINDS, Site
from interp.style import SIGNED, Scale

AXES = ("layer", "head", "pos")
DIRECTIONS = ("denoise", "noise")


@dataclass(frozen=True, eq=False, repr=False)
class PatchingResult(Result):
    """The effect of patching each site; `values` on the scale 0 = corrupted, 1 = clean when `normalized`.

    values: mean over prompts, [layer pos], [layer head], ... as asked. raw: the metric of every patched run.
    clean, corrupted: the metric of the two unpatched runs.
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
    batch_size: int | None = None,
    progress: bool | None = None,
) -> PatchingResult:
    """Patch every site of one kind, one at a time: `.values[layer, pos]`, or `.values[layer, head]`.

    site: a kind of `interp.sites.KINDS` that lives in blocks, such as "resid_pre", "attn_out", "mlp_out", "z", "q",
    "k", "v", "pattern", "mlp_post". by: the axes to tell apart, of "layer", "head" and "pos" (for patterns the
    query position); what is left out is patched together. By default layer and head where there are heads, else
    layer and position. metric: see `interp.metrics`; "kl" compares with the clean run. Positions count in the
    padded batch. normalize: False gives the metric itself, averaged over prompts.

    When the two baselines differ by no more than rounding error, normalising would divide by it: a warning says so
    and the raw values are given.

    Raises:
        LabError: an unknown site, metric, direction or axis, or prompts that the model cannot take.
    """
    choose("direction", direction, DIRECTIONS)
    axes = _axes(site, by)
    check_site(model, site)
    pairs.check(model)
    if metric != "kl":
        metric = metrics.get(metric)
    pairs = pairs.to(model.device)
    source_pairs = pairs if direction == "denoise" else pairs.swapped()
    run_pairs = pairs.swapped() if direction == "denoise" else pairs

    names = [Site(site, layer).hook_name for layer in range(model.cfg.n_layers)]
    source_logits, source = cached_run(model, source_pairs, names)
    clean_logits = source_logits if direction == "denoise" else run(model, pairs)
    measure = metrics.kl(clean_logits, pairs) if metric == "kl" else metrics.get(metric)
    shape, rows = _rows(model, site, axes, pairs, source)
    # The unedited run is the sweep's first row, so both baselines and all rows go through the same code.
    results = sweep.run(model, run_pairs, [(), *rows], measure, batch_size, progress)
    unpatched, raw = results[0], results[1:].reshape(*shape, len(pairs))
    from_source = measure(source_logits, source_pairs).double().cpu()
    clean, corrupted = (from_source, unpatched) if direction == "denoise" else (unpatched, from_source)
    values, normalized = _normalize(raw.mean(-1), clean, corrupted, normalize, model.dtype)
    labels = {"pos": position_labels(model, pairs)} if "pos" in axes else {}
    return PatchingResult(
        to_numpy(values),
        to_numpy(raw),
        to_numpy(clean),
        to_numpy(corrupted),
        site,
        measure.name,
        direction,
        normalized,
        axes=axes,
        labels=labels,
        provenance=provenance.of(
            model, prompts=pairs, metric=measure.name, site=site, direction=direction, ablation="replace"
        ),
    )


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


def check_site(model: HookedModel | Any, site: str) -> None:
    """Raises:
    LabError: a kind that is unknown, does not live in blocks, or that this model does not have.
    """
    per_layer = [name for name, kind in KINDS.items() if kind.per_layer]
    present = [name for name in per_layer if Site(name, 0).hook_name in model.hook_dict]
    if site in per_layer and site not in present:
        raise LabError(f"the model {model.cfg.model_name!r} has no {site!r}; its sites: {', '.join(present)}.")
    choose("site", site, present)


def _axes(site: str, by: Sequence[str] | None) -> tuple[str, ...]:
    """The axes to tell apart, in the lab's order."""
    choose("site", site, KINDS)
    heads = bool(set(KINDS[site].axes) & set(HEAD_AXES))
    wanted = by if by is not None else ("layer", "head") if heads else ("layer", "pos")
    wanted = (wanted,) if isinstance(wanted, str) else wanted
    for axis in wanted:
        choose("axis", axis, AXES)
    if "head" in wanted and not heads:
        raise LabError(f"site {site!r} has the axes {' '.join(KINDS[site].axes)}, so it cannot be told apart by head.")
    if not wanted:
        raise LabError(f"by={by!r}; expected at least one of {', '.join(AXES)}.")
    return tuple(axis for axis in AXES if axis in wanted)


def _rows(
    model: HookedModel | Any, site: str, axes: tuple[str, ...], pairs: PromptPairs, source: Any
) -> tuple[list[int], list[list[Edit]]]:
    """The shape of the result, and the edits of each of its entries in order."""
    head_axis = next((i for i, axis in enumerate(KINDS[site].axes) if axis in HEAD_AXES), None)
    sizes = {
        "layer": model.cfg.n_layers,
        "head": source[Site(site, 0).hook_name].shape[head_axis] if head_axis is not None else 0,
        "pos": pairs.clean.shape[1],
    }
    rows = []
    for place in product(*(range(sizes[axis]) for axis in axes)):
        at = dict(zip(axes, place, strict=True))
        layers = [at["layer"]] if "layer" in at else range(model.cfg.n_layers)
        rows.append([replace(Site(site, layer, at.get("head"), at.get("pos")), source) for layer in layers])
    return [sizes[axis] for axis in axes], rows


def _normalize(
    values: Tensor, clean: Tensor, corrupted: Tensor, wanted: bool, dtype: torch.dtype
) -> tuple[Tensor, bool]:
    """The values on the scale of the baselines, and whether that was done."""
    if not wanted:
        return values, False
    top, bottom = clean.mean(), corrupted.mean()
    noise = 100 * torch.finfo(dtype).eps * max(1.0, float(top.abs()), float(bottom.abs()))
    if abs(float(top - bottom)) <= noise:
        warnings.warn(
            f"the clean baseline {top:.6g} and the corrupted one {bottom:.6g} differ by no more than rounding "
            f"({noise:.1g}), so the values are not normalised: they are the metric itself.",
            stacklevel=3,
        )
        return values, False
    return (values - bottom) / (top - bottom), True
