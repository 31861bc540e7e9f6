"""Edits as values: what to write at a site, in which prompts' runs.

An `Edit` names a site and a pure function from the old values there to the new ones. Built by the functions
below, it can be printed, put into a sweep, or hooked onto one run:

    with model.hooks([zero(Site("z", 1, head=3)).as_hook()]):
        logits = model(tokens)

A hook made of an edit returns a new tensor and leaves the one that it was given alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import LabError
from interp.markers import pure
from interp.sites import Site

Activation = Float[Tensor, "batch *axes"]
Prompts = Int[Tensor, "row"]
Source = Mapping[str, Tensor]


@dataclass(frozen=True)
class Edit:
    """Write `new(old, prompts)` at `site`.

    old: the site's values, [batch *axes] without the axes that the site picks from. prompts: for each row of
    the batch, the number of the prompt that it runs, so that values can come from another run of the same prompt.
    """

    site: Site
    new: Callable[[Activation, Prompts], Activation]
    name: str

    def write(self, activation: Activation, rows: slice, prompts: Prompts) -> None:
        """Make the edit in some rows of an activation that the caller owns.

        Raises:
            LabError: the site's head or position does not exist in the activation.
        """
        self._check(activation)
        where = (rows, *self.site.index[1:])
        activation[where] = self.new(activation[where], prompts).to(activation.dtype)

    def as_hook(self) -> tuple[str, Callable[..., Any]]:
        """The edit as (hook name, function), made in every row; row i runs prompt i."""

        @pure
        def hook(activation: Tensor, hook: Any = None) -> Tensor:
            edited = activation.clone()
            self.write(edited, slice(None), torch.arange(len(activation), device=activation.device))
            return edited

        return self.site.hook_name, hook

    def _check(self, activation: Tensor) -> None:
        for axis, value in ((self.site.head_axis, self.site.head), (self.site.pos_axis, self.site.pos)):
            if axis is not None and value is not None and not -activation.shape[axis] <= value < activation.shape[axis]:
                raise LabError(
                    f"{self.site} is outside the activation of shape {list(activation.shape)} "
                    f"(axes {' '.join(self.site.axes)})."
                )

    def __str__(self) -> str:
        return f"{self.name} {self.site}"


def replace(site: Site, source: Source) -> Edit:
    """The values of another run of the same prompts (activation patching). source: its cache."""
    values = _at(site, source)
    return Edit(site, lambda old, prompts: values[prompts.to(values.device)].to(old.device), "replace")


def freeze(site: Site, source: Source) -> Edit:
    """The values of the unedited run, whatever other edits do upstream. source: that run's cache."""
    return Edit(site, replace(site, source).new, "freeze")


def resample(site: Site, source: Source, order: Int[Tensor, "batch"]) -> Edit:
    """The values of other prompts: prompt i takes those of prompt `order[i]` in `source`."""
    values = _at(site, source)[order.to(_at(site, source).device)]
    return Edit(site, lambda old, prompts: values[prompts.to(values.device)].to(old.device), "resample")


def zero(site: Site) -> Edit:
    """Zeros. Off the distribution of what the model has seen: prefer `mean` or `resample` to ablate."""
    return Edit(site, lambda old, prompts: torch.zeros_like(old), "zero")


def mean(site: Site, reference: Source, over: tuple[str, ...] = ("batch",)) -> Edit:
    """The mean over a reference set. reference: the cache of a run on it, where padding counts like any position.
    over: the axes to average, the batch alone (a mean for each position), `("batch", "pos")`, or `("pos",)` for each
    prompt's own mean (then the reference holds the same prompts).

    Raises:
        LabError: `over` names an axis that the activation does not have, or one that the site picks from.
    """
    taken = [i for i, value in ((site.head_axis, site.head), (site.pos_axis, site.pos)) if value is not None]
    free = [axis for i, axis in enumerate(site.axes) if i not in taken]
    if not over or not set(over) <= set(free):
        raise LabError(f"mean of {site} over {over}; expected some of {', '.join(free)}.")
    whole = reference[site.hook_name].mean([site.axes.index(axis) for axis in over], keepdim=True)[site.index]
    if "batch" in over:
        return Edit(site, lambda old, prompts: whole.to(old).expand_as(old), "mean")
    return Edit(site, lambda old, prompts: whole[prompts.to(whole.device)].to(old).expand_as(old), "mean")


def add(site: Site, vector: Float[Tensor, "*axes"], scale: float = 1.0) -> Edit:
    """The old values plus `scale * vector` (steering). vector: anything that broadcasts to the site's values."""
    return Edit(site, lambda old, prompts: old + scale * vector.to(old), "add")


def scale(site: Site, factor: float) -> Edit:
    """The old values times `factor`."""
    return Edit(site, lambda old, prompts: old * factor, f"scale by {factor:g}")


def project_out(site: Site, direction: Float[Tensor, "width"]) -> Edit:
    """The old values without their component along `direction` (Arditi et al. 2024, arXiv:2406.11717).

    Raises:
        LabError: the direction is zero; when the edit is made, one of another width than the activation.
    """
    norm = direction.norm()
    if norm == 0:
        raise LabError(f"project_out at {site}: the direction is zero, so there is nothing to remove.")
    unit = direction / norm

    def new(old: Tensor, prompts: Tensor) -> Tensor:
        if unit.shape != old.shape[-1:]:
            raise LabError(f"project_out at {site}: a direction of shape {list(unit.shape)} for width {old.shape[-1]}.")
        along = unit.to(old)
        return old - (old @ along)[..., None] * along

    return Edit(site, new, "project out")


def _at(site: Site, source: Source) -> Activation:
    """The site's values in a cache, for all prompts."""
    return source[site.hook_name][site.index]
