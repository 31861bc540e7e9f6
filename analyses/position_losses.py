"""The loss at each position of long rows: what a model does beyond the length that it was trained on.

    loss(pos) = mean over rows of  -log p(token at pos | tokens before it),  in nats

Of several models that differ in one thing, such as how they encode positions, each trained a few times (Press et al.
2021, "Train Short, Test Long", arXiv:2108.12409).

Cost: one forward of each model on the rows.
It does not show: why the loss rises. More context also makes a token easier, so compare models at one position, not
positions of one model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.losses import next_losses
from interp import provenance
from interp.contract import HookedModel
from interp.errors import LabError
from interp.results import Result, to_numpy
from interp.style import AMOUNT

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.page import Section

BAND = 8
"""Positions that a point of the picture is the mean of."""
CHUNK = 32


@dataclass(frozen=True, eq=False, repr=False)
class LossByPosition(Result):
    """The mean loss at each position but the first, which nothing foretells, in nats.

    kind: what the models differ in. run: models of one kind, trained from different seeds. trained_on: the positions
    that were seen in training; None where that is not known.
    """

    title = "Loss by position"
    shows = "how well models predict at each position of rows longer than those of their training"
    caveat = "More context also makes a token easier: compare models at one position, not positions of one model."
    unit = "nats"
    scale = AMOUNT

    values: Float[np.ndarray, "kind run pos"]
    trained_on: int | None

    def between(self, start: int, stop: int) -> Float[np.ndarray, "kind run"]:
        """The mean loss at the positions from `start` to `stop - 1`.

        Raises:
            LabError: no such positions.
        """
        n = self.values.shape[-1]
        if not 1 <= start < stop <= n + 1:
            raise LabError(f"positions {start} to {stop - 1}; expected some from 1 to {n}.")
        return self.values[:, :, start - 1 : stop - 1].mean(-1)

    def spans(self) -> list[tuple[int, int]]:
        """Tokens told from positions of training alone, then to twice, four times, ... as many; or all tokens.

        The token at `trained_on` is told from the positions before it, which training had.
        """
        end = self.values.shape[-1] + 1
        start, last, found = 1, self.trained_on or end, []
        while start < end:
            found.append((start, min(last + 1, end)))
            start, last = last + 1, 2 * last
        return found

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headings and rows: for each kind the mean of its runs over each span, and the range of the runs."""
        headings = ["positions", *(f"{start} to {stop - 1}" for start, stop in self.spans())]
        means = [self.between(*span) for span in self.spans()]
        cells = [[f"{m[i].mean():.2f} ({m[i].min():.2f} to {m[i].max():.2f})" for m in means] for i in self._kinds()]
        return headings, [[str(self.labels["kind"][i]), *row] for i, row in zip(self._kinds(), cells, strict=True)]

    def plot(self) -> go.Figure:
        """A line for each kind, the mean of its runs over bands of positions; a dashed one where training ended."""
        from interp import pictures
        from interp.pictures import Axis

        starts = list(range(1, self.values.shape[-1] + 1, BAND))
        ends = [min(start + BAND, self.values.shape[-1] + 1) for start in starts]
        bands = np.stack([self.between(*band).mean(-1) for band in zip(starts, ends, strict=True)], -1)
        series = {str(self.labels["kind"][i]): bands[i] for i in self._kinds()}
        figure = pictures.lines(series, Axis("pos", len(starts), starts), title=self.title, unit=self.unit)
        if self.trained_on is not None:
            figure.add_vline(x=self.trained_on / BAND - 0.5, line_dash="dash", line_color="#888")
        return figure

    def sections(self) -> tuple[Section, ...]:
        """The curves, and the means over spans with the range of the runs."""
        from interp import markup
        from interp.page import Plot, Section

        figure = self.plot().update_layout(title=None)
        return (Section(self.title, (Plot(figure), markup.table(*self.table())), self.shows, self.caveat),)

    def _kinds(self) -> range:
        return range(self.values.shape[0])


def loss_by_position(
    models: Mapping[str, Sequence[HookedModel | Any]],
    rows: Int[Tensor, "batch pos"],
    trained_on: int | None = None,
    seed: int | None = None,
) -> LossByPosition:
    """The loss of some models at each position of the same rows of token ids: `.values[kind, run, pos]`.

    models: for each kind, one model or more, as many of each. trained_on: positions of a row in their training.
    seed: of the first run, for the provenance.

    Raises:
        LabError: no models, unequal numbers of them, or rows that are longer than one of their windows or hold
            tokens that one of them does not have.
    """
    numbers = {len(runs) for runs in models.values()}
    if len(numbers) != 1 or 0 in numbers:
        given = ", ".join(f"{name}: {len(runs)}" for name, runs in models.items()) or "none"
        raise LabError(f"models of each kind: {given}; expected as many of each, at least one.")
    everyone = [model for runs in models.values() for model in runs]
    for model in everyone:
        _check(model, rows)
    values = [[_by_position(model, rows) for model in runs] for runs in models.values()]
    hashes = {name: [provenance.weights_hash(model) for model in runs] for name, runs in models.items()}
    return LossByPosition(
        np.stack([np.stack(runs) for runs in values]),
        trained_on,
        labels={"kind": list(models), "pos": list(range(1, rows.shape[1]))},
        provenance=provenance.of(everyone[0], prompts=rows, seed=seed, settings={"weights of each": hashes}),
    )


def _check(model: HookedModel | Any, rows: Int[Tensor, "batch pos"]) -> None:
    name, n_ctx, d_vocab = model.cfg.model_name, model.cfg.n_ctx, model.cfg.d_vocab
    if rows.shape[1] < 2 or not len(rows):
        raise LabError(f"rows of shape {list(rows.shape)}; expected [batch pos] with at least two positions.")
    if rows.shape[1] > n_ctx:
        raise LabError(
            f"rows of {rows.shape[1]} positions do not fit the window of {name!r}, {n_ctx} (n_ctx).  Where positions "
            "are computed, not learned, models.context.with_context gives the model a longer one."
        )
    if int(rows.min()) < 0 or int(rows.max()) >= d_vocab:
        raise LabError(
            f"token ids from {int(rows.min())} to {int(rows.max())}; {name!r} has those from 0 to {d_vocab - 1}."
        )


def _by_position(model: HookedModel | Any, rows: Int[Tensor, "batch pos"]) -> Float[np.ndarray, "later_pos"]:
    with torch.inference_mode():
        losses = torch.cat([next_losses(model, some) for some in rows.cpu().split(CHUNK)])
    return to_numpy(losses[:, 1:].mean(0))
