"""Random sweeps for tests, and the naive loop that they are compared with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from interp import LabError, PromptPairs, edits
from interp.edits import Edit, check_row
from interp.sites import KINDS, PICKS, POSITION_AXES, Site
from interp.sweep import costs
from interp.sweep.survey import Row
from models import GPT


def naive(model: Any, pairs: PromptPairs, rows: Sequence[Row], metric: Any) -> np.ndarray:
    """The metric [row prompt] by one whole run of all prompts for each row, its edits on hooks."""
    values = []
    for row in rows:
        with torch.no_grad(), model.hooks([edit.as_hook() for edit in row]):
            values.append(metric(model(pairs.clean, attention_mask=pairs.mask), pairs).double().numpy())
    return np.stack(values)


@contextmanager
def every_start_apart() -> Iterator[None]:
    """Rows that start at different positions do not share a climb: in models this small they always would."""
    with patch.dict(costs.LAUNCH, cpu=0.0):
        yield


def least_budget(ask: Callable[[int], Any]) -> int:
    """The bytes that are needed at least, which the refusal of one byte names."""
    with pytest.raises(LabError, match=r"a budget of .* is too small for one row") as refusal:
        ask(1)
    found = re.search(r"at least (\d+) bytes", str(refusal.value))
    assert found is not None
    return int(found[1])


def cached(model: GPT, pairs: PromptPairs) -> Any:
    """Every activation of the corrupted prompts."""
    with torch.no_grad():
        return model.run_with_cache(pairs.corrupted, attention_mask=pairs.mask, names_filter=lambda name: True)[1]


def present_kinds(model: GPT) -> list[str]:
    """The kinds of site that the model has."""
    return [
        kind for kind, entry in KINDS.items() if Site(kind, 0 if entry.per_layer else None).hook_name in model.hook_dict
    ]


class Dice:
    """Random sites, edits and rows for one model and its prompts; the same for the same seed.

    No edit makes a number undefined: in a whole run one at a later position reaches the earlier ones, as attention
    multiplies it by a weight of zero, and a sweep does not run those.
    """

    def __init__(self, model: GPT, pairs: PromptPairs, seed: int) -> None:
        self.model, self.pairs = model, pairs
        self.generator = torch.Generator().manual_seed(seed)
        self.cache = cached(model, pairs)
        self.kinds = present_kinds(model)

    def below(self, n: int) -> int:
        return int(torch.randint(n, (1,), generator=self.generator))

    def site(self, kind: str | None = None) -> Site:
        """A whole activation, or any part of one; a position may count from the end."""
        kind = kind or self.kinds[self.below(len(self.kinds))]
        whole = Site(kind, self.below(self.model.cfg.n_layers) if KINDS[kind].per_layer else None)
        picks = {}
        for name, axes in PICKS.items():
            axis = next((i for i, axis in enumerate(whole.axes) if axis in axes), None)
            if axis is not None and self.below(2):
                size = self.cache[whole.hook_name].shape[axis]
                picks[name] = self.below(size) - (size if name == "pos" and self.below(4) == 0 else 0)
        return Site(kind, whole.layer, **picks)

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def edit(self, site: Site) -> Edit:
        """One of the edits that exist, at this site."""
        old = self.cache[site.hook_name][site.index]
        makers: list[Callable[[], Edit]] = [
            lambda: edits.replace(site, self.cache),
            lambda: edits.scale(site, 0.5),
            lambda: edits.scale(site, 1.0),  # changes nothing, so that the others of its row say where it starts
            lambda: edits.resample(site, self.cache, torch.randperm(len(old), generator=self.generator)),
            lambda: self.mean(site),
            lambda: mixing_positions(site),
        ]
        if site.kind == "attn_scores":  # masked ones hold the lowest number, to which nothing can be added
            makers.append(lambda: edits.knockout(site))
        else:
            makers.append(lambda: edits.add(site, self.random(old.shape[-1]).abs(), 0.5))
        if not site.kind.endswith(".scale"):  # norms divide by them
            makers.append(lambda: edits.zero(site))
            makers.append(lambda: edits.write(site, self.random(1, *old.shape[1:])))
            if "one" not in site.axes and site.free_axes[-1] == site.axes[-1]:
                makers.append(lambda: edits.project_out(site, self.random(old.shape[-1])))
        return makers[self.below(len(makers))]()

    def mean(self, site: Site) -> Edit:
        """Over prompts, over positions, or over both, of the real tokens or of all."""
        positions = [axis for axis in site.free_axes if axis == "pos"]
        over = [("batch",), ("batch", *positions), tuple(positions) or ("batch",)][self.below(3)]
        return edits.mean(site, self.cache, over, self.pairs.mask if self.below(2) else None)

    def row(self, n_edits: int) -> list[Edit]:
        """Some edits that do not contradict each other."""
        while True:
            row = [self.edit(self.site()) for _ in range(n_edits)]
            try:
                check_row(row)
            except LabError:
                continue
            return row

    def rows(self, n: int) -> list[list[Edit]]:
        """The unedited run, every kind of site, and rows of several edits."""
        singles = [[self.edit(self.site(kind))] for kind in self.kinds]
        return [[], *singles, *(self.row(2 + self.below(3)) for _ in range(n))]


def mixing_positions(site: Site) -> Edit:
    """Turns the positions round: what is written at one depends on another, and the first on the last."""
    axes = [axis for axis, name in enumerate(site.free_axes) if name in POSITION_AXES]
    return Edit(site, lambda old, window: old.flip(axes), "flip")
