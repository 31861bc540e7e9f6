"""The logit lens as a picture: in each cell the token a layer would say, its rivals on hover."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from analyses.lens import LensResult
from interp.contract import HookedModel

if TYPE_CHECKING:
    import plotly.graph_objects as go


def lens_figure(model: HookedModel | Any, lens: LensResult, target: int | None = None, k: int = 5) -> go.Figure:
    """The lens grid: layers down, positions across; the colour is the probability of the top token.

    Args:
        model: the model of the lens, for the text of its tokens.
        lens: what to draw.
        target: a token whose rank is told on hover, such as the right answer.
        k: how many tokens to list on hover.
    """
    from interp.pictures import Axis, lens_grid

    ids = lens.top_tokens(min(k, lens.logits.shape[-1]))
    probs = np.take_along_axis(lens.probabilities(), ids, axis=-1)
    return lens_grid(
        token_texts(model, ids),
        probs,
        Axis("layer", ids.shape[0], lens.labels.get("layer")),
        Axis("pos", ids.shape[1], lens.labels.get("pos")),
        target=None if target is None else str(token_texts(model, np.array([target]))[0]),
        target_rank=None if target is None else lens.rank(target),
    )


def token_texts(model: HookedModel | Any, ids: Int[np.ndarray, "*axes"]) -> np.ndarray:
    """The text of each id, in the same arrangement; each different id is looked up once."""
    import torch

    unique, places = np.unique(ids, return_inverse=True)
    return np.array(model.to_str_tokens(torch.from_numpy(unique)), dtype=str)[places].reshape(ids.shape)
