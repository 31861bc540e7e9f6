"""A progress bar on stderr, where there is a terminal to see it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: int, show: bool | None = None) -> Iterator[T]:
    """Yield `items` with a bar and the time left. show: None shows it on a terminal when there is more than one."""
    visible = total > 1 and sys.stderr.isatty() if show is None else show
    if not visible:
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(items, description, total=total, console=Console(stderr=True), transient=True)
