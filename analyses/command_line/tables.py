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

from analyses.command_line.choices import Output
from analyses.command_line.shell import note
from interp import text
from interp.files import write_text
from interp.results import Extreme, Result

ENDLESS = 100_000  # columns, where there is no terminal: nothing is wrapped or cut
WIDEST_LABEL = 10
LONGEST_AXIS = 64


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


def grid(result: Result) -> Sequence[RenderableType]:
    """The primary array as a table, its first axis downwards, or across where only that fits the terminal.

    Nothing when it has three axes or more, has a very long one, or fits neither way.
    """
    axes, values = result.axes_of(result.primary), getattr(result, result.primary)
    names = [[_coordinate(result, axis, i) for i in range(n)] for axis, n in zip(axes, values.shape, strict=True)]
    if max(values.shape) > LONGEST_AXIS:
        ways = []
    elif values.ndim == 1:
        ways = [_grid(axes[0], names[0], [result.primary], values[:, None])]
    elif values.ndim == 2:
        down, across = axes
        ways = [_grid(f"{down} \\ {across}", names[0], names[1], values)]
        ways += [_grid(f"{across} \\ {down}", names[1], names[0], values.T)]
    else:
        ways = []
    return [way for way in ways if _width(way) <= _console().width][:1]


def _width(thing: RenderableType) -> int:
    """Columns that a table would take if it could."""
    console = _console()
    return Measurement.get(console, console.options.update(width=ENDLESS), thing).maximum


def _grid(corner: str, rows: Sequence[str], columns: Sequence[str], values: np.ndarray) -> Table:
    """Numbers to three digits of the strongest, in bold when they are at least half of it."""
    strongest = float(np.nanmax(np.abs(values), initial=0.0))
    decimals = 0 if strongest == 0 else max(0, 2 - int(np.floor(np.log10(strongest))))

    def cell(value: float) -> Text:
        strong = strongest > 0 and abs(value) >= strongest / 2
        shown = "n/a" if value != value else f"{round(value, decimals) + 0.0:+.{decimals}f}"
        return Text(shown, style="bold" if strong else "", justify="right")

    cells = [[name, *(cell(float(v)) for v in row)] for name, row in zip(rows, values, strict=True)]
    return table([corner, *columns], cells)


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
