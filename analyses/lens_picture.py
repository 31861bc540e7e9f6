"""The logit lens as a picture: in each cell the token a layer would say, its rivals on hover."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analyses.labels import token_texts

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from analyses.lens import LensResult

__all__ = ["lens_figure", "token_texts"]


def lens_figure(lens: LensResult, target: int | None = None, target_text: str = "the answer") -> go.Figure:
    """The lens grid: layers down, positions across; the colour is the probability of the top token.

    target: a token whose rank is told on hover, such as the right answer, under the name `target_text`.
    """
    from interp.pictures import Axis, lens_grid

    shape = lens.likely.shape
    return lens_grid(
        lens.likely,
        np.take_along_axis(lens.probabilities(), lens.top_tokens(shape[-1]), axis=-1),
        Axis("layer", shape[0], lens.labels.get("layer")),
        Axis("pos", shape[1], lens.labels.get("pos")),
        target=target_text,
        target_rank=None if target is None else lens.rank(target),
        title=lens.title,
    )
