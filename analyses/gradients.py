"""Attribution patching: every patch of a kind at once, estimated to first order.

    effect(site) = sum over the site's entries of (other - base) . dm/da, at the base run

Nanda 2023 (neelnanda.io/attribution-patching); with the q/k fix and GradDrop of AtP*, Kramár et al. 2024
(arXiv:2403.00745). base is the run that is patched, other the run that is patched from: in the direction "denoise" the
corrupted and the clean run, in "noise" the reverse. The numbers are on the scale of `activation_patching`.

Cost: two forwards and a backward for all sites; GradDrop takes a backward for each layer. Then one more forward, and
exact patching of the few sites that are checked.
It does not show: what is not linear between the two runs (saturated attention, norms far from the base run), and
effects that cancel at first order, so a site may be missed. What is checked exactly is the top of the estimate alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int

from analyses.agreement import Agreement, agreement
from analyses.first_order import Estimator, check_gradient
from analyses.labels import position_labels
from analyses.patching import DIRECTIONS, PatchingResult, axes_of, check_site, on_the_baselines_scale, run
from interp import metrics, provenance, sweep
from interp.contract import HookedModel
from interp.errors import LabError, choose
from interp.metrics import AnyMetric
from interp.prompts import PromptPairs
from interp.storage import plain
from interp.style import AMOUNT, Scale

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False)
class AttributionPatchingResult(PatchingResult):
    """Estimated effects on the scale of `PatchingResult`, and exact ones of the sites with the largest estimates.

    values: as in `PatchingResult`; with `grad_drop` the mean size of the change, as a share of the difference of the
    two unpatched runs when `normalized`: 0 is no effect, and no value is negative. raw: the estimated metric of every
    patched run; with `grad_drop` the size of its change. exact: as `values` by exact patching, NaN where it was not
    done. way: how the exact runs ran. qk_fix: whether a softmax was recomputed for this site.
    """

    title = "Attribution patching"

    exact: Float[np.ndarray, "*axes"]
    qk_fix: bool
    grad_drop: bool

    @property
    def agreement(self) -> Agreement:
        """Of estimated with exact effects, in units of `values`, over the sites that were checked."""
        checked = ~np.isnan(self.exact)
        middle = self._no_effect
        return agreement(self.values[checked] - middle, self.exact[checked] - middle)

    @property
    def caveat(self) -> str:  # type: ignore[override]
        return (
            f"Exact patching of the {self.agreement.n} largest estimates: {self.agreement}. "
            "First-order estimates miss what saturates or cancels, and the sites that are not checked may be among it."
        )

    @property
    def shows(self) -> str:  # type: ignore[override]
        if not self.grad_drop:
            return f"Estimated to first order: {super().shows}"
        unit = "the difference of the two runs" if self.normalized else self.metric
        run, source = ("corrupted", "clean") if self.direction == "denoise" else ("clean", "corrupted")
        return (
            f"Size of the change of {self.metric} when the {run} run has {self.site} taken from the {source} run, "
            f"estimated to first order and averaged over gradients that skip a layer; in units of {unit}."
        )

    @property
    def unit(self) -> str:  # type: ignore[override]
        if not self.grad_drop:
            return super().unit
        return "share of clean - corrupted" if self.normalized else self.metric

    @property
    def scale(self) -> Scale:  # type: ignore[override]
        return Scale(AMOUNT.colors, lowest=0.0) if self.grad_drop else super().scale

    @property
    def _no_effect(self) -> float:
        """The value of a site that does nothing."""
        return super().scale.middle or 0.0 if not self.grad_drop else 0.0

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, agreement at the top {self.agreement.n}: {self.agreement})"

    def to_dict(self, arrays: Sequence[str] | None = None) -> dict[str, Any]:
        """As for every result, with the agreement."""
        return super().to_dict(arrays) | {"agreement": plain(vars(self.agreement))}

    def plot(self) -> go.Figure:
        """The estimates, with the agreement below."""
        figure = super().plot()
        note = f"exact at the top {self.agreement.n}: {self.agreement}"
        below = {"x": 0, "y": 0, "yshift": -62, "xref": "paper", "yref": "paper", "yanchor": "top", "xanchor": "left"}
        figure.add_annotation(text=note, showarrow=False, font={"size": 11}, **below)
        return figure.update_layout(margin={"b": 100}, height=figure.layout.height + 30)


def attribution_patching(
    model: HookedModel | Any,
    pairs: PromptPairs,
    site: str = "resid_pre",
    metric: str | AnyMetric | Callable[..., Any] = "logit_diff",
    direction: str = "denoise",
    normalize: bool = True,
    by: Sequence[str] | None = None,
    qk_fix: bool = True,
    grad_drop: bool = False,
    checks: int = 10,
    budget: int | None = None,
    progress: bool | None = None,
) -> AttributionPatchingResult:
    """Estimate what `activation_patching` with the same arguments gives: `.values[layer, pos]`, or `[layer, head]`.

    site, metric, direction, normalize, by: as in `activation_patching`. checks: how many sites, those with the largest
    estimates, are patched exactly; `.exact` holds their values, and `.agreement` compares. budget: bytes for the runs
    and their graphs, by default half of what is free; prompts are run a batch at a time to fit, and a single prompt
    that does not fit is run all the same. progress: of the exact runs.

    qk_fix: at the sites q, k, rot_q and rot_k the pattern is recomputed exactly with what is patched, and only what
    comes after it is linear. Keys are patched as `by` says: each position by itself when positions are told apart,
    else all of a head's together.

    grad_drop: layers may cancel each other's effects at first order. For each of the L layers l, the gradient is taken
    without what passes through the attention and the MLP of layer l; the estimate is the mean over l of the sizes
    |estimate_l|, for each prompt, times L / (L - 1), because a site within a layer has no gradient once that
    layer is dropped. The sites on the residual stream keep theirs, and have the plain mean.

    Raises:
        LabError: as `activation_patching`; a metric without a gradient ("rank"), or whose gradient vanishes at the run
            that is patched ("kl" in the direction "noise"); a model without gradients, or for the fix without scores
            q . k / sqrt(d_head); GradDrop on one layer; `checks` below 1.
    """
    choose("direction", direction, DIRECTIONS)
    estimator = Estimator(model, site, axes_of(site, by), qk_fix, grad_drop)
    check_site(model, site)
    _check_question(model, metric, direction, grad_drop, checks)
    pairs.check(model)
    pairs = pairs.to(model.device)
    sources, runs = (pairs, pairs.swapped()) if direction == "denoise" else (pairs.swapped(), pairs)
    measure = metrics.kl(run(model, pairs), pairs) if metric == "kl" else metrics.get(metric)
    found = estimator.run(runs, sources, measure, budget)
    check_gradient(found, measure, model.dtype)
    top = found.largest(checks)
    exact = sweep.run(model, runs, estimator.patches(sources, found, top), measure, budget, progress=progress)
    clean, corrupted = (found.source, found.base) if direction == "denoise" else (found.base, found.source)
    effects = np.concatenate([found.effects.reshape(-1, len(pairs)), exact.values - exact.base])
    values, normalized = _values(effects, found.base, clean, corrupted, grad_drop, normalize, model.dtype)
    return AttributionPatchingResult(
        values[: -len(top)].reshape(found.effects.shape[:-1]),
        found.effects if grad_drop else found.base + found.effects,
        clean,
        corrupted,
        site,
        measure.name,
        direction,
        normalized,
        exact.way,
        _at(top, values[-len(top) :], found.effects.shape[:-1]),
        estimator.fixes_softmax,
        grad_drop,
        axes=estimator.axes,
        labels={"pos": position_labels(model, pairs)} if "pos" in estimator.axes else {},
        provenance=provenance.of(
            model,
            prompts=pairs,
            metric=measure.name,
            site=site,
            direction=direction,
            ablation="replace",
            settings={"qk_fix": estimator.fixes_softmax, "grad_drop": grad_drop, "checks": len(top)},
        ),
    )


def _check_question(model: HookedModel | Any, metric: Any, direction: str, grad_drop: bool, checks: int) -> None:
    """Raises:
    LabError: what gradients cannot answer, as far as it shows before anything runs.
    """
    if metric == "kl" and direction == "noise":
        raise LabError(
            "'kl' compares with the clean run, and in the direction 'noise' the clean run is the one that is patched: "
            "the gradient is zero there, and so would be every estimate. Try direction='denoise', or 'logit_diff'."
        )
    if metric == "rank" or metric is metrics.rank:
        raise LabError("the metric 'rank' counts, so it has no gradient; try 'logit_diff' or 'log_prob'.")
    if grad_drop and model.cfg.n_layers < 2:
        raise LabError("grad_drop=True drops one layer at a time, but the model has one; expected at least 2 layers.")
    if checks < 1:
        raise LabError(f"checks={checks}; expected at least 1: estimates are always compared with exact patching.")


def _values(
    effects: Float[np.ndarray, "site prompt"],
    base: Float[np.ndarray, "prompt"],
    clean: Float[np.ndarray, "prompt"],
    corrupted: Float[np.ndarray, "prompt"],
    sizes: bool,
    normalize: bool,
    dtype: torch.dtype,
) -> tuple[Float[np.ndarray, "site"], bool]:
    """Changes of the metric, or their mean sizes, on the result's scale, and whether that is the normalised one."""
    if not sizes:
        return on_the_baselines_scale(base.mean() + effects.mean(-1), clean, corrupted, normalize, dtype)
    means = np.abs(effects).mean(-1)
    scaled, normalized = on_the_baselines_scale(corrupted.mean() + means, clean, corrupted, normalize, dtype)
    return (np.abs(scaled), True) if normalized else (means, False)


def _at(
    places: Int[np.ndarray, "check"], values: Float[np.ndarray, "check"], shape: tuple[int, ...]
) -> Float[np.ndarray, "*axes"]:
    """The values at their places, NaN elsewhere."""
    full = np.full(shape, np.nan)
    full.flat[places] = values
    return full
