"""Two models side by side on the same text: where they part, and whether they do the same in another way.

    difference(hook) = max |a - b|        relative(hook) = ||a - b|| / ||a||

Models of one architecture are compared hook point by hook point. Read along the depth, the first one that differs is
where a port goes wrong. Any two models that divide the text alike are compared in what does not depend on the basis:
`layers` (CKA), `heads` (patterns and roles), `lens` (what each depth would predict), `losses` (by token), and, with one
vocabulary, `predictions` (KL, agreement). Each is an analysis of its own, in a file of its own.

Models of any dtypes and devices are compared in float32 at least, sums of differences in float64.

Cost: six forwards of each model, one of which keeps every activation, and two on random tokens for the heads' roles.
It does not show: what either model uses of what both hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.losses import TokenLosses, compare_losses
from analyses.matching import HeadMatching, head_matching
from analyses.predictions import Predictions, compare_predictions
from analyses.same_text import SameText, Texts, of_both, same_text
from analyses.similarity import LayerSimilarity, layer_similarity
from analyses.trajectories import LensTrajectories, lens_trajectories
from interp.contract import HookedModel
from interp.errors import LabError
from interp.provenance import Provenance
from interp.results import Result

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from interp.page import Section

SIZES = ("n_layers", "n_heads", "d_model", "d_head")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Relative differences that rounding alone may make along the depth, by the coarser dtype of the two models."""


@dataclass(frozen=True, eq=False, repr=False)
class ComparisonResult(Result):
    """How far two models are apart, by hook point in the order of the forward, and everything else that was compared.

    relative: ||a - b|| / ||a||. difference: the largest |a - b|. Both are empty for models of different architectures.
    models: their names. tolerance: what counts as no difference, by default. left_out: which of the other parts are
    None, and why.
    """

    title = "Comparison of two models"
    shows = "how far the activations are apart at each hook point that both models have"
    caveat = "Two models may compute the same in different bases."
    primary = "relative"
    unit = "relative difference"

    relative: Float[np.ndarray, "hook"]
    difference: Float[np.ndarray, "hook"]
    models: tuple[str, str]
    tolerance: float
    layers: LayerSimilarity | None
    heads: HeadMatching | None
    lens: LensTrajectories | None
    predictions: Predictions | None
    losses: TokenLosses | None
    left_out: dict[str, str]

    @property
    def parts(self) -> dict[str, Result]:
        """What was compared beside the hook points, by name."""
        return {name: value for name, value in self.facts.items() if isinstance(value, Result)}

    @property
    def kl(self) -> Float[np.ndarray, "token"]:
        """KL(a || b) of the predictions at each position, in nats.

        Raises:
            LabError: the predictions were not compared.
        """
        return self._predictions().kl

    @property
    def agreement(self) -> float:
        """The share of positions with the same likeliest next token.

        Raises:
            LabError: the predictions were not compared.
        """
        return self._predictions().agreement

    def _predictions(self) -> Predictions:
        if self.predictions is None:
            raise LabError(f"the predictions were not compared: {self.left_out.get('predictions', 'not asked for')}")
        return self.predictions

    def first_difference(self, tolerance: float | None = None) -> str | None:
        """The first hook point whose relative difference exceeds `tolerance`; None when all agree.

        tolerance: by default what rounding may make in the coarser dtype of the two (`TOLERANCE`).

        Raises:
            LabError: the models have different architectures, so no hook point was compared.
        """
        if "hooks" in self.left_out:
            raise LabError(f"no hook point was compared: {self.left_out['hooks']}")
        limit = self.tolerance if tolerance is None else tolerance
        names = self.labels["hook"]
        return next((str(name) for name, r in zip(names, self.relative, strict=True) if not r <= limit), None)

    def plot(self) -> go.Figure:
        """The differences along the depth; for models of different architectures, the similarity of their layers.

        Raises:
            LabError: neither was compared.
        """
        from analyses.comparison_pictures import depth_figure

        if "hooks" not in self.left_out:
            return depth_figure(self)
        return self._first_part().plot()

    def to_dataframe(self, of: str | None = None) -> pd.DataFrame:
        """The differences by hook point, or, for models of different architectures, the first other part's table."""
        whole = of is not None or "hooks" not in self.left_out
        return super().to_dataframe(of) if whole else self._first_part().to_dataframe()

    def _first_part(self) -> Result:
        if not self.parts:
            raise LabError(f"nothing was compared: {' '.join(self.left_out.values())}")
        return next(iter(self.parts.values()))

    def sections(self) -> tuple[Section, ...]:
        """The differences along the depth, what was left out, and the parts."""
        from analyses.comparison_pictures import depth_figure
        from interp import markup
        from interp.page import Plot, Section

        names = markup.paragraph(f"a is {self.models[0]}, b is {self.models[1]}.")
        drawn = () if "hooks" in self.left_out else (Plot(depth_figure(self).update_layout(title=None)),)
        why = [markup.paragraph(f"not compared: {name}: {reason}") for name, reason in self.left_out.items()]
        whole = Section(self.title, (names, *drawn, *why), self.shows if drawn else "", self.caveat if drawn else "")
        return (whole, *(section for part in self.parts.values() for section in part.sections()))


def compare(
    a: HookedModel | Any,
    b: HookedModel | Any,
    texts: Texts,
    mask: Bool[Tensor, "_ _"] | None = None,
    seed: int = 0,
) -> ComparisonResult:
    """Compare two models on one text or several, or on token ids (a row, rows, or a list of rows).

    What two models of different sizes or vocabularies do not allow is left out, and `left_out` says why.
    mask: for rows of ids that are padded, which are real. seed: of the random tokens that heads' roles are scored on.

    Raises:
        LabError: texts that one of the models cannot take, or that they divide into different tokens.
    """
    text = same_text(a, b, texts, mask)
    left_out: dict[str, str] = {}

    def part(name: str, analysis: Callable[[], Any]) -> Any:
        try:
            return replace(analysis(), provenance=Provenance())  # the whole tells it once
        except LabError as refusal:
            left_out[name] = str(refusal)
            return None

    reason = other_sizes(a, b)
    apart = {} if reason else _differences(a, b, text)
    if not apart:
        left_out["hooks"] = reason or "the models share no hook point of the same shape."
    return ComparisonResult(
        np.array([relative for relative, _ in apart.values()]),
        np.array([largest for _, largest in apart.values()]),
        (a.cfg.model_name, b.cfg.model_name),
        max(TOLERANCE.get(model.dtype, TOLERANCE[torch.float32]) for model in (a, b)),
        layers=part("layers", lambda: layer_similarity(a, b, text)),
        heads=part("heads", lambda: head_matching(a, b, text, seed)),
        lens=part("lens", lambda: lens_trajectories(a, b, text)),
        predictions=part("predictions", lambda: compare_predictions(a, b, text)),
        losses=part("losses", lambda: compare_losses(a, b, text)),
        left_out=left_out,
        labels={"hook": list(apart)},
        provenance=of_both(a, b, text, seed=seed),
    )


def other_sizes(a: HookedModel | Any, b: HookedModel | Any) -> str:
    """In which sizes two models differ, in a sentence; empty when activations correspond one to one."""
    apart = [
        f"{size} {getattr(a.cfg, size)} and {getattr(b.cfg, size)}"
        for size in SIZES
        if getattr(a.cfg, size) != getattr(b.cfg, size)
    ]
    return f"the models have {', '.join(apart)}, so their hook points do not correspond." if apart else ""


def _differences(a: HookedModel | Any, b: HookedModel | Any, text: SameText) -> dict[str, tuple[float, float]]:
    """||a - b|| / ||a|| and max |a - b| over all texts, by hook point of the same name and shape."""
    apart: dict[str, Tensor] = {}
    together = a.device == b.device and a.device.type != "mps"  # which has no float64
    place = a.device if together else torch.device("cpu")
    with torch.inference_mode():
        for _, rows_a, rows_b in text.batches():
            _, cache_a = a.run_with_cache(rows_a.to(a.device))
            _, cache_b = b.run_with_cache(rows_b.to(b.device))
            for name in cache_a:
                if name in cache_b and cache_a[name].shape == cache_b[name].shape:
                    sums = _sums(cache_a[name].to(place), cache_b[name].to(place))
                    apart[name] = _joined(apart[name], sums) if name in apart else sums
    numbers = {name: sums.tolist() for name, sums in apart.items()}
    return {name: (sqrt(squares / (whole or 1.0)), largest) for name, (squares, whole, largest) in numbers.items()}


def _sums(a: Tensor, b: Tensor) -> Float[Tensor, "3"]:
    """||a - b||^2, ||a||^2 and max |a - b|."""
    hidden = _masked(a) & _masked(b)  # what neither model may see is the same, however it is marked
    wide_a, wide_b = (x.double().masked_fill(hidden, 0.0) for x in (a, b))
    apart = wide_a - wide_b
    return torch.stack([(apart**2).sum(), (wide_a**2).sum(), apart.abs().max()])


def _masked(activation: Tensor) -> Tensor:
    """Where attention scores are minus infinity, or the lowest number there is in its stead."""
    if not activation.is_floating_point():
        return torch.zeros_like(activation, dtype=torch.bool)
    return activation <= torch.finfo(activation.dtype).min / 2


def _joined(first: Float[Tensor, "3"], second: Float[Tensor, "3"]) -> Float[Tensor, "3"]:
    return torch.cat([(first + second)[:2], torch.maximum(first, second)[2:]])
