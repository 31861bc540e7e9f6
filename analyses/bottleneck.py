"""How well encoder-decoders write what they are asked for, against the length of what they read.

    accuracy(length) = share of the target's tokens that stand right in what the model writes by itself

A decoder that knows of its source only one vector of fixed size can hold so many symbols and no more, so its accuracy
falls with length; one that looks back at every position of the source has no such limit (Cho et al. 2014,
arXiv:1409.1259; Bahdanau et al. 2015, arXiv:1409.0473, fig. 2).

Cost: one greedy decoding of every source by every model.
It does not show: why a model fails, in its memory or in its training; nor lengths that it was never trained on, if
the sources are of lengths that it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp import provenance
from interp.errors import LabError
from interp.results import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

Written = Int[Tensor, "_ _"]  # the lengths of several tests differ


@dataclass(frozen=True, eq=False, repr=False)
class AccuracyByLength(Result):
    """Shares of right tokens by model and length of the source.

    values: share of all tokens. whole: share of the rows that are right from end to end. parameters: trainable numbers
    of each model. rows: sources of each length. chance: what guessing would reach.
    """

    title = "Accuracy by length"
    shows = "the share of the target's tokens that each model writes right, by the length of its source."
    caveat = "Greedy decoding: after a wrong token a model goes on from it, which may cost it the tokens after that."
    unit = "share of tokens right"

    values: Float[np.ndarray, "model length"]
    whole: Float[np.ndarray, "model length"]
    parameters: Int[np.ndarray, "model"]
    rows: int
    chance: float

    def of(self, model: str) -> Float[np.ndarray, "length"]:
        """The values of one model.

        Raises:
            LabError: there is no such model.
        """
        names = list(self.labels["model"])
        if model not in names:
            raise LabError(f"no model {model!r} here; expected one of {', '.join(map(str, names))}.")
        values: Float[np.ndarray, "length"] = self.values[names.index(model)]
        return values

    @property
    def through(self) -> Float[np.ndarray, "model length"]:
        """How many of the source's tokens came through: length · (accuracy - chance) / (1 - chance).

        What a model guesses it has right by chance alone; of the others all are right.
        """
        share = (self.values - self.chance) / (1 - self.chance)
        through: Float[np.ndarray, "model length"] = share * np.array(self.labels["length"], dtype=float)
        return through

    def plot(self) -> go.Figure:
        """A line for each model, and chance."""
        from interp import pictures
        from interp.style import Axis

        names = [f"{name} ({n:,} parameters)" for name, n in zip(self.labels["model"], self.parameters, strict=True)]
        lengths = self.labels["length"]
        figure = pictures.lines(
            dict(zip(names, self.values, strict=True)),
            Axis("length of the source", len(lengths), lengths),
            title=self.title,
            unit=self.unit,
        )
        for under, trace in enumerate(reversed(figure.data)):
            trace.line.width = 2 + 2 * under  # so that lines on one another are seen
        figure.add_hline(y=self.chance, line_dash="dot", line_color="#888", annotation_text="chance")
        figure.update_yaxes(range=[0, 1.05])
        return figure


def accuracy_by_length(
    models: Mapping[str, Any], tests: Sequence[tuple[Written, Written]], chance: float = 0.0
) -> AccuracyByLength:
    """What share of the targets each model writes right: `.values[model, length]`.

    models: encoder-decoders by name, with `generate(source, max_new_tokens=...)` that gives the start token and what
    comes after it. tests: sources [batch source_pos] and their targets [batch pos] without the start token, one
    pair for each length, all of as many rows. A model that stops early has the rest wrong.

    Raises:
        LabError: no models, no tests, tests of unequal numbers of rows or of the same length twice, or a model that
            has no encoder to read the sources.
    """
    _check(models, tests)
    values, whole = (np.zeros((len(models), len(tests))) for _ in range(2))
    for i, model in enumerate(models.values()):
        for j, (source, target) in enumerate(tests):
            right = _right(model, source, target)
            values[i, j], whole[i, j] = float(right.float().mean()), float(right.all(1).float().mean())
    hashes = {name: provenance.weights_hash(model) for name, model in models.items()}
    return AccuracyByLength(
        values,
        whole,
        np.array([sum(weight.numel() for weight in model.parameters()) for model in models.values()]),
        len(tests[0][0]),
        chance,
        labels={"model": list(models), "length": [source.shape[1] for source, _ in tests]},
        provenance=replace(provenance.of(None, settings={"weights": hashes}), model=", ".join(models)),
    )


@torch.no_grad()
def _right(model: Any, source: Written, target: Written) -> Bool[Tensor, "batch pos"]:
    """Which tokens of the target the model writes."""
    length = target.shape[1]
    written = model.generate(source.to(model.device), max_new_tokens=length)[:, 1:]
    right = torch.zeros(target.shape, dtype=torch.bool, device=written.device)
    right[:, : written.shape[1]] = written == target.to(written.device)[:, : written.shape[1]]
    return right


def _check(models: Mapping[str, Any], tests: Sequence[tuple[Written, Written]]) -> None:
    if not models or not tests:
        raise LabError(f"given {len(models)} models and {len(tests)} tests; expected at least one of each.")
    without = [name for name, model in models.items() if not hasattr(model, "encoder")]
    if without:
        raise LabError(f"{', '.join(without)}: no encoder that could read a source; expected encoder-decoders.")
    lengths, rows = [source.shape[1] for source, _ in tests], {len(each) for pair in tests for each in pair}
    if len(rows) > 1 or len(set(lengths)) < len(lengths):
        raise LabError(
            f"tests of lengths {lengths} with {sorted(rows)} rows; expected each length once, all of as many rows."
        )
