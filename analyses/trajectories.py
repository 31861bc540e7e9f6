"""How two models make up their minds along their depth: the logit lens of each, averaged over the same text.

    entropy, KL(final || layer), and the loss, probability and rank of the text's own next token, after each layer

What each layer holds is read as in `logit_lens` (nostalgebraist 2020); models of different depth are laid over each
other by relative depth, layer / n_layers. Means are over all positions that have a next token; their standard errors
take positions as independent, which is optimistic within a text.

Cost: one forward of each model per text, and an unembedding per layer.
It does not show: what early layers hold in a basis that the unembedding does not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from analyses.lens import LensResult, logit_lens
from analyses.losses import check_foretells, mean_and_error
from analyses.same_text import Row, Texts, of_both, same_text
from analyses.similarity import layer_names
from interp.contract import HookedModel
from interp.errors import LabError
from interp.results import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

MEASURES = ("entropy", "KL to final", "loss", "probability", "rank")
"""Of the lens at each layer; the last three of the text's own next token. In nats, but for probability and rank."""


@dataclass(frozen=True, eq=False, repr=False)
class LensTrajectories(Result):
    """Means of the lens of two models after each layer, [measure layer]; row 0 is the embedding.

    error_a, error_b: standard errors of the means.
    """

    title = "What each depth would predict"
    shows = "how the predictions of two models take shape along their depth (logit lens)"
    caveat = "Early streams may hold what later layers read in another basis."
    primary = "a"

    a: Float[np.ndarray, "measure layer_a"]
    b: Float[np.ndarray, "measure layer_b"]
    error_a: Float[np.ndarray, "measure layer_a"]
    error_b: Float[np.ndarray, "measure layer_b"]

    def plot(self) -> go.Figure:
        """A panel for each measure, with a line for each model over the relative depth."""
        from analyses.comparison_pictures import trajectories_figure

        return trajectories_figure(self)


def lens_trajectories(a: HookedModel | Any, b: HookedModel | Any, texts: Texts) -> LensTrajectories:
    """The mean logit lens of two models on the same text, layer by layer: `.a[measure, layer_a]`, `.b`.

    Raises:
        LabError: texts that the models do not read alike (see `same_text`), or no text of two tokens.
    """
    text = same_text(a, b, texts)
    text.need_next_tokens()
    mean_a, error_a = _trajectory(a, text.rows_a)
    mean_b, error_b = _trajectory(b, text.rows_b)
    return LensTrajectories(
        mean_a,
        mean_b,
        error_a,
        error_b,
        labels={"measure": MEASURES, "layer_a": layer_names(a), "layer_b": layer_names(b)},
        provenance=of_both(a, b, text, site="resid_post"),
    )


def _trajectory(
    model: HookedModel | Any, rows: Sequence[Row]
) -> tuple[Float[np.ndarray, "measure layer"], Float[np.ndarray, "measure layer"]]:
    """Means over all positions that have a next token, and their standard errors."""
    check_foretells(model)
    return mean_and_error(np.concatenate([_measures(logit_lens(model, row)) for row in rows if len(row) > 1], -1))


def _measures(lens: LensResult) -> Float[np.ndarray, "measure layer token"]:
    next_ids: Int[np.ndarray, "token"] = lens.tokens[1:]
    logits = lens.logits[:, :-1].astype(np.float64)
    if next_ids.max() >= logits.shape[-1]:
        raise LabError(f"the model predicts {logits.shape[-1]} tokens only, and the text has others.")
    top = logits.max(-1, keepdims=True)
    log_probs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    right = np.take_along_axis(log_probs, next_ids[None, :, None], -1)
    rank = (log_probs > right).sum(-1).astype(np.float64)
    return np.stack([lens.entropy[:, :-1], lens.kl[:, :-1], -right[..., 0], np.exp(right[..., 0]), rank])
