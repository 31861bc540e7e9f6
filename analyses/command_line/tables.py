"""What commands print and write: tables for people, one JSON document for programs, files by their suffix.

On a terminal tables have colours and fit its width; elsewhere they are plain columns, complete and without borders.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from analyses.command_line.options import Output
from analyses.command_line.shell import note
from interp import text
from interp.files import write_text
from interp.results import Extreme, Result

ENDLESS = 100_000  # columns, where there is no terminal: nothing is wrapped or cut
WIDEST_LABEL = 10
WIDEST_GRID = 64


def deliver(
    output: Output, document: dict[str, Any], shown: Sequence[RenderableType], result: Result | None = None
) -> None:
    """Write the file that was asked for, then print the document as JSON, or what is shown of it.

    result: what knows how to write itself as a page, table or safetensors file.

    Raises:
        LabError: the file cannot be written.
    """
    if output.out is not None:
        _write(output.out, document, result)
        note(f"wrote {output.out}")
    if output.json:
        sys.stdout.write(json.dumps(document, allow_nan=False) + "\n")
        return
    show(shown)


def show(shown: Iterable[RenderableType]) -> None:
    """Print tables and lines."""
    console = _console()
    for thing in shown:
        console.print(thing, soft_wrap=not isinstance(thing, Table))


def _console() -> Console:
    width = None if sys.stdout.isatty() else ENDLESS
    return Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)


def _write(path: Path, document: dict[str, Any], result: Result | None) -> None:
    if path.suffix == ".json":
        write_text(path, json.dumps(document, allow_nan=False) + "\n")
    elif result is None:
        raise AssertionError(f"no command without a result offers {path.suffix}")
    elif path.suffix == ".html":
        result.to_html(path)
    elif path.suffix == ".csv":
        write_text(path, result.to_dataframe().to_csv(index=False))
    else:
        result.save(path)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> Table:
    """Rows under headings; numbers stand on the right, everything is shown as it is."""
    cells = [[_cell(value) for value in row] for row in rows]
    made = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        numeric = bool(cells) and all(row[i].justify == "right" for row in cells)
        made.add_column(Text(column), justify="right" if numeric else "left", no_wrap=True)
    for row in cells:
        made.add_row(*row)
    return made


def _cell(value: object) -> Text:
    if isinstance(value, Text):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return Text(str(value))
    shown = text.number(float(value) + 0.0) if isinstance(value, float | np.floating) else f"{value:,}"
    return Text(shown, justify="right")


def grid(result: Result) -> list[RenderableType]:
    """The primary array as a table with its first axis downwards.

    Nothing when it has three axes or more, is very wide, or does not fit the terminal.
    """
    axes, values = result.axes_of(result.primary), getattr(result, result.primary)
    if values.ndim > 2 or values.shape[-1] > WIDEST_GRID:
        return []
    strongest = float(np.nanmax(np.abs(values), initial=0.0))
    columns = (
        [_coordinate(result, axes[1], i) for i in range(values.shape[1])] if values.ndim == 2 else [result.primary]
    )
    rows = [
        [_coordinate(result, axes[0], i), *(_shaded(float(v), strongest) for v in np.atleast_1d(values[i]))]
        for i in range(values.shape[0])
    ]
    made, console = table([" \\ ".join(axes), *columns], rows), _console()
    return [made] if Measurement.get(console, console.options, made).minimum <= console.width else []


def _shaded(value: float, strongest: float) -> Text:
    """A number, in bold when it is at least half the strongest."""
    strong = strongest > 0 and abs(value) >= strongest / 2
    return Text(f"{value + 0.0:+.3g}" if value == value else "n/a", style="bold" if strong else "", justify="right")


def _coordinate(result: Result, axis: str, index: int) -> str:
    value = result.coordinate(axis, index)
    return token(value[1]) if isinstance(value, tuple) else str(value)


def unsigned(value: float) -> Text:
    """A number that is never negative."""
    return Text(text.number(abs(value), signed=False), justify="right")


def top(entries: Sequence[Extreme], heading: str, value: str) -> Table:
    """Entries of a result, each with its place."""
    return table([heading, value], [(entry.place, entry.value) for entry in entries])


def token(name: object) -> str:
    """A token, readable and short."""
    return text.short(text.visible(name), WIDEST_LABEL)


def safe(written: str) -> str:
    """Text of a model, its line ends kept and what could steer a terminal escaped."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in written)
