"""Small pieces of HTML for pages: tokens and tables. Every token in them is escaped."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from jaxtyping import Float

from interp import text
from interp.errors import LabError
from interp.page import Markup

MAX_TOKENS = 2000
"""Tokens that are drawn in one run; how many are left out is said after it."""


def tokens(words: Sequence[str], marked: Collection[int] = ()) -> Markup:
    """A prompt, token by token, with its positions on hover; those at the positions `marked` stand out."""
    spans = "".join(_token(word, f"position {i}", marked=i in marked) for i, word in enumerate(words[:MAX_TOKENS]))
    return Markup(f'<p class="tokens">{spans}{_more(len(words))}</p>')


def answers(right: Sequence[str], wrong: Sequence[str]) -> Markup:
    """The right answers, then "not" and the wrong ones."""
    sides = ("".join(_token(word, role) for word in words) for role, words in (("right", right), ("wrong", wrong)))
    return Markup(f'<p class="tokens">{"<span class=note> not </span>".join(sides)}</p>')


def colored_tokens(
    words: Sequence[str], values: Float[np.ndarray, "pos"], unit: str = "", reach: float | None = None
) -> Markup:
    """Tokens on a ground that is bluer the larger their value, redder the further it is below zero.

    Args:
        words: the tokens.
        values: one number each; NaN leaves a token bare.
        unit: what the numbers are, told on hover.
        reach: the magnitude that gets the full colour; the largest one by default.

    Raises:
        LabError: there are not as many values as tokens.
    """
    if len(words) != len(values):
        raise LabError(f"{len(words)} tokens and {len(values)} values; expected a value for each token")
    magnitudes = np.abs(values[np.isfinite(values)])
    full = (float(magnitudes.max()) if magnitudes.size else 0.0) if reach is None else reach
    spans = [
        _token(word, f"position {i}: {text.number(float(v))} {unit}", _ground(float(v), full))
        for i, (word, v) in enumerate(zip(words[:MAX_TOKENS], values, strict=False))
    ]
    return Markup(f'<p class="tokens">{"".join(spans)}{_more(len(words))}</p>')


def tiles(entries: Iterable[tuple[str, str, str]]) -> Markup:
    """Numbers that matter most: of each its name, the number, and what else is to be known about it."""
    boxes = (
        f"<div><small>{text.escape(name)}</small><b>{text.escape(value)}</b><small>{text.escape(note)}</small></div>"
        for name, value, note in entries
    )
    return Markup(f'<div class="tiles">{"".join(boxes)}</div>')


def roles(entries: Iterable[tuple[str, Markup]]) -> Markup:
    """Things one below the other, each after its role in a few words."""
    rows = (f'<span class="role">{text.escape(role)}</span>{content.html}' for role, content in entries)
    return Markup(f'<div class="pair">{"".join(rows)}</div>')


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """A table; numbers are set to the right with four digits, and with a plus in a column that has a minus."""
    rows = [list(row) for row in rows]
    columns = zip(*rows, strict=True)
    signed = [any(isinstance(cell, float | np.floating) and cell < 0 for cell in column) for column in columns]
    top = "".join(f"<th>{text.escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(map(_cell, row, signed))}</tr>" for row in rows)
    return Markup(f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>')


def paragraph(sentence: str) -> Markup:
    """A paragraph of text."""
    return Markup(f"<p>{text.escape(sentence)}</p>")


def _cell(cell: object, signed: bool) -> str:
    if isinstance(cell, float | np.floating):
        return f'<td class="number">{text.number(float(cell), signed=signed)}</td>'
    if isinstance(cell, int | np.integer):
        return f'<td class="number">{cell}</td>'
    return f"<td>{text.escape(cell)}</td>"


def _token(word: str, hover: str, style: str = "", marked: bool = False) -> str:
    ground = f' style="{style}"' if style else ""
    shown = text.visible(word)
    title = text.escape(f"{shown}  {hover}".strip())
    return f'<span class="token{" marked" * marked}" title="{title}"{ground}>{text.escape(shown)}</span>'


def _ground(value: float, full: float) -> str:
    """The colour behind a token, as CSS; its strength is the share of the full colour."""
    if not np.isfinite(value) or full == 0:
        return ""
    strength = 0.75 * min(abs(value) / full, 1.0)
    return f"background:rgba({'33,102,172' if value >= 0 else '178,24,43'},{strength:.3f})"


def _more(count: int) -> str:
    return f'<span class="note"> … and {count - MAX_TOKENS} more tokens</span>' if count > MAX_TOKENS else ""
