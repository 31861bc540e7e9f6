"""What `interp compare` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rich.console import RenderableType

from analyses.command_line.tables import grid, table, top, unsigned
from analyses.losses import MEASURES
from interp import text

if TYPE_CHECKING:
    from analyses.comparison import ComparisonResult
    from analyses.losses import TokenLosses
    from analyses.matching import HeadMatching
    from analyses.predictions import Predictions
    from analyses.training_checkpoints import TrainingCourse
    from analyses.trajectories import LensTrajectories

View = list[RenderableType]


def comparison_view(found: ComparisonResult, k: int) -> View:
    """Where two models part, how far apart their predictions are, and how alike their layers and heads."""
    shown: View = [f"a is {found.models[0]}, b is {found.models[1]}"]
    if "hooks" not in found.left_out:
        first, limit = found.first_difference(), f"{found.tolerance:g}"
        agree = f"no hook point differs by more than {limit} of its norm"
        shown += [agree if first is None else f"first differ at {first} (by more than {limit} of its norm)"]
        apart = [entry for entry in found.top(k) if entry.value != 0]
        shown += [top(apart, "furthest apart", "relative difference")] if apart else []
    if found.predictions is not None:
        shown += _predictions(found.predictions)
    if found.losses is not None:
        shown += _losses(found.losses)
    if found.layers is not None:
        shown += [f"{found.layers.shows} ({found.layers.tokens} positions)", *grid(found.layers)]
    if found.heads is not None:
        shown += _heads(found.heads, k)
    if found.lens is not None:
        shown += _lens(found.lens)
    return shown + [f"not compared: {name}: {reason}" for name, reason in found.left_out.items()]


def _predictions(found: Predictions) -> View:
    rows = [(name, unsigned(mean), unsigned(error)) for name, (mean, error) in found.summary().items()]
    return [
        f"same likeliest token at {found.agreement:.1%} of {len(found.kl)} positions",
        table(["predictions", "mean", "standard error"], rows),
    ]


def _losses(found: TokenLosses) -> View:
    groups = found.by_class()
    names = [str(name) for name in groups.labels["group"]]
    rows = [
        (
            name,
            int(groups.count[i]),
            *map(unsigned, groups.values[:2, i]),
            groups.values[2, i],
            unsigned(groups.error[2, i]),
        )
        for i, name in enumerate(names)
    ]
    return [found.shows, table(["tokens", "how many", *MEASURES, "standard error"], rows)]


def _heads(found: HeadMatching, k: int) -> View:
    if np.isnan(found.pattern).all():
        return ["where the heads look is not a number in one of the models"]
    matches = found.matches()
    mutual = sum(match.mutual for match in matches)
    best = sorted(matches, key=lambda match: -match.similarity)[:k]
    rows = [(m.a, m.b, f"{m.similarity:.3f}", "mutual" if m.mutual else "") for m in best]
    return [
        f"{mutual} of {len(matches)} heads of a are, by where they look, the best match of their own best match in b",
        table(["head of a", "most like it in b", "similarity", ""], rows),
    ]


def _lens(found: LensTrajectories) -> View:
    measures = [str(name) for name in found.labels["measure"]]
    shown: View = [found.shows]
    for side, values in (("a", found.a), ("b", found.b)):
        layers = found.labels[f"layer_{side}"]
        rows = [(str(layer), *map(unsigned, column)) for layer, column in zip(layers, np.abs(values.T), strict=True)]
        shown.append(table([f"{side}, after layer", *measures], rows))
    return shown


def course_view(found: TrainingCourse) -> View:
    """A row for each checkpoint."""
    rows = [(row[0], *(text.number(float(value), signed=False) for value in row[1:])) for row in found.rows()]
    return [f"{found.provenance.model}: {found.shows}", table(found.columns(), rows)]
