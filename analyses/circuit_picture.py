"""A circuit as a graph: the input below, the logits above, every layer between; and the scores it was chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from interp import text
from interp.circuit import Circuit
from interp.graph import INPUT, LOGITS, Graph
from interp.style import dress

if TYPE_CHECKING:
    import plotly.graph_objects as go

MAX_EDGES = 300
"""Edges that are drawn, the strongest; more would be a tangle."""
COLORS = {"q": "#2166ac", "k": "#b2182b", "v": "#1b7837", "": "#8a94a3"}
READS = {"q": "a query", "k": "a key", "v": "a value", "": "an MLP or the logits"}
BENDS = {"q": -0.02, "k": 0.0, "v": 0.02, "": 0.0}
"""How far a line leaves the straight way, so that edges between the same two components stand apart."""
BINS = 41


@dataclass(frozen=True)
class Line:
    """An edge that is drawn: its components, what kind of input it is, its name and score."""

    sender: str
    receiver: str
    kind: str
    name: str
    score: float


def lines_of(circuit: Circuit, scores: Float[np.ndarray, "*axes"]) -> list[Line]:
    """The edges of a circuit, the strongest first. A key or value that heads share stands at the first of them."""
    graph, found = circuit.graph, []
    for index in np.argwhere(circuit.kept).tolist():
        sender, receiver = graph.ends[index[0]].tolist()
        site = graph.receivers[receiver]
        kind = "" if site is None or site.head is None else site.kind
        name = (
            graph.receiver_names[receiver] if not kind or site is None else f"a{site.layer}.h{graph.heads_of(site)[0]}"
        )
        score = float(scores[tuple(index)])
        found.append(Line(graph.sender_names[sender], name, kind, graph.name(tuple(index)), score))
    return sorted(found, key=lambda line: -abs(line.score))


def circuit_figure(circuit: Circuit, scores: Float[np.ndarray, "*axes"], unit: str = "", title: str = "") -> go.Figure:
    """The circuit: wider lines for stronger edges, coloured by what reads them; names and scores on hover."""
    import plotly.graph_objects as go

    lines = lines_of(circuit, scores)
    drawn = lines[:MAX_EDGES]
    places = _places(circuit.graph, {name for line in drawn for name in (line.sender, line.receiver)})
    figure = go.Figure()
    strongest = max((abs(line.score) for line in drawn), default=0.0) or 1.0
    for kind in COLORS:
        some = [line for line in drawn if line.kind == kind]
        for number, line in enumerate(some):
            figure.add_trace(_drawn(line, places, 0.6 + 4.4 * abs(line.score) / strongest, number == 0))
        if some:
            figure.add_trace(_told(some, places, unit))
    figure.add_trace(_components(places, drawn))
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_layout(showlegend=True, hovermode="closest", legend={"orientation": "h", "y": -0.02})
    note = f"drawn: the {len(drawn)} strongest of {len(lines)} edges" if len(drawn) < len(lines) else ""
    rows = len({height for _, height in places.values()})
    return dress(figure, title, note, height=120 + 70 * max(rows, 3))


def histogram(scores: Float[np.ndarray, "*axes"], circuit: Circuit, unit: str = "", title: str = "") -> go.Figure:
    """How many edges have which score, those of the circuit apart; counts on a logarithmic axis."""
    import plotly.graph_objects as go

    known = ~np.isnan(scores)
    reach = float(np.abs(scores[known]).max(initial=0.0)) or 1.0
    bounds = np.linspace(-reach, reach, BINS + 1)
    figure = go.Figure()
    for name, chosen, color in (("not in it", ~circuit.kept, "#b8bec8"), ("in the circuit", circuit.kept, "#2166ac")):
        counts, _ = np.histogram(scores[chosen & known], bounds)
        hover = [
            f"{name}: {count}<br>{low:+.3g} to {high:+.3g}"
            for count, low, high in zip(counts, bounds, bounds[1:], strict=False)
        ]
        centres = (bounds[1:] + bounds[:-1]) / 2
        figure.add_trace(go.Bar(x=centres, y=counts, name=name, marker_color=color, hovertext=hover, hoverinfo="text"))
    figure.update_layout(barmode="overlay", bargap=0.05)
    figure.update_xaxes(title_text=text.inert(unit))
    figure.update_yaxes(title_text="edges", type="log", gridcolor="rgba(128,128,128,.2)")
    return dress(figure, title, "", height=320)


def _places(graph: Graph, shown: set[str]) -> dict[str, tuple[float, float]]:
    """Where every component stands: a row for the input, for each layer's heads, for each MLP, and for the logits."""
    import networkx

    rows: list[list[str]] = [[INPUT]]
    for layer in range(graph.n_layers):
        neurons = [name for name in graph.sender_names if name.startswith(f"m{layer}.n")]
        rows += [[f"a{layer}.h{head}" for head in range(graph.n_heads)], [f"m{layer}", *neurons]]
    drawn = {height: [name for name in row if name in shown] for height, row in enumerate([*rows, [LOGITS]])}
    found = networkx.DiGraph()
    found.add_nodes_from(name for row in drawn.values() for name in row)
    levels = {height: row for height, row in drawn.items() if row}
    laid = networkx.multipartite_layout(found, subset_key=levels, align="horizontal")
    return {name: (float(x), float(y)) for name, (x, y) in laid.items()}


def _curve(line: Line, places: dict[str, tuple[float, float]]) -> Float[np.ndarray, "2 point"]:
    """From sender to receiver, past what stands between them."""
    start, stop = (np.array(places[name]) for name in (line.sender, line.receiver))
    way = stop - start
    bend = BENDS[line.kind] + 0.12 * float(np.linalg.norm(way)) * (1 if way[0] >= 0 else -1) * (abs(way[0]) < 1e-9)
    middle = (start + stop) / 2 + bend * np.array([1.0, 0.0])
    t = np.linspace(0, 1, 13)
    return (1 - t) ** 2 * start[:, None] + 2 * t * (1 - t) * middle[:, None] + t**2 * stop[:, None]


def _drawn(line: Line, places: dict[str, tuple[float, float]], width: float, first: bool) -> go.Scatter:
    import plotly.graph_objects as go

    x, y = _curve(line, places)
    return go.Scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": COLORS[line.kind], "width": width, "dash": "solid" if line.score >= 0 else "dot"},
        opacity=0.65,
        hoverinfo="skip",
        name=f"read by {READS[line.kind]}",
        legendgroup=line.kind,
        showlegend=first,
    )


def _told(lines: Sequence[Line], places: dict[str, tuple[float, float]], unit: str) -> go.Scatter:
    """Points half-way, which say on hover what the lines are."""
    import plotly.graph_objects as go

    points = np.array([_curve(line, places)[:, 6] for line in lines])
    hover = [f"<b>{text.inert(line.name)}</b><br>{text.number(line.score)} {text.inert(unit)}" for line in lines]
    return go.Scatter(
        x=points[:, 0],
        y=points[:, 1],
        mode="markers",
        marker={"size": 9, "color": COLORS[lines[0].kind], "opacity": 0.25},
        hovertext=hover,
        hoverinfo="text",
        legendgroup=lines[0].kind,
        showlegend=False,
    )


def _components(places: dict[str, tuple[float, float]], lines: Sequence[Line]) -> go.Scatter:
    import plotly.graph_objects as go

    def told(name: str) -> str:
        into, out = (
            sum(end == name for end in ends) for ends in ([x.receiver for x in lines], [x.sender for x in lines])
        )
        return f"<b>{name}</b><br>{into} edges in, {out} out"

    names = list(places)
    return go.Scatter(
        x=[places[name][0] for name in names],
        y=[places[name][1] for name in names],
        mode="markers+text",
        marker={"size": 26, "color": "#f3f5f8", "line": {"color": "#44505f", "width": 1}, "symbol": "square"},
        text=names,
        textfont={"size": 10, "color": "#1c2430"},
        hovertext=[told(name) for name in names],
        hoverinfo="text",
        showlegend=False,
    )
