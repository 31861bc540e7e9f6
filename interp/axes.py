"""The axes of a result's arrays: read from the annotations, checked against the arrays.

`Float[np.ndarray, "layer pos"]` declares an array with the axes `layer` and `pos`; `"*axes batch"` stands for
whatever the result's own `axes` say, followed by `batch`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np

from interp.errors import LabError

if TYPE_CHECKING:
    from interp.results import Result

FREE = "*axes"


def declared(kind: type[Result]) -> dict[str, tuple[str, ...]]:
    """Axis names by array field, as the annotations of `kind` declare them.

    Raises:
        TypeError: an annotation uses more of jaxtyping's grammar than names and `*axes`, or an axis twice.
    """
    plain: Any = kind
    return _declared(plain)


@cache
def _declared(kind: Any) -> dict[str, tuple[str, ...]]:
    found = {}
    for name, hint in get_type_hints(kind).items():
        if getattr(hint, "array_type", None) is not np.ndarray:
            continue
        names = tuple(hint.dim_str.split())
        if not all(n.isidentifier() or n == FREE for n in names) or len(set(names)) < len(names):
            raise TypeError(f"{kind.__name__}.{name}: the axes {hint.dim_str!r} must be distinct names or '*axes'")
        found[name] = names
    return found


def resolve(names: tuple[str, ...], free: tuple[str, ...]) -> tuple[str, ...]:
    """`names` with `*axes` replaced by the names in `free`."""
    at = names.index(FREE) if FREE in names else len(names)
    return names[:at] + (free if FREE in names else ()) + names[at + 1 :]


def check_arrays(result: Result) -> dict[str, int]:
    """The size of every axis of `result`.

    Raises:
        LabError: an array has other axes than it declares, an axis has two sizes, or `axes` says too little.
    """
    sizes: dict[str, int] = {}
    seen: dict[str, str] = {}
    for name, array in result.arrays.items():
        axes, where = result.axes_of(name), f"{type(result).__name__}.{name}"
        if array.dtype.kind not in "fiubU":
            raise LabError(f"{where} holds {array.dtype}; expected numbers or text")
        if len(axes) != array.ndim or len(set(axes)) < len(axes):
            raise LabError(
                f"{where} has shape {list(array.shape)}; expected the axes [{' '.join(axes)}]"
                + ("; name them with axes=(...)" if FREE in declared(type(result))[name] else "")
            )
        for axis, size in zip(axes, array.shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise LabError(f"{where} has {size} along {axis!r}; {seen[axis]} has {sizes[axis]}")
            seen.setdefault(axis, where)
    return sizes


def check_labels(result: Result, sizes: dict[str, int]) -> dict[str, tuple[Any, ...]]:
    """The labels of `result` as tuples of plain integers or strings.

    Raises:
        LabError: labels for an axis that no array has, of the wrong number, or of mixed or other types.
    """
    checked = {}
    for axis, given in result.labels.items():
        where = f"{type(result).__name__}: labels for {axis!r}"
        if axis not in sizes:
            raise LabError(f"{where} fit no axis; its axes are {', '.join(sizes) or 'none'}")
        named = tuple(n.item() if isinstance(n, np.generic) else n for n in given)
        if len(named) != sizes[axis]:
            raise LabError(f"{where}: {len(named)} given, the axis has {sizes[axis]}")
        if not (all(type(n) is int for n in named) or all(isinstance(n, str) for n in named)):
            raise LabError(f"{where} must be all integers or all strings; got {list(named)[:5]}")
        checked[axis] = named
    return checked
