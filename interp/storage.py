"""Results as files: arrays in safetensors, everything else as JSON in its header.

No pickle, no code in the file: a class is found by its name among those that are imported.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.errors import LabError, did_you_mean
from interp.files import check_writable, whole_file
from interp.provenance import Provenance

if TYPE_CHECKING:
    from interp.results import Result

FORMAT = "interp-result-1"

_kinds: dict[str, type[Result]] = {}


def register(kind: type[Result]) -> None:
    """Let `load` find `kind` by its name; of two with one name, the module decides."""
    _kinds[f"{kind.__module__}.{kind.__name__}"] = kind


def save(result: Result, path: str | os.PathLike[str]) -> None:
    """Write `result` to `path`, whole or not at all.

    Raises:
        LabError: the path cannot be written to, or a field is not plain data.
    """
    from safetensors.numpy import save_file

    path = check_writable(path)
    numbers: dict[str, np.ndarray] = {}
    header = {"format": FORMAT, **_header(result, numbers)}
    try:
        metadata = {name: json.dumps(value) for name, value in header.items()}
    except (TypeError, ValueError) as problem:
        raise LabError(f"cannot save {type(result).__name__}: a field is not plain data ({problem})") from problem
    with whole_file(path) as part:
        save_file(numbers, part, metadata=metadata)


def _header(result: Result, numbers: dict[str, np.ndarray], inside: str = "") -> dict[str, Any]:
    """What JSON holds of a result and of the results in it; their numbers are put into `numbers`, by dotted name."""
    kind, parts = type(result), _parts(result)
    numbers |= {inside + n: np.asarray(a, order="C") for n, a in result.arrays.items() if a.dtype.kind != "U"}
    return {
        "kind": f"{kind.__module__}.{kind.__name__}",
        "axes": list(result.axes),
        "labels": {axis: list(named) for axis, named in result.labels.items()},
        "texts": {n: a.tolist() for n, a in result.arrays.items() if a.dtype.kind == "U"},
        "facts": {name: value for name, value in result.facts.items() if name not in parts},
        "parts": {name: _header(part, numbers, f"{inside}{name}.") for name, part in parts.items()},
        "provenance": result.provenance.to_dict(),
    }


def _parts(result: Result) -> dict[str, Result]:
    """The fields of a result that are results themselves."""
    from interp.results import Result

    return {name: value for name, value in result.facts.items() if isinstance(value, Result)}


def load(path: str | os.PathLike[str], expected: type[Any]) -> Any:
    """Read a result that `save` wrote.

    Raises:
        LabError: the file is missing, damaged, no saved result, or not an `expected`.
    """
    header, arrays = _read(Path(path).expanduser())
    kind = _kind_named(header["kind"])
    if not issubclass(kind, expected):
        raise LabError(f"{str(path)!r} holds a {kind.__name__}; expected a {expected.__name__}")
    try:
        return _made(header, arrays)
    except (TypeError, AttributeError, KeyError) as problem:
        raise LabError(f"{str(path)!r} does not fit {kind.__name__}: {problem}") from problem


def _made(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray], inside: str = "") -> Result:
    """The result that `_header` described."""
    kind = _kind_named(header["kind"])
    values: dict[str, Any] = {n.removeprefix(inside): a for n, a in arrays.items() if n.startswith(inside)}
    values |= {name: np.asarray(rows, dtype=str) for name, rows in header["texts"].items()}
    values |= {name: _tupled(value) for name, value in header["facts"].items()}
    values |= {name: _made(part, arrays, f"{inside}{name}.") for name, part in header.get("parts", {}).items()}
    known = {f.name for f in fields(kind)}
    return kind(
        **{name: value for name, value in values.items() if name in known},
        axes=tuple(header["axes"]),
        labels=header["labels"],
        provenance=Provenance.from_dict(header["provenance"]),
    )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise LabError(f"no file {str(path)!r}; expected a result written by .save(path)")
    try:
        with safe_open(path, framework="numpy") as file:
            header = {name: json.loads(value) for name, value in (file.metadata() or {}).items() if value[:1] in '"[{'}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as problem:
        raise LabError(f"{str(path)!r} is damaged or not a safetensors file ({problem})") from problem
    missing = {"kind", "axes", "labels", "texts", "facts", "provenance"} - set(header)
    if header.get("format") != FORMAT or missing:
        raise LabError(f"{str(path)!r} is not a saved result (format {header.get('format')!r}; expected {FORMAT!r})")
    return header, arrays


def _kind_named(name: str) -> type[Result]:
    """The registered class of that name, or the only one whose bare name fits (a class may have moved)."""
    bare = name.rpartition(".")[2]
    namesakes = [kind for known, kind in _kinds.items() if known.rpartition(".")[2] == bare]
    if name in _kinds:
        return _kinds[name]
    if len(namesakes) == 1:
        return namesakes[0]
    raise LabError(
        f"no result class {name!r} is imported.{did_you_mean(name, _kinds)}  "
        f"import the module that defines it first: import {name.rpartition('.')[0]}"
    )


def _tupled(value: Any) -> Any:
    """JSON's lists as tuples, as frozen results hold them."""
    if isinstance(value, list):
        return tuple(_tupled(item) for item in value)
    if isinstance(value, dict):
        return {key: _tupled(item) for key, item in value.items()}
    return value


def plain(value: Any) -> Any:
    """`value` as strict JSON can hold it: arrays as lists, NaN and infinities as None, results as their `to_dict`."""
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
