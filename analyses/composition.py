"""Composition scores: how much of what a head writes a later head's queries, keys or values read.

    score(sender, receiver) = |W_OV W| / (|W_OV| |W|)  -  the same of random matrices

in Frobenius norms, with W the receiver's W_QK ("Q"), W_QK^T ("K") or W_OV ("V"). Elhage et al. 2021, "A Mathematical
Framework for Transformer Circuits", "Analyzing a Two-Layer Model". Random matrices of these shapes have a score of
about 1/√d_model, so only what is above counts. Norms are folded as in `analyses.weights`.

Cost: no forward; products of [d_model d_head] matrices for each pair of heads, those of two layers at a time.
It does not show: whether the composition is used. A high score is room for a signal, not a signal, and heads also
compose through MLPs in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float

from analyses.weights import layer_ov, layer_qk
from interp import provenance
from interp.contract import HookedModel
from interp.errors import LabError
from interp.factored_matrix import FactoredMatrix, composition_scores
from interp.results import Result, to_numpy
from interp.style import SIGNED

if TYPE_CHECKING:
    import plotly.graph_objects as go

MODES = ("Q", "K", "V")
DRAWS = 64
"""Random pairs that the baseline is the mean of."""


@dataclass(frozen=True, eq=False, repr=False)
class HeadComposition(Result):
    """Scores above the random baseline of every head with every later head; NaN where the receiver is not later.

    raw: the scores themselves. baseline, spread: mean and standard deviation over random pairs of the same shapes.
    """

    title = "Composition scores"
    shows = "how much of what each head writes a later head's queries, keys or values read, above random weights"
    caveat = "Room for a signal, not a signal: whether the composition is used is for path patching to say."
    unit = "score above random"
    scale = SIGNED

    values: Float[np.ndarray, "mode sender receiver"]
    raw: Float[np.ndarray, "mode sender receiver"]
    baseline: float
    spread: float

    def plot(self) -> go.Figure:
        """A heatmap for each way to compose, without the heads of the last layer as senders and of the first as
        receivers, which have no scores."""
        from interp import pictures
        from interp.pictures import Axis

        known = ~np.isnan(self.values)
        senders, receivers = (np.flatnonzero(known.any(axes)).tolist() for axes in ((0, 2), (0, 1)))
        rows, columns = (
            Axis(name, len(kept), [str(self.labels[name][i]) for i in kept])
            for name, kept in (("sender", senders), ("receiver", receivers))
        )
        values = self.values[:, senders][:, :, receivers]
        panels = Axis("mode", len(MODES), list(MODES))
        return pictures.facets(values, panels, rows, columns, title=self.title, unit=self.unit, scale=SIGNED)


@torch.no_grad()
def head_composition(model: HookedModel | Any, seed: int = 0) -> HeadComposition:
    """Composition of every head with every later one: `.values[mode, sender, receiver]`, modes Q, K and V.

    Senders and receivers are all heads, layer by layer ("L0H3"). seed: of the random matrices.

    Raises:
        LabError: a model of one layer, or one in which the weights do not say what reaches the stream.
    """
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    if n_layers < 2:
        raise LabError(f"{model.cfg.model_name!r} has {n_layers} layer; composition takes a head and a later one.")
    ov = [layer_ov(model, layer) for layer in range(n_layers)]
    raw = torch.full((len(MODES), n_layers, n_heads, n_layers, n_heads), torch.nan, dtype=ov[0].A.dtype)
    for second in range(1, n_layers):
        qk = layer_qk(model, second)
        for first, (mode, receivers) in product(range(second), enumerate((qk, qk.T, ov[second]))):
            raw[mode, first, :, second] = composition_scores(ov[first], receivers).cpu()
    raw = rearrange(raw, "mode first head_1 second head_2 -> mode (first head_1) (second head_2)")
    baseline, spread = _random_scores(ov[0], seed)
    names = [f"L{layer}H{head}" for layer in range(n_layers) for head in range(n_heads)]
    return HeadComposition(
        to_numpy(raw - baseline),
        to_numpy(raw),
        baseline,
        spread,
        labels={"mode": list(MODES), "sender": names, "receiver": names},
        provenance=provenance.of(model, seed=seed, settings={"random pairs": DRAWS}),
    )


def _random_scores(like: FactoredMatrix, seed: int) -> tuple[float, float]:
    """Mean and standard deviation of the scores of Gaussian pairs with the shapes of a head's factors."""
    generator = torch.Generator().manual_seed(seed)
    wide, narrow = like.shape[-1], like.mdim
    factors = [torch.randn(DRAWS, *shape, generator=generator) for shape in ((wide, narrow), (narrow, wide)) * 2]
    pairs = FactoredMatrix(*factors[:2]), FactoredMatrix(*factors[2:])
    scores = composition_scores(*pairs, broadcast_dims=False)
    return float(scores.mean()), float(scores.std())
