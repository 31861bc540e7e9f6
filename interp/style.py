"""How pictures look: colour scales, axes with labels that cannot merge or run, and the lab's dress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Num

from interp import text

if TYPE_CHECKING:
    import plotly.graph_objects as go

MAX_CELLS = 96
"""Rows and columns of a heatmap that are drawn; the rest is named in its subtitle."""
MAX_FACETS = 16
OUTER = 130
"""Pixels above and below a heatmap, for its title and labels."""
BETWEEN = 140
"""Pixels between the rows of facets, for the labels of the upper one and the headings of the lower."""
TITLES = {"pos": "position", "q_pos": "query position", "k_pos": "key position", "kv_head": "key/value head"}


@dataclass(frozen=True)
class Scale:
    """How numbers become colours: plotly's colour scale, and the value at its middle if that has a meaning."""

    colors: str | tuple[str, ...]
    middle: float | None = None
    lowest: float | None = None
    highest: float | None = None


SIGNED = Scale("RdBu", middle=0.0)
"""Red below zero, white at zero, blue above."""
AMOUNT = Scale(("#f7fbff", "#c6dbef", "#6baed6", "#2171b5", "#08306b"))
"""White to dark blue, from the smallest to the largest value."""
SHARE = Scale(AMOUNT.colors, lowest=0.0, highest=1.0)
"""As AMOUNT, for probabilities and attention: from 0 to 1."""


@dataclass(frozen=True)
class Axis:
    """One side of a picture: its name, how many entries it has, and what they are called.

    `labels` are integers (coordinates), strings (shown beside the index) or None (the index alone).
    """

    name: str
    size: int
    labels: Sequence[int] | Sequence[str] | None = None

    @property
    def wordy(self) -> bool:
        """Whether its labels are text."""
        return self.labels is not None and any(isinstance(named, str) for named in self.labels)

    @property
    def title(self) -> str:
        """The name in words."""
        return text.inert(TITLES.get(self.name, self.name.replace("_", " ")))

    def at(self, index: int) -> str:
        """Where `index` stands, in words, escaped."""
        if self.labels is None:
            return f"{self.title} {index}"
        named = self.labels[index]
        if self.name in text.TOKEN_AXES:
            return f"{self.title} {index} {text.label(named, 60)}"
        return f"{self.title} {text.label(named, 60)}"

    def panel(self, index: int) -> str:
        """The heading of the panel `index`: its text label where it has one, escaped."""
        named = None if self.labels is None else self.labels[index]
        return text.label(named, 40) if isinstance(named, str) else self.at(index)

    def ticks(self, limit: int = 40) -> dict[str, Any]:
        """Plotly's settings for this axis: numeric places, at most `limit` of them with text."""
        step = max(1, -(-self.size // limit))
        places = list(range(0, self.size, step))
        names = range(self.size) if self.labels is None else self.labels
        return {
            "title": {"text": self.title, "standoff": 8},
            "tickmode": "array",
            "tickvals": places,
            "ticktext": [text.label(names[i]) for i in places],
            "range": [-0.5, self.size - 0.5],
            "showgrid": False,
            "zeroline": False,
            "ticks": "",
        }

    def cut(self, limit: int) -> Axis:
        """The first `limit` entries."""
        labels = None if self.labels is None else self.labels[:limit]
        return Axis(self.name, min(self.size, limit), labels)


def suited(values: Num[np.ndarray, "..."]) -> Scale:
    """SIGNED when some values are negative, else AMOUNT."""
    return SIGNED if np.nanmin(values, initial=0.0) < 0 else AMOUNT


def dress(figure: go.Figure, title: str, note: str, height: int) -> go.Figure:
    """The lab's look: title and note on the left, no background, room for the labels."""
    heading = {"text": text.inert(title), "x": 0, "xref": "paper", "font": {"size": 15}}
    if note:
        heading["subtitle"] = {"text": text.inert(note), "font": {"size": 11}}
    figure.update_layout(
        template="none",
        title=heading,
        height=height,
        margin={"l": 70, "r": 20, "t": 40 + 15 * bool(title) + 15 * bool(note), "b": 70},
        font={"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 12},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={"align": "left"},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#8a94a3", "activecolor": "#2166ac"},
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure


def number_axes(figure: go.Figure, rows: Axis, columns: Axis) -> None:
    """Numeric axes with the labels as text; the first row on top."""
    figure.update_xaxes(**columns.ticks(), tickangle=-45 if columns.wordy else 0)
    figure.update_yaxes(**rows.ticks() | {"range": [rows.size - 0.5, -0.5]})


def inner_height(rows: int) -> int:
    """Pixels for so many rows: cells that can be read, and room for the colour bar beside a few of them."""
    return max(170, 26 * rows if rows <= 24 else 16 * rows)


def coloraxis(values: np.ndarray, scale: Scale, unit: str) -> dict[str, Any]:
    """Colours that all panels share; a signed scale reaches as far below its middle as above."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if scale.middle is not None:
        reach = max(abs(low - scale.middle), abs(high - scale.middle)) or 1.0
        low, high = scale.middle - reach, scale.middle + reach
    return {
        "colorscale": scale.colors if isinstance(scale.colors, str) else list(scale.colors),
        "cmin": low if scale.lowest is None else scale.lowest,
        "cmax": high if scale.highest is None else scale.highest,
        "colorbar": {"title": {"text": text.inert(unit), "side": "right"}, "thickness": 12, "outlinewidth": 0}
        | {"lenmode": "pixels", "len": 200, "y": 1, "yanchor": "top"},
    }


def left_out(*cuts: tuple[Axis | None, int]) -> str:
    """What is not drawn, in words; an empty string when everything is."""
    cut = [f"the first {limit} of {axis.size} ({axis.name})" for axis, limit in cuts if axis and axis.size > limit]
    return f"drawn: {', '.join(cut)}" if cut else ""
