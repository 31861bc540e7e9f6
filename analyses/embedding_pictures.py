"""Pictures of token and position vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped

from interp import text
from interp.style import AMOUNT, MAX_CELLS, OUTER, Axis, coloraxis, dress, inner_height, left_out, number_axes

if TYPE_CHECKING:
    import plotly.graph_objects as go

MAX_POINTS = 2000
MAX_NAMED = 150
"""Points of a scatter whose names stand beside them; the others tell theirs on hover."""


def ranked_figure(
    values: Float[np.ndarray, "row rank"],
    tokens: Shaped[np.ndarray, "row rank"],
    names: Sequence[str],
    row: str,
    unit: str,
    title: str = "",
) -> go.Figure:
    """Tokens in cells, the first on the left, coloured by their number; a row for each of `names`."""
    import plotly.graph_objects as go

    rows, ranks = (Axis(row, len(names), list(names)), Axis("rank", values.shape[1]))
    note = left_out((rows, MAX_CELLS), (ranks, MAX_CELLS))
    rows, ranks = rows.cut(MAX_CELLS), ranks.cut(MAX_CELLS)
    values, tokens = values[: rows.size, : ranks.size], tokens[: rows.size, : ranks.size]
    hover = [
        [
            f"<b>{rows.at(i)}, {ranks.at(j)}</b><br>{text.label(tokens[i, j], 40)}  {text.number(float(values[i, j]))}"
            for j in range(ranks.size)
        ]
        for i in range(rows.size)
    ]
    figure = go.Figure(
        go.Heatmap(
            z=values,
            text=[[text.label(token, 9) for token in line] for line in tokens],
            texttemplate="%{text}",
            textfont={"size": 11},
            hovertext=hover,
            hoverinfo="text",
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
        )
    )
    figure.update_layout(coloraxis=coloraxis(values, AMOUNT, unit))
    number_axes(figure, rows, ranks)
    return dress(figure, title, note, height=inner_height(rows.size) + OUTER)


def scatter_figure(
    coordinates: Float[np.ndarray, "point component"],
    explained: Float[np.ndarray, "component"],
    names: Sequence[str],
    first: int = 0,
    joined: bool = False,
    title: str = "",
) -> go.Figure:
    """Points on the components `first` and the one after it, with their names; joined: a line through them in order."""
    import plotly.graph_objects as go

    drawn = min(len(names), MAX_POINTS)
    across, up = first, min(first + 1, coordinates.shape[1] - 1)
    labels = [text.label(name) for name in names[:drawn]]
    mode = "+".join(["markers", *(["lines"] if joined else []), *(["text"] if drawn <= MAX_NAMED else [])])
    figure = go.Figure(
        go.Scatter(
            x=coordinates[:drawn, across],
            y=coordinates[:drawn, up],
            mode=mode,
            text=labels,
            textposition="top center",
            textfont={"size": 10},
            hovertext=[text.label(name, 60) for name in names[:drawn]],
            hoverinfo="text",
            marker={"color": np.arange(drawn), "colorscale": "Viridis", "size": 6},
            line={"color": "rgba(128,128,128,.4)", "width": 1},
        )
    )
    grid = {"gridcolor": "rgba(128,128,128,.2)", "zerolinecolor": "#888"}
    figure.update_xaxes(title_text=f"component {across + 1} ({explained[across]:.1%})", **grid)
    figure.update_yaxes(title_text=f"component {up + 1} ({explained[up]:.1%})", scaleanchor="x", **grid)
    return dress(figure, title, left_out((Axis("points", len(names)), drawn)), height=460)
