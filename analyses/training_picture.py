"""The course of a training run as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analyses.roles import ROLES
from interp import text
from interp.style import Axis, dress

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from analyses.training_checkpoints import TrainingCourse

PANELS = ("loss, nats", "highest head score", "CKA with the final model")
COLOURS = ("#2166ac", "#b2182b", "#4d9221", "#8073ac", "#e08214", "#35978f", "#7f7f7f")


def course_figure(found: TrainingCourse) -> go.Figure:
    """Losses, head scores and similarity to the final model, one below the other over the same checkpoints."""
    from plotly.subplots import make_subplots

    names = [str(name) for name in found.labels["checkpoint"]]
    measures = dict(zip(map(str, found.labels["measure"]), found.values.T, strict=True))
    streams = {f"layer {name}": row for name, row in zip(found.labels["stream"], found.cka.T, strict=True)}
    panels = (
        {name: values for name, values in measures.items() if name not in ROLES},
        {name: measures[name] for name in ROLES},
        streams,
    )
    figure = make_subplots(3, 1, shared_xaxes=True, vertical_spacing=0.06)
    for row, series in enumerate(panels, 1):
        for i, (name, values) in enumerate(series.items()):
            figure.add_scatter(
                x=np.arange(len(names)),
                y=values,
                name=text.inert(name),
                legend=f"legend{row}",
                marker={"color": COLOURS[i % len(COLOURS)]},
                mode="lines+markers",
                hovertext=[
                    f"{text.inert(name)}<br>{text.label(where, 40)}: {text.number(float(v))}"
                    for where, v in zip(names, values, strict=True)
                ],
                hoverinfo="text",
                row=row,
                col=1,
            )
        figure.update_yaxes(title_text=PANELS[row - 1], gridcolor="rgba(128,128,128,.2)", row=row, col=1)
    ticks = Axis("checkpoint", len(names), names).ticks() | {"title": None}
    figure.update_xaxes(**ticks)
    figure.update_xaxes(tickangle=-45, row=3, col=1)
    tops = {f"legend{row}": {"y": 1 - (row - 1) * 0.353, "yanchor": "top"} for row in (1, 2, 3)}
    figure.update_layout(**tops)
    return dress(figure, found.title, "", height=720)
