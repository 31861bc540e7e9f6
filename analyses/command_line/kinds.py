"""Kinds of option values, checked while the command line is read: a wrong one is bad usage, before any work."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import click

from interp.errors import LabError, choose, did_you_mean
from interp.files import check_writable

DTYPES = ("float32", "float64", "bfloat16", "float16")
BACKENDS = ("native", "transformer-lens")


class Name(click.ParamType):
    """One of the names that `known()` gives, which is asked only when a command runs."""

    def __init__(self, kind: str, known: Callable[[], Collection[str]]) -> None:
        self.name, self.known = kind, known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return choose(self.name, value, self.known())
        except LabError as problem:
            self.fail(str(problem), param, ctx)


class Device(click.ParamType):
    """A device as torch names it; whether it is there is for the run to find out."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", value):
            near = did_you_mean(value, ("cpu", "cuda", "cuda:0", "mps"))
            self.fail(f"unknown device {value!r}.{near}  expected cpu, cuda, cuda:1 or mps.", param, ctx)
        return str(value)


class OutputFile(click.ParamType):
    """A file that can be written, with one of some suffixes."""

    name = "file"

    def __init__(self, *suffixes: str) -> None:
        self.suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(value)
        if path.suffix not in self.suffixes:
            self.fail(f"{str(path)!r} ends in {path.suffix!r}; expected {' or '.join(self.suffixes)}.", param, ctx)
        try:
            return check_writable(path)
        except LabError as problem:
            self.fail(str(problem), param, ctx)


class Bytes(click.ParamType):
    """An amount of memory: a number of bytes, or one with a unit (powers of 1024)."""

    name = "size"
    units = ("", "K", "M", "G", "T")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([KMGT]?)(?:i?B)?", str(value), re.IGNORECASE)
        if found is None or float(found[1]) == 0:
            self.fail(f"{value!r} is no amount of memory; expected one such as 500MB or 2GB.", param, ctx)
        return int(float(found[1]) * 1024 ** self.units.index(found[2].upper()))


class Positions(click.ParamType):
    """Positions such as "3 -1" or "3,-1"; negative ones count from the end."""

    name = "positions"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        words = str(value).replace(",", " ").split()
        if not words or not all(re.fullmatch(r"-?\d{1,9}", word) for word in words):
            self.fail(f"expected positions such as '3 -1'; given {value!r}.", param, ctx)
        return [int(word) for word in words]


class OutputFolder(click.ParamType):
    """A folder that is there, or can be made."""

    name = "folder"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(value).expanduser().absolute()
        nearest = next(folder for folder in (path, *path.parents) if folder.exists())
        if not nearest.is_dir():
            self.fail(f"cannot make the folder {str(path)!r}: {str(nearest)!r} is a file.", param, ctx)
        try:
            check_writable(nearest / "new")
        except LabError:
            self.fail(f"cannot write to {str(path)!r}: no file can be made in {str(nearest)!r}.", param, ctx)
        return path


def _metrics() -> list[str]:
    from interp.metrics import NAMED

    return [*NAMED, "kl"]


def _tasks() -> tuple[str, ...]:
    from interp.tasks import NAMES

    return NAMES


def _sites() -> list[str]:
    from interp.sites import KINDS

    return [name for name, kind in KINDS.items() if kind.per_layer]


def _ablated() -> list[str]:
    from analyses.knockouts import KINDS_OF

    return list(KINDS_OF)


def _fills() -> tuple[str, ...]:
    from analyses.fills import VALUES

    return VALUES


def _traced() -> tuple[str, ...]:
    from analyses.tracing import SITES

    return SITES


METRIC, TASK, SITE = Name("metric", _metrics), Name("task", _tasks), Name("site", _sites)
ABLATED, FILL = Name("component", _ablated), Name("ablation value", _fills)
DIRECTION = Name("direction", lambda: ("denoise", "noise"))
TRACED, CORRUPTION = Name("site", _traced), Name("corruption", lambda: ("replacement", "noise"))
DTYPE, BACKEND = Name("dtype", lambda: DTYPES), Name("backend", lambda: BACKENDS)
