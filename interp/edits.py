"""Edits as values: what to write at a site, in which prompts' runs.

An `Edit` names a site and a pure function from the old values there to the new ones. Built by the functions
below, it can be printed, put into a sweep, or hooked onto one run:

    with model.hooks([zero(Site("z", 1, head=3)).as_hook()]):
        logits = model(tokens)

A hook made of an edit returns a new tensor and leaves the one that it was given alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import LabError
from interp.markers import pure
from interp.sites import PICKS, POSITION_AXES, Site

Activation = Float[Tensor, "batch *axes"]
Source = Mapping[str, Tensor]


@dataclass(frozen=True)
class Window:
    """Which part of a run an activation holds: these prompts, at the positions from `start` on.

    The keys of scores and patterns are those of the whole run, whatever the window.
    """

    prompts: slice = field(default_factory=lambda: slice(None))
    start: int = 0

    def of(self, values: Activation, axes: Sequence[str]) -> Float[Tensor, "row *part"]:
        """The window's part of values for all prompts and positions; an axis of size 1 stands for all."""
        for axis, name in enumerate(axes):
            if name in POSITION_AXES and values.shape[axis] > 1 and self.start:
                values = values.narrow(axis, self.start, values.shape[axis] - self.start)
        return values[self.prompts] if len(values) > 1 else values


@dataclass(frozen=True, eq=False)
class Edit:
    """Write `new(old, window)` at `site`.

    new: from the site's values in a window, [batch *axes] without the axes that the site picks from, to the new ones.
    values: what `new` brings from elsewhere, with the axes of the site and all prompts and positions (an axis of size 1
    stands for all). overwrites: the old values do not matter. per_position: what is written at a position
    depends on nothing but that position's old values, so a part of the positions can be edited alone.
    """

    site: Site
    new: Callable[[Activation, Window], Activation]
    name: str
    values: Tensor | None = None
    overwrites: bool = False
    per_position: bool = False

    def write(self, activation: Activation, rows: slice = slice(None), window: Window = Window()) -> None:
        """Make the edit in some rows of an activation that the caller owns; outside the window nothing is done.

        Raises:
            LabError: the site is not in the activation, or the new values do not fit it.
        """
        self.check_place(activation, window.start)
        index, axis = list(self.site.index), self.site.pos_axis
        if axis is not None and self.site.pos is not None:
            pos = self.site.pos % (activation.shape[axis] + window.start) - window.start
            if pos < 0:
                return
            index[axis] = pos
        where = (rows, *index[1:])
        activation[where] = self.applied(activation[where], window)

    def applied(self, old: Activation, window: Window = Window()) -> Activation:
        """The new values in the shape and dtype of the old ones.

        Raises:
            LabError: they do not fit.
        """
        return _fitted(self.new(old, window), old, self).to(old.dtype)

    def as_hook(self) -> tuple[str, Callable[..., Any]]:
        """The edit as (hook name, function), made in every row; row i runs prompt i."""

        @pure
        def hook(activation: Tensor, hook: Any = None) -> Tensor:
            edited = activation.clone()
            self.write(edited)
            return edited

        return self.site.hook_name, hook

    def check_place(self, activation: Tensor, start: int = 0) -> None:
        """Raises:
        LabError: the site picks what the activation, whose positions count from `start`, does not have.
        """
        for name, axis in self.site.picks.items():
            value = getattr(self.site, name)
            size = 0 if axis is None else activation.shape[axis] + (start if name == "pos" else 0)
            if not -size <= value < size:
                raise LabError(
                    f"{self.site} is outside the activation of shape {list(activation.shape)} "
                    f"(axes {' '.join(self.site.axes)})."
                )

    def check_prompts(self, n_prompts: int, n_pos: int) -> None:
        """Raises:
        LabError: the values were made for other prompts than these.
        """
        if self.values is None:
            return
        expected = {"batch": n_prompts} | dict.fromkeys((*POSITION_AXES, "k_pos"), n_pos)
        for axis, size in zip(self.site.free_axes, self.values.shape, strict=True):
            if size not in (1, expected.get(axis, size)):
                what = "prompts" if axis == "batch" else "positions"
                raise LabError(
                    f"{self}: its values are for {size} {what}, but the sweep's prompts have {expected[axis]}; take "
                    "them from a run of the same prompts, or average over what differs (mean(..., over=...))."
                )

    def __str__(self) -> str:
        return f"{self.name} {self.site}"


def replace(site: Site, source: Source) -> Edit:
    """The values of another run of the same prompts (activation patching). source: its cache."""
    return write(site, _at(site, source), "replace")


def freeze(site: Site, source: Source) -> Edit:
    """The values of the unedited run, whatever other edits do upstream. source: that run's cache."""
    return write(site, _at(site, source), "freeze")


def resample(site: Site, source: Source, order: Int[Tensor, "batch"]) -> Edit:
    """The values of other prompts: prompt i takes those of prompt `order[i]` in `source`."""
    values = _at(site, source)
    return write(site, values[order.to(values.device)], "resample")


def write(site: Site, values: Activation, name: str = "write") -> Edit:
    """These values. Their axes are those of the site (`site.free_axes`); an axis of size 1 stands for all.

    Raises:
        LabError: another number of axes.
    """
    values = _aligned(site, values)
    axes = site.free_axes
    return Edit(site, lambda old, window: window.of(values, axes).to(old), name, values, True, True)


def zero(site: Site) -> Edit:
    """Zeros. Off the distribution of what the model has seen: prefer `mean` or `resample` to ablate."""
    return Edit(site, lambda old, window: torch.zeros_like(old), "zero", overwrites=True, per_position=True)


def mean(
    site: Site, reference: Source, over: tuple[str, ...] = ("batch",), mask: Bool[Tensor, "batch pos"] | None = None
) -> Edit:
    """The mean over a reference set. reference: the cache of a run on it. over: the axes to average, the batch alone (a
    mean for each position), `("batch", "pos")`, or `("pos",)` for each prompt's own mean (then the reference holds the
    same prompts). mask: the reference's real tokens; without one, padding counts like any position.

    Raises:
        LabError: `over` names an axis that the activation does not have, or one that the site picks from.
    """
    axes = site.free_axes
    if not over or not set(over) <= set(axes):
        raise LabError(f"mean of {site} over {over}; expected some of {', '.join(axes)}.")
    values, dims = _at(site, reference), [axes.index(axis) for axis in over]
    if mask is None:
        return write(site, values.mean(dims, keepdim=True), "mean")
    real = mask.to(values.device) if site.pos is None else mask[:, site.pos].to(values.device)
    for axis, name in enumerate(axes):
        if name != "batch" and name not in POSITION_AXES:
            real = real.unsqueeze(axis)
    kept = torch.where(real, values, 0.0).sum(dims, keepdim=True, dtype=torch.promote_types(values.dtype, torch.float))
    return write(site, kept / real.expand_as(values).sum(dims, keepdim=True).clamp(min=1), "mean")


def add(site: Site, vector: Float[Tensor, "*axes"], scale: float = 1.0) -> Edit:
    """The old values plus `scale * vector` (steering). vector: anything that broadcasts to the site's values.

    Raises:
        LabError: a vector with more axes than the site.
    """
    values, axes = _aligned(site, scale * vector), site.free_axes

    def new(old: Tensor, window: Window) -> Tensor:
        return old + _fitted(window.of(values, axes).to(old), old, site)

    return Edit(site, new, "add", values, per_position=True)


def scale(site: Site, factor: float) -> Edit:
    """The old values times `factor`."""
    values = _aligned(site, torch.tensor(factor, dtype=torch.float64))
    return Edit(site, lambda old, window: old * factor, f"scale by {factor:g}", values, per_position=True)


def project_out(site: Site, direction: Float[Tensor, "width"]) -> Edit:
    """The old values without their component along `direction` (Arditi et al. 2024, arXiv:2406.11717).

    Raises:
        LabError: the direction is zero; when the edit is made, one of another width than the activation.
    """
    norm = direction.norm()
    if norm == 0:
        raise LabError(f"project_out at {site}: the direction is zero, so there is nothing to remove.")
    unit = direction / norm

    def new(old: Tensor, window: Window) -> Tensor:
        if unit.shape != old.shape[-1:]:
            raise LabError(f"project_out at {site}: a direction of shape {list(unit.shape)} for width {old.shape[-1]}.")
        along = unit.to(old)
        return old - (old @ along)[..., None] * along

    return Edit(site, new, "project out", _aligned(site, unit), per_position=True)


def knockout(site: Site) -> Edit:
    """No attention from the site's queries to its keys: their scores become the lowest number before the softmax
    (Geva et al. 2023, arXiv:2304.14767). site: of kind "attn_scores", one edge with head, pos and key.

    Raises:
        LabError: a site of another kind.
    """
    if site.kind != "attn_scores":
        raise LabError(f"knockout at {site}; expected a site of kind 'attn_scores'.")
    return Edit(
        site,
        lambda old, window: torch.full_like(old, torch.finfo(old.dtype).min),
        "knockout",
        overwrites=True,
        per_position=True,
    )


def check_row(row: Sequence[Edit]) -> None:
    """Raises:
    LabError: two of the edits contradict each other: the later overwrites what the earlier wrote.
    """
    by_hook: dict[str, list[Edit]] = defaultdict(list)
    for edit in row:
        by_hook[edit.site.hook_name].append(edit)
    for edits in by_hook.values():
        for earlier, later in combinations(edits, 2):
            if later.overwrites and _overlap(earlier.site, later.site):
                raise LabError(
                    f"two edits of a row contradict each other: {later} overwrites {earlier}; leave one of them out, "
                    "or put them in rows of their own."
                )


def _overlap(one: Site, other: Site) -> bool:
    """Whether two sites of one hook point share an entry; positions from the end are taken for different ones."""
    pairs = [(getattr(one, name), getattr(other, name)) for name in PICKS]
    return all(a is None or b is None or a == b for a, b in pairs)


def _aligned(site: Site, values: Tensor) -> Tensor:
    """The values with one axis for each of the site's, those that lack in front of size 1."""
    missing = len(site.free_axes) - values.ndim
    if missing < 0:
        raise LabError(
            f"values of shape {list(values.shape)} for {site}, which has the axes {' '.join(site.free_axes)}."
        )
    return values[(None,) * missing]


def _fitted(new: Tensor, old: Tensor, what: object) -> Tensor:
    """New values for all of the old ones.

    Raises:
        LabError: they do not fit.
    """
    try:
        return new.expand_as(old)
    except RuntimeError:
        shapes = f"values of shape {list(new.shape)} where the run has {list(old.shape)}"
        raise LabError(f"{what}: {shapes}; take them from a model and prompts like these.") from None


def _at(site: Site, source: Source) -> Activation:
    """The site's values in a cache, for all prompts."""
    return source[site.hook_name][site.index]
