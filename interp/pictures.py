"""Pictures of labelled numbers: plotly figures that are honest about what they leave out.

Axes are numeric with the labels as tick text (labels that repeat, as tokens do, would otherwise merge their
columns), every label is escaped, and what is cut off is said in the picture. Plotly is imported when a
picture is made, not before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, Num

from interp import text
from interp.errors import LabError
from interp.style import (
    AMOUNT,
    BETWEEN,
    MAX_CELLS,
    MAX_FACETS,
    OUTER,
    SHARE,
    SIGNED,
    Axis,
    Scale,
    coloraxis,
    dress,
    inner_height,
    left_out,
    number_axes,
    suited,
)

__all__ = ["AMOUNT", "SHARE", "SIGNED", "Axis", "Scale", "bars", "facets", "heatmap", "lens_grid", "lines", "of_result"]

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.results import Result


def heatmap(
    values: Num[np.ndarray, "rows columns"],
    rows: Axis,
    columns: Axis,
    *,
    title: str = "",
    unit: str = "",
    scale: Scale = SIGNED,
) -> go.Figure:
    """`values` as coloured cells, the first row on top; where each stands and its number on hover."""
    return facets(values[None], None, rows, columns, title=title, unit=unit, scale=scale)


def facets(
    values: Num[np.ndarray, "panels rows columns"],
    panels: Axis | None,
    rows: Axis,
    columns: Axis,
    *,
    title: str = "",
    unit: str = "",
    scale: Scale = SIGNED,
) -> go.Figure:
    """A heatmap for each panel, side by side, with one colour scale. At most `MAX_FACETS` panels are drawn."""
    from plotly.subplots import make_subplots

    drawn = min(len(values), MAX_FACETS)
    note = left_out((panels, drawn), (rows, MAX_CELLS), (columns, MAX_CELLS))
    rows, columns = rows.cut(MAX_CELLS), columns.cut(MAX_CELLS)
    wide = min(drawn, 4 if columns.size <= 24 else 2)
    high = -(-drawn // wide)
    inner = high * inner_height(rows.size) + BETWEEN * (high - 1)
    figure = make_subplots(
        high,
        wide,
        shared_yaxes=True,
        horizontal_spacing=0.06 / wide,
        vertical_spacing=BETWEEN / inner,
        subplot_titles=[panels.panel(i) for i in range(drawn)] if panels else None,
    )
    for i, panel in enumerate(values[:drawn]):
        cells = panel[: rows.size, : columns.size]
        figure.add_trace(_cells(cells, rows, columns, unit), row=i // wide + 1, col=i % wide + 1)
    figure.update_layout(coloraxis=coloraxis(values[:drawn], scale, unit))
    figure.update_annotations(font_size=12)
    number_axes(figure, rows, columns)
    if drawn > 1:
        figure.update_yaxes(title=None, showticklabels=False)
        figure.update_yaxes(title_text=rows.title, showticklabels=True, col=1)
    return dress(figure, title, note, height=inner + OUTER)


def lens_grid(
    tokens: np.ndarray,
    probs: Float[np.ndarray, "layer pos k"],
    rows: Axis,
    columns: Axis,
    *,
    target: str | None = None,
    target_rank: Int[np.ndarray, "layer pos"] | None = None,
    color: Float[np.ndarray, "layer pos"] | None = None,
    title: str = "",
    unit: str = "probability of the top token",
    scale: Scale = SHARE,
) -> go.Figure:
    """What each layer would say at each position: the most likely token in the cell, its rivals on hover.

    Args:
        tokens: text array [layer, pos, k], the most likely first.
        probs: their probabilities.
        rows, columns: layers and positions.
        target, target_rank: a token whose rank (0 is first) is told on hover.
        color: what the colour means, if not the probability of the top token; say so in `unit`.
    """
    note = left_out((rows, MAX_CELLS), (columns, MAX_CELLS))
    rows, columns = rows.cut(MAX_CELLS), columns.cut(MAX_CELLS)
    shape = (rows.size, columns.size)
    values = (probs[..., 0] if color is None else color)[: shape[0], : shape[1]]

    def hover(i: int, j: int) -> str:
        listing = [f"{text.label(t, 30)}  {p:.1%}" for t, p in zip(tokens[i, j], probs[i, j], strict=True)]
        rank = [] if target_rank is None else [f"rank of {text.label(target or 'the target', 30)}: {target_rank[i, j]}"]
        return "<br>".join([f"<b>{rows.at(i)}, {columns.at(j)}</b>", *listing, *rank])

    import plotly.graph_objects as go

    trace = go.Heatmap(
        z=values,
        text=[[text.label(tokens[i, j, 0], 9) for j in range(shape[1])] for i in range(shape[0])],
        texttemplate="%{text}",
        textfont={"size": 11},
        hovertext=[[hover(i, j) for j in range(shape[1])] for i in range(shape[0])],
        hoverinfo="text",
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
    )
    figure = go.Figure(trace)
    figure.update_layout(coloraxis=coloraxis(values, scale, unit))
    number_axes(figure, rows, columns)
    return dress(figure, title, note, height=inner_height(rows.size) + OUTER)


def bars(values: Num[np.ndarray, "bar"], names: Sequence[object], *, title: str = "", unit: str = "") -> go.Figure:
    """A horizontal bar for each value, in the order given, blue above zero and red below."""
    import plotly.graph_objects as go

    shown = min(len(values), MAX_CELLS)
    axis = Axis("", shown, [str(n) for n in names[:shown]])
    figure = go.Figure(
        go.Bar(
            x=values[:shown],
            y=np.arange(shown),
            orientation="h",
            marker_color=["#2166ac" if v >= 0 else "#b2182b" for v in values[:shown]],
            hovertext=[
                f"{text.label(n, 60)}: {text.number(float(v))}" for n, v in zip(names, values[:shown], strict=False)
            ],
            hoverinfo="text",
        )
    )
    ticks = {"ticktext": [text.label(n, 30) for n in names[:shown]], "range": [shown - 0.5, -0.5]}  # there is room
    figure.update_yaxes(**axis.ticks(shown or 1) | ticks)
    figure.update_xaxes(
        title_text=text.inert(unit), zeroline=True, zerolinecolor="#888", gridcolor="rgba(128,128,128,.2)"
    )
    figure.update_layout(bargap=0.25)
    return dress(figure, title, left_out((Axis("bars", len(values)), shown)), height=110 + 24 * shown)


def lines(series: Mapping[str, Num[np.ndarray, "x"]], x: Axis, *, title: str = "", unit: str = "") -> go.Figure:
    """A line for each series over the same axis."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, values in series.items():
        hover = [f"{text.label(name, 40)}<br>{x.at(i)}: {text.number(float(v))}" for i, v in enumerate(values)]
        figure.add_trace(
            go.Scatter(
                x=np.arange(len(values)),
                y=values,
                name=text.label(name, 40),
                mode="lines+markers",
                hovertext=hover,
                hoverinfo="text",
            )
        )
    figure.update_xaxes(**x.ticks())
    figure.update_yaxes(
        title_text=text.inert(unit), zeroline=True, zerolinecolor="#888", gridcolor="rgba(128,128,128,.2)"
    )
    figure.update_layout(showlegend=len(series) > 1)
    return dress(figure, title, "", height=340)


def of_result(result: Result, of: str | None = None) -> go.Figure:
    """The picture that the shape of an array asks for: bars, a heatmap, or a heatmap for each of its first axis.

    Raises:
        LabError: the array has no axis, or more than three.
    """
    name = of or result.primary
    axes, values = result.axes_of(name), getattr(result, name)
    scale = result.scale or suited(values)
    sides = [Axis(a, n, result.labels.get(a)) for a, n in zip(axes, values.shape, strict=True)]
    if len(sides) == 1:
        names = [text.place([(axes[0], result.coordinate(axes[0], i))]) for i in range(sides[0].size)]
        return bars(values, names, title=result.title, unit=result.unit)
    if len(sides) == 2:
        return heatmap(values, sides[0], sides[1], title=result.title, unit=result.unit, scale=scale)
    if len(sides) == 3:
        return facets(values, sides[0], sides[1], sides[2], title=result.title, unit=result.unit, scale=scale)
    raise LabError(
        f"{type(result).__name__}.{name} has the axes [{' '.join(axes)}]; expected one to three. "
        "Choose a part of it, or use to_dataframe() and a picture of your own"
    )


def _cells(cells: np.ndarray, rows: Axis, columns: Axis, unit: str) -> go.Heatmap:
    import plotly.graph_objects as go

    what = f"{text.inert(unit)} " if unit else ""
    hover = [
        [
            f"<b>{rows.at(i)}, {columns.at(j)}</b><br>{what}{text.number(float(cells[i, j]))}"
            for j in range(columns.size)
        ]
        for i in range(rows.size)
    ]
    return go.Heatmap(z=cells, hovertext=hover, hoverinfo="text", coloraxis="coloraxis")
