"""Ablation: take a component out of the clean run, and read what that does to the answer.

    effect(component) = m(run with a <- fill) - m(run)

    zero:      fill = 0            what the model does without it; off the distribution of what it has seen
    mean:      fill = E[a]         what it does without what the component says of this prompt in particular
    resample:  fill = a(x')        what it does when the component speaks of another prompt x'

The three answer different questions and rank components differently: Chan et al. 2022 (causal scrubbing), Miller et al.
2024 (arXiv:2407.08734). The expectation is over a reference set. By default that is the corrupted prompts, which lack
what the task asks for, as in Wang et al. 2022 (arXiv:2211.00593); x' is by default the pair's own corrupted prompt.

Cost: a forward of the reference set, and for each component and prompt the part of a forward that follows it (see
`interp.sweep`). It does not show: how the effect comes about, or what several components do that stand in for each
other; `cumulative_ablation` takes them out together.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from typing import Any

import numpy as np
from jaxtyping import Int

from analyses.effects import SELF_REPAIR, Effects, effects, measure_of
from analyses.fills import VALUES, Fill, Reference, fill_of, warn_of_zeros
from analyses.patching import check_site
from interp import metrics, provenance, sweep
from interp.contract import HookedModel
from interp.edits import Edit
from interp.errors import LabError, choose
from interp.metrics import AnyMetric
from interp.prompts import PromptPairs
from interp.sites import Site
from interp.text import place

KINDS_OF = {
    "head": ("z",),
    "attn": ("attn_out",),
    "mlp": ("mlp_out",),
    "layer": ("attn_out", "mlp_out"),
    "neuron": ("mlp_post",),
}
"""What can be ablated, and the sites that are written to."""
AXES_OF = {"head": ("layer", "head"), "neuron": ("layer", "neuron")}
"""The axes that tell the components apart; those of the others are the layers alone."""

Component = int | Sequence[int]


@dataclass(frozen=True, eq=False, repr=False)
class AblationResult(Effects):
    """What taking out each component does to the metric: `values` is [layer head], [layer] or [layer neuron].

    of: the sort of component. value: zero, mean or resample. fill: what is written in its place, in words.
    """

    title = "Ablation"
    caveat = f"{SELF_REPAIR} Components that stand in for each other show nothing alone."

    of: str
    value: str
    fill: str

    @property
    def shows(self) -> str:  # type: ignore[override]
        return f"The change of {self.metric} when one {self.of} is replaced by {self.fill}."

    @property
    def ranking(self) -> list[tuple[int, ...]]:
        """All components, (layer, head) or the like, the one with the strongest effect of either sign first."""
        order = np.argsort(-np.abs(self.values), axis=None, kind="stable")
        return [tuple(int(i) for i in np.unravel_index(flat, self.values.shape)) for flat in order]


@dataclass(frozen=True, eq=False, repr=False)
class CumulativeAblation(Effects):
    """What taking out the first components of an order together does: entry i of `values` is of the first i + 1.

    order: the components, each as its layer, or as layer and head or neuron. of, value, fill: as in `AblationResult`.
    """

    title = "Cumulative ablation"
    caveat = f"{SELF_REPAIR} Another order gives another curve, with the same end."

    order: Int[np.ndarray, "up_to part"]
    of: str
    value: str
    fill: str

    @property
    def shows(self) -> str:  # type: ignore[override]
        return f"The change of {self.metric} when this {self.of} and those before it are replaced by {self.fill}."


def ablation(
    model: HookedModel | Any,
    pairs: PromptPairs,
    of: str = "head",
    value: str = "mean",
    reference: Reference | None = None,
    metric: str | AnyMetric | Callable[..., Any] = "logit_diff",
    positions: Sequence[int] | None = None,
    budget: int | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> AblationResult:
    """Take out every component of one sort, one at a time: `.values[layer, head]`, `[layer]` or `[layer, neuron]`.

    of: "head" (its z), "attn", "mlp" (what they write), "layer" (both) or "neuron" (of the MLP, after its activation).
    All heads of a layer at zero still leave the attention's output bias b_O; "attn" at zero does not.
    value: "zero", "mean" or "resample". reference: where the other two come from (see `analyses.fills`), by default
    the corrupted prompts. positions: where to ablate, counted in the padded batch, from the end when negative; by
    default everywhere. metric: see `interp.metrics`; "kl" compares with the unedited run. budget, out, progress: as in
    `interp.sweep.run`.

    Raises:
        LabError: an unknown sort, value or metric, a sort that the model does not have, a reference or positions that
            do not fit the prompts, prompts that the model cannot take, and as `sweep.run`.
    """
    work = _prepare(model, pairs, of, value, reference, metric, positions)
    rows = [work.edits(component) for component in product(*map(range, work.sizes))]
    found = sweep.run(model, work.pairs, rows, work.metric, budget, out, progress)
    return AblationResult(
        *effects(found, work.sizes), of, value, work.fill.words, axes=work.axes, provenance=work.provenance
    )


def cumulative_ablation(
    model: HookedModel | Any,
    pairs: PromptPairs,
    order: Iterable[Component],
    of: str = "head",
    value: str = "mean",
    reference: Reference | None = None,
    metric: str | AnyMetric | Callable[..., Any] = "logit_diff",
    positions: Sequence[int] | None = None,
    budget: int | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> CumulativeAblation:
    """Take out the first component of an order, then the first two, and so on: `.values[up_to]`.

        cumulative_ablation(model, pairs, ablation(model, pairs).ranking[:10])

    order: (layer, head), (layer, neuron), or layers. The rest is as in `ablation`. The k-th run has k edits, so all
    neurons of a large model are too many: give the first of a ranking.

    Raises:
        LabError: as `ablation`, and for an order that is empty, names what the model does not have, or repeats itself.
    """
    choose("component", of, KINDS_OF)
    chosen = _order(model, of, order)
    work = _prepare(model, pairs, of, value, reference, metric, positions)
    rows = list(accumulate(work.edits(component) for component in chosen))
    found = sweep.run(model, work.pairs, rows, work.metric, budget, out, progress)
    names = [place(list(zip(work.axes, component, strict=True))) for component in chosen]
    return CumulativeAblation(
        *effects(found, [len(chosen)]),
        np.array(chosen),
        of,
        value,
        work.fill.words,
        axes=("up_to",),
        labels={"up_to": names},
        provenance=work.provenance,
    )


@dataclass(frozen=True)
class _Work:
    """A checked ablation."""

    pairs: PromptPairs
    kinds: tuple[str, ...]
    axes: tuple[str, ...]
    sizes: tuple[int, ...]
    positions: tuple[int | None, ...]
    fill: Fill
    metric: AnyMetric
    provenance: provenance.Provenance

    def edits(self, component: Sequence[int]) -> list[Edit]:
        """What takes out one component."""
        at: Any = dict(zip(self.axes, component, strict=True))
        return [self.fill.edit(Site(kind, **at, pos=pos)) for kind in self.kinds for pos in self.positions]


def _prepare(
    model: HookedModel | Any,
    pairs: PromptPairs,
    of: str,
    value: str,
    reference: Reference | None,
    metric: str | AnyMetric | Callable[..., Any],
    positions: Sequence[int] | None,
) -> _Work:
    """Check everything, and run the reference set."""
    kinds, axes = _kinds(model, of), AXES_OF.get(of, ("layer",))
    choose("value", value, VALUES)
    pairs.check(model)
    if metric != "kl":
        metric = metrics.get(metric)
    places = _positions(positions, pairs.clean.shape[1])
    pairs = pairs.to(model.device)
    fill = fill_of(model, pairs, kinds, value, reference)
    if value == "zero":
        warn_of_zeros(stacklevel=3)
    measure = measure_of(model, pairs, metric)
    settings = {"of": of, "fill": fill.words, **fill.settings} | ({} if positions is None else {"positions": places})
    origin = provenance.of(
        model, prompts=pairs, metric=measure.name, site=", ".join(kinds), ablation=value, settings=settings
    )
    return _Work(pairs, kinds, axes, tuple(_size(model, axis) for axis in axes), places, fill, measure, origin)


def _kinds(model: HookedModel | Any, of: str) -> tuple[str, ...]:
    """The sites to write to; a layer of a model without MLPs is its attention alone.

    Raises:
        LabError: an unknown sort of component, or one that the model does not have.
    """
    kinds = KINDS_OF[choose("component", of, KINDS_OF)]
    present = tuple(kind for kind in kinds if Site(kind, 0).hook_name in model.hook_dict)
    if not present:
        check_site(model, kinds[0])
    return present


def _positions(positions: Sequence[int] | None, n_pos: int) -> tuple[int | None, ...]:
    """Positions from the start, each once; (None,) stands for all.

    Raises:
        LabError: none, or one that the prompts do not have.
    """
    if positions is None:
        return (None,)
    outside = [pos for pos in positions if not -n_pos <= pos < n_pos]
    if outside or not len(positions):
        given = f"position {outside[0]}" if outside else "no position"
        raise LabError(f"{given} to ablate; expected some from 0 to {n_pos - 1}, or from {-n_pos} for the end.")
    return tuple(sorted({pos % n_pos for pos in positions}))


def _size(model: HookedModel | Any, axis: str) -> int:
    """How many there are along an axis."""
    cfg = model.cfg
    return int({"layer": cfg.n_layers, "head": cfg.n_heads, "neuron": cfg.d_mlp or 0}[axis])


def _order(model: HookedModel | Any, of: str, order: Iterable[Component]) -> list[tuple[int, ...]]:
    """The components of an order.

    Raises:
        LabError: none, one that the model does not have, or one twice.
    """
    axes = AXES_OF.get(of, ("layer",))
    chosen: list[tuple[int, ...]] = [tuple(int(i) for i in np.atleast_1d(component)) for component in order]
    if not chosen:
        raise LabError(f"an order of no components; expected at least one ({', '.join(axes)}).")
    limits = [_size(model, axis) for axis in axes]
    for number, component in enumerate(chosen):
        if len(component) != len(axes) or not all(0 <= i < n for i, n in zip(component, limits, strict=True)):
            known = ", ".join(f"{axis} 0 to {n - 1}" for axis, n in zip(axes, limits, strict=True))
            raise LabError(f"order[{number}] is {component}, no {of} of {model.cfg.model_name!r}; expected {known}.")
    twice = next((component for component, times in Counter(chosen).items() if times > 1), None)
    if twice is not None:
        raise LabError(f"the order has {twice} more than once; expected each {of} once.")
    return chosen
