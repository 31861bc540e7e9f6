"""Ways of sampling side by side as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from interp import text
from interp.style import dress

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from analyses.sampling import SamplingEffects

UNITS = ("nats a token", "nats a token", "share")
HEIGHT = 26
"""Of a way, in pixels."""


def spread_figure(found: SamplingEffects) -> go.Figure:
    """A panel for each measure: a mark for every text, and a line at the mean of its way."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    ways, measures = [str(way) for way in found.labels["way"]], found.by_sample()
    titles = [f"{name}, {unit}" for name, unit in zip(measures, UNITS, strict=True)]
    figure = make_subplots(1, len(measures), shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=titles)
    for column, values in enumerate(measures.values(), 1):
        places = np.repeat(np.arange(len(ways)), values.shape[1])
        flat = values.reshape(-1)
        hover = [f"{text.label(ways[i], 60)}: {text.number(float(v))}" for i, v in zip(places, flat, strict=True)]
        marks = {"color": "rgba(33,102,172,.45)", "size": 8}
        shown = go.Scatter(x=flat, y=places, mode="markers", marker=marks, hovertext=hover, hoverinfo="text")
        bar = {"color": "#b2182b", "symbol": "line-ns-open", "size": 16}
        means = go.Scatter(x=values.mean(-1), y=np.arange(len(ways)), mode="markers", marker=bar, hoverinfo="skip")
        for trace in (shown, means):
            figure.add_trace(trace, row=1, col=column)
    names = [text.label(way, 60) for way in ways]
    figure.update_yaxes(tickvals=list(range(len(ways))), ticktext=names, range=[len(ways) - 0.5, -0.5])
    figure.update_xaxes(gridcolor="rgba(128,128,128,.2)", zerolinecolor="#888")
    figure.update_annotations(font_size=12)
    figure.update_layout(showlegend=False)
    return dress(figure, found.title, "red: the mean of a way", height=130 + HEIGHT * len(ways))
