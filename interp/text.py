"""Tokens as people can read them, and as markup can hold them.

A token may be any string: spaces only, a control character, `</script>`. `visible` makes it readable,
`escape` makes it inert, `short` keeps a label from swallowing the picture.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

SPACE = "·"
ELLIPSIS = "…"
TOKEN_AXES = ("pos", "q_pos", "k_pos")
"""Axes whose text labels may repeat, so that the index belongs to the label."""


def visible(token: object) -> str:
    """`token` with a leading or trailing space as `·` and everything unprintable as its Python escape.

    >>> visible(" the"), visible("\\n"), visible("")
    ('·the', '\\\\n', "''")
    """
    text = str(token)
    if not text:
        return "''"
    printable = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    inner = printable.strip(" ")
    if not inner:
        return SPACE * len(printable)
    start = printable.index(inner)
    return SPACE * start + inner + SPACE * (len(printable) - start - len(inner))


def short(text: str, limit: int = 14) -> str:
    """`text` in at most `limit` characters, the cut marked by `…`."""
    return text if len(text) <= limit else text[: limit - 1] + ELLIPSIS


def escape(text: object) -> str:
    """`text` for the body or an attribute of an HTML document."""
    return html.escape(str(text), quote=True)


def inert(text: object) -> str:
    """`text` for plotly, whose labels understand a little markup and a few entities, `&quot;` not among them."""
    return html.escape(str(text), quote=False)


def label(token: object, limit: int = 14) -> str:
    """`token` visible, short and inert: what goes on an axis or in a cell of a plotly figure."""
    return inert(short(visible(token), limit))


def number(value: float, signed: bool = True) -> str:
    """Four significant digits; `n/a` for what is not a number.

    >>> number(0.12345), number(3.0), number(float("nan"))
    ('+0.1234', '+3', 'n/a')
    """
    if value != value:
        return "n/a"
    return f"{value:+.4g}" if signed else f"{value:.4g}"


def megabytes(size: int) -> str:
    """A number of bytes.

    >>> megabytes(3 * 2**20), megabytes(5 * 2**30), megabytes(700)
    ('3 MiB', '5 GiB', '700 bytes')
    """
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} bytes"


def duration(seconds: float) -> str:
    """A length of time, in the unit that suits it.

    >>> duration(0.25), duration(75), duration(7500)
    ('0.25 s', '1 min 15 s', '2 h 5 min')
    """
    if seconds < 60:
        return f"{seconds:.2g} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def json_for_script(value: Any) -> str:
    """JSON that can stand inside a `<script>` element: no character that could end it remains."""
    return inert_json(json.dumps(value, ensure_ascii=False, allow_nan=False))


def inert_json(text: str) -> str:
    """JSON text with `<`, `>`, `&` and the line separators of JavaScript as `\\u` escapes."""
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def sentence(words: str) -> str:
    """`words` with a capital first and a full stop last."""
    words = words.strip()
    start = words[:1] if "_" in words.partition(" ")[0] else words[:1].upper()  # `logit_diff` stays what it is
    return start + words[1:] + ("" if words.endswith((".", "!", "?", "…")) else ".") if words else ""


def coordinate(axis: str, value: object) -> str:
    """One coordinate in words: `layer 3`; for a pair (index, label) the label, and for tokens both: `pos 4 '·Mary'`."""
    if not isinstance(value, tuple):
        return f"{axis} {value}"
    index, named = value
    return f"{axis} {index} {visible(named)!r}" if axis in TOKEN_AXES else f"{axis} {visible(named)}"


def place(at: Sequence[tuple[str, object]]) -> str:
    """Several coordinates in words; the habitual `L9H6` for a layer and a head."""
    named = dict(at)
    if list(named) == ["layer", "head"] and not any(isinstance(v, tuple) for v in named.values()):
        return f"L{named['layer']}H{named['head']}"
    return ", ".join(coordinate(axis, value) for axis, value in at)
