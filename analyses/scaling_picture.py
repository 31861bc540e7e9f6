"""A scaling law as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from interp import text
from interp.style import dress

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from analyses.scaling import ScalingLaw

COLOURS = ("#c6dbef", "#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b")
POINTS = 40
"""Of a line."""


def scaling_figure(found: ScalingLaw) -> go.Figure:
    """Loss over tokens for each size: points as measured, lines by the law, the larger the darker."""
    import plotly.graph_objects as go

    figure = go.Figure()
    sizes = sorted(set(found.parameters.tolist()))
    along = np.geomspace(found.tokens.min(), found.tokens.max(), POINTS)
    for i, size in enumerate(sizes):
        mine = found.parameters == size
        name = f"{size:,.0f} parameters"
        colour = COLOURS[round(i * (len(COLOURS) - 1) / max(1, len(sizes) - 1))]
        points = zip(found.tokens[mine], found.loss[mine], found.fitted[mine], strict=True)
        hover = [
            f"{name}<br>{tokens:,.0f} tokens<br>measured {text.number(loss, signed=False)}, by the law "
            f"{text.number(fitted, signed=False)}"
            for tokens, loss, fitted in points
        ]
        common = {"name": name, "legendgroup": name, "hoverinfo": "text"}
        figure.add_scatter(
            x=found.tokens[mine], y=found.loss[mine], mode="markers", marker_color=colour, hovertext=hover, **common
        )
        by_law = found.law(np.full(POINTS, size), along)
        line = {"color": colour, "width": 1.5}
        figure.add_scatter(
            x=along, y=by_law, mode="lines", line=line, showlegend=False, **(common | {"hoverinfo": "skip"})
        )
    figure.update_xaxes(type="log", title_text="tokens of training")
    figure.update_yaxes(type="log", title_text="loss, nats", gridcolor="rgba(128,128,128,.2)")
    return dress(figure, found.title, "", height=420)
