"""Curves on logarithmic axes as one SVG, without any library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import log

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 250, 190, 52, 34, 12, 40
"""Of a panel, and its margins."""


@dataclass(frozen=True)
class Curve:
    """Points of one measurement. what: grows along x. finding: what they show. limit: what y should stay under."""

    what: str
    x: Sequence[float]
    y: Sequence[float]
    finding: str
    limit: Sequence[float] = ()


@dataclass(frozen=True)
class Frame:
    """Where a panel's values lie: logarithmic axes from low to high."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    @classmethod
    def around(cls, curve: Curve) -> Frame:
        """With room for the points and the limit."""
        y = [*curve.y, *curve.limit]
        return cls(min(curve.x) / 1.3, max(curve.x) * 1.3, min(y) / 1.5, max(y) * 1.5)

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * log(value / self.x_low) / log(self.x_high / self.x_low)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * log(value / self.y_low) / log(self.y_high / self.y_low)

    def path(self, x: Sequence[float], y: Sequence[float]) -> str:
        return " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in zip(x, y, strict=True))


def svg(times: Sequence[Curve], memory: Sequence[Curve]) -> str:
    """A row of panels for times in seconds, and one for memory in MiB."""
    rows = [[panel(curve, unit) for curve in curves] for unit, curves in (("s", times), ("MiB", memory))]
    parts = [
        f'<g transform="translate({column * WIDTH},{row * HEIGHT})">{each}</g>'
        for row, panels in enumerate(rows)
        for column, each in enumerate(panels)
    ]
    width, height = WIDTH * max(map(len, rows)), HEIGHT * len(rows)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    style = 'font-family="sans-serif" font-size="11" fill="#222"'
    return f'{head} {style}><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'


def panel(curve: Curve, unit: str) -> str:
    """One curve with its axes, what it shows, and its limit as a dashed line."""
    frame = Frame.around(curve)
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [
        _text(LEFT, 20, curve.finding, "start"),
        _text((LEFT + right) / 2, HEIGHT - 8, curve.what),
        _text(LEFT, TOP - 2, unit, "end"),
        f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#888"/>',
        f'<polyline points="{frame.path(curve.x, curve.y)}" fill="none" stroke="#1f5fa8" stroke-width="2"/>',
    ]
    parts += [_text(frame.x(x), bottom + 14, f"{x:g}") for x in curve.x]
    parts += [_text(LEFT - 4, frame.y(y) + 4, f"{y:.3g}", "end") for y in _apart(frame, curve)]
    parts += [
        f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3" fill="#1f5fa8"/>'
        for x, y in zip(curve.x, curve.y, strict=True)
    ]
    if curve.limit:
        points = frame.path(curve.x, curve.limit)
        parts.append(f'<polyline points="{points}" fill="none" stroke="#b33" stroke-dasharray="5 3"/>')
    return "".join(parts)


def _apart(frame: Frame, curve: Curve, gap: float = 12) -> list[float]:
    """The values to label on the y axis: those far enough from the one before."""
    kept: list[float] = []
    for value in sorted({*curve.y, *curve.limit[:1]}):
        if not kept or frame.y(kept[-1]) - frame.y(value) >= gap:
            kept.append(value)
    return kept


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
