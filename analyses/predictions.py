"""How far apart the predictions of two models with one vocabulary are, at every position of the same text.

    kl = sum_v p_a(v) log(p_a(v) / p_b(v))        kl_back: with a and b exchanged
    agreement: the same likeliest token           overlap: |top k of a ∩ top k of b| / k

Cost: one forward of each model.
It does not show: which of the two is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.losses import mean_and_error
from analyses.same_text import Texts, of_both, same_text
from interp.contract import HookedModel
from interp.errors import LabError
from interp.results import Result, to_numpy

if TYPE_CHECKING:
    import plotly.graph_objects as go

TOP = 5
AT_ONCE = 256
"""Positions whose probabilities are held in float64 at a time."""


@dataclass(frozen=True, eq=False, repr=False)
class Predictions(Result):
    """Predictions of two models at each position, texts one after the other.

    kl: KL(a || b), kl_back: KL(b || a), in nats. agree: whether the likeliest token is the same. overlap: the share of
    the `k` likeliest tokens that is. position: in its text.
    """

    title = "Predictions of two models"
    shows = "how far what b predicts after each token is from what a predicts"
    caveat = "Which of the two is right is not seen."
    primary = "kl"
    unit = "nats"

    kl: Float[np.ndarray, "token"]
    kl_back: Float[np.ndarray, "token"]
    agree: Bool[np.ndarray, "token"]
    overlap: Float[np.ndarray, "token"]
    position: Int[np.ndarray, "token"]
    k: int

    @property
    def agreement(self) -> float:
        """The share of positions with the same likeliest next token."""
        return float(self.agree.mean())

    def summary(self) -> dict[str, tuple[float, float]]:
        """Mean and standard error over positions of each measure."""
        mean, error = mean_and_error(np.stack([self.kl, self.kl_back, self.agree.astype(np.float64), self.overlap]))
        names = ("KL(a || b)", "KL(b || a)", "same likeliest token", f"shared of the {self.k} likeliest")
        return {name: (float(m), float(e)) for name, m, e in zip(names, mean, error, strict=True)}

    def plot(self) -> go.Figure:
        from analyses.comparison_pictures import predictions_figure

        return predictions_figure(self)


def compare_predictions(a: HookedModel | Any, b: HookedModel | Any, texts: Texts, k: int = TOP) -> Predictions:
    """KL both ways and agreement of two models on the same text: `.kl[token]`, `.agreement`, `.summary()`.

    k: how many of the likeliest tokens `overlap` looks at; at most the whole vocabulary.

    Raises:
        LabError: different vocabularies, k below 1, or texts that the models do not read alike (see `same_text`).
    """
    if k < 1:
        raise LabError(f"k={k}: expected at least 1 of the likeliest tokens.")
    text = same_text(a, b, texts)
    text.need_predictions()
    k = min(k, a.cfg.d_vocab)

    def measure(rows_a: Int[Tensor, "batch pos"], rows_b: Int[Tensor, "batch pos"]) -> tuple[Tensor, ...]:
        logits = [model(rows.to(model.device)).cpu() for model, rows in ((a, rows_a), (b, rows_b))]
        if logits[0].shape != logits[1].shape:
            raise LabError(f"the models predict {logits[0].shape[-1]} and {logits[1].shape[-1]} tokens, not the same.")
        flat_a, flat_b = (rearrange(x, "batch pos d_vocab -> (batch pos) d_vocab").split(AT_ONCE) for x in logits)
        pieces = [_measures(x.double(), y.double(), k) for x, y in zip(flat_a, flat_b, strict=True)]
        found = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        return tuple(rearrange(x, "(batch pos) -> batch pos", batch=len(rows_a)) for x in found)

    kl, kl_back, agree, overlap = text.tokenwise(measure)
    return Predictions(
        to_numpy(kl),
        to_numpy(kl_back),
        to_numpy(agree),
        to_numpy(overlap),
        to_numpy(text.position),
        k,
        labels={"token": [word for words in text.words for word in words]},
        provenance=of_both(a, b, text),
    )


def _measures(
    logits_a: Float[Tensor, "token d_vocab"], logits_b: Float[Tensor, "token d_vocab"], k: int
) -> tuple[Float[Tensor, "token"], Float[Tensor, "token"], Bool[Tensor, "token"], Float[Tensor, "token"]]:
    """KL both ways, whether the likeliest token is the same, and the overlap of the k likeliest."""
    log_a, log_b = logits_a.log_softmax(-1), logits_b.log_softmax(-1)
    apart = log_a - log_b
    tops_a, tops_b = (log.topk(k).indices for log in (log_a, log_b))
    same = rearrange(tops_a, "token k -> token k 1") == rearrange(tops_b, "token k -> token 1 k")
    return (
        (log_a.exp() * apart).sum(-1),
        -(log_b.exp() * apart).sum(-1),
        log_a.argmax(-1) == log_b.argmax(-1),
        same.any(-1).double().mean(-1),
    )
