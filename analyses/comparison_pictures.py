"""Pictures of two models side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from interp import pictures, text
from interp.sites import axes_of
from interp.style import SHARE, Axis, dress

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from analyses.comparison import ComparisonResult
    from analyses.losses import TokenLosses
    from analyses.matching import HeadMatching
    from analyses.predictions import Predictions
    from analyses.trajectories import LensTrajectories

COLOURS = ("#2166ac", "#b2182b", "#4d9221", "#8073ac")
GRID = "rgba(128,128,128,.2)"
NOTHING = 1e-17
"""Where a difference of zero is drawn on a logarithmic axis: below what float64 can tell apart."""
FAMILIES = {
    "residual stream": ("#2166ac", "circle"),
    "attention": ("#b2182b", "diamond"),
    "MLP": ("#4d9221", "square"),
    "norm": ("#8073ac", "triangle-up"),
    "embedding and logits": ("#7f7f7f", "cross"),
}


def family(hook: str) -> str:
    """Which part of the model a hook point belongs to, one of `FAMILIES`."""
    if "ln" in hook or "norm" in hook:
        return "norm"
    if ".attn" in hook or any(part in hook for part in ("_attn_", "_q_", "_k_", "_v_")):
        return "attention"
    if "mlp" in hook:
        return "MLP"
    return "residual stream" if "resid" in hook else "embedding and logits"


def depth_figure(found: ComparisonResult) -> go.Figure:
    """The relative difference at each hook point in the order of the forward, on a logarithmic axis: kinds of hook
    points told apart, the first that differs marked, a tick at the start of each layer."""
    import plotly.graph_objects as go

    hooks = [str(name) for name in found.labels["hook"]]
    heights = np.where(found.relative == 0, NOTHING, found.relative)
    figure = go.Figure(
        go.Scatter(x=np.arange(len(hooks)), y=heights, mode="lines", line={"color": GRID}, hoverinfo="skip")
    )
    figure.data[0].showlegend = False
    for name, (colour, symbol) in FAMILIES.items():
        places = [i for i, hook in enumerate(hooks) if family(hook) == name]
        hover = [_hook_hover(found, i) for i in places]
        marker = {"color": colour, "symbol": symbol, "size": 7}
        figure.add_scatter(
            x=places, y=heights[places], mode="markers", name=name, marker=marker, hovertext=hover, hoverinfo="text"
        )
    figure.add_hline(y=found.tolerance, line={"dash": "dot", "color": "#888"}, annotation_text="tolerance")
    first = found.first_difference()
    if first is not None:
        where = hooks.index(first)
        figure.add_vline(x=where, line={"color": "#b2182b", "width": 1})
        figure.add_annotation(
            x=where, y=1, yref="paper", yanchor="bottom", showarrow=False, text=f"first difference: {text.inert(first)}"
        )
    starts = {hook.split(".")[1]: i for i, hook in reversed(list(enumerate(hooks))) if hook.startswith("blocks.")}
    ticks = sorted((i, layer) for layer, i in starts.items())[:: max(1, len(starts) // 24)]
    figure.update_xaxes(
        title_text="layer",
        tickvals=[i for i, _ in ticks],
        ticktext=[layer for _, layer in ticks],
        showgrid=False,
        zeroline=False,
    )
    figure.update_yaxes(
        type="log", title_text=text.inert(found.unit), gridcolor=GRID, exponentformat="power", dtick=2, zeroline=False
    )
    note = f"{found.models[0]} and {found.models[1]}; a difference of 0 is drawn at {NOTHING:g}"
    return _lively(dress(figure, found.title, note, height=400))


def _hook_hover(found: ComparisonResult, i: int) -> str:
    axes = axes_of(str(found.labels["hook"][i])) or ()
    numbers = (text.number(float(values[i]), signed=False) for values in (found.relative, found.difference))
    relative, largest = numbers
    name = text.inert(str(found.labels["hook"][i]))
    return f"<b>{name}</b> [{' '.join(axes)}]<br>relative {relative}<br>largest {largest}"


def heads_figure(found: HeadMatching) -> go.Figure:
    """Similarity by pattern, and by role where roles are known."""
    known = {"pattern": found.pattern} | ({} if np.isnan(found.role).all() else {"role": found.role})
    sides = [Axis(axis, len(found.labels[axis]), found.labels[axis]) for axis in ("head_a", "head_b")]
    panels = Axis("by", len(known), [f"by {name}" for name in known])
    return pictures.facets(
        np.stack(list(known.values())), panels, *sides, title=found.title, unit=found.unit, scale=SHARE
    )


def trajectories_figure(found: LensTrajectories) -> go.Figure:
    """A panel for each measure: a line for each model over the relative depth, with standard errors."""
    from plotly.subplots import make_subplots

    names = [str(name) for name in found.labels["measure"]]
    figure = make_subplots(1, len(names), subplot_titles=names, horizontal_spacing=0.05)
    sides = {"a": (found.a, found.error_a, COLOURS[0]), "b": (found.b, found.error_b, COLOURS[1])}
    for column in range(len(names)):
        for side, (values, error, colour) in sides.items():
            layers = found.labels[f"layer_{side}"]
            figure.add_scatter(
                x=np.linspace(0, 1, len(layers)),
                y=values[column],
                error_y={"array": error[column], "thickness": 1},
                name=side,
                legendgroup=side,
                showlegend=column == 0,
                mode="lines+markers",
                marker={"color": colour},
                hovertext=[
                    f"{side}, layer {layer}: {text.number(float(v))}"
                    for layer, v in zip(layers, values[column], strict=True)
                ],
                hoverinfo="text",
                row=1,
                col=column + 1,
            )
    figure.update_xaxes(title_text="relative depth", gridcolor=GRID)
    figure.update_yaxes(gridcolor=GRID)
    figure.update_annotations(font_size=12)
    return _lively(dress(figure, found.title, "", height=330))


def classes_figure(found: TokenLosses) -> go.Figure:
    """The mean loss of both models on each class of tokens, with standard errors."""
    import plotly.graph_objects as go

    groups = found.by_class()
    names = [f"{name} ({n})" for name, n in zip(groups.labels["group"], groups.count, strict=True)]
    figure = go.Figure()
    for row, (side, colour) in enumerate(zip("ab", COLOURS, strict=False)):
        figure.add_bar(
            x=names, y=groups.values[row], error_y={"array": groups.error[row]}, name=side, marker_color=colour
        )
    figure.update_yaxes(title_text="loss, nats", gridcolor=GRID)
    return _lively(dress(figure, "Loss by class of token (how many)", "", height=360))


def positions_figure(found: TokenLosses) -> go.Figure:
    """The mean loss of both models at each position."""
    groups = found.by_position()
    series = {side: groups.values[row] for row, side in enumerate("ab")}
    return curves_figure(series, groups.labels["group"], "position", "Loss by position", "loss, nats")


def predictions_figure(found: Predictions) -> go.Figure:
    """KL both ways at each position: averaged where several texts reach it, by token where there is one text."""
    places = np.unique(found.position)
    at = [found.position == place for place in places]
    series = {
        "KL(a || b)": np.array([found.kl[here].mean() for here in at]),
        "KL(b || a)": np.array([found.kl_back[here].mean() for here in at]),
    }
    one_text = len(places) == len(found.position)
    ticks = [f"{i} {text.visible(w)}" for i, w in enumerate(found.labels["token"])] if one_text else places.tolist()
    return curves_figure(series, ticks, "position", found.title, "nats")


def curves_figure(
    series: Mapping[str, Float[np.ndarray, "x"]], ticks: object, x: str, title: str, unit: str
) -> go.Figure:
    """Lines over an axis of named places."""
    names = list(ticks)  # type: ignore[call-overload]
    return _lively(pictures.lines(series, Axis(x, len(names), names), title=title, unit=unit))


def _lively(figure: go.Figure) -> go.Figure:
    """With a legend above the picture."""
    return figure.update_layout(
        showlegend=True, legend={"orientation": "h", "y": 1.1, "yanchor": "bottom", "x": 1, "xanchor": "right"}
    )
