"""Results: labelled arrays that know where they come from.

A result is a frozen dataclass whose array fields say their axes in their jaxtyping annotation:

>>> import numpy as np
>>> from dataclasses import dataclass
>>> from jaxtyping import Float
>>> @dataclass(frozen=True)
... class Surprise(Result):
...     title = "Surprise"
...     shows = "how unlikely each token was, in nats"
...     caveat = "why it was unlikely"
...     values: Float[np.ndarray, "prompt pos"]
...     temperature: float = 1.0
>>> found = Surprise(np.array([[0.5, 2.0]]), labels={"pos": [" Mary", " John"]})
>>> found
Surprise(values[prompt 1, pos 2], temperature=1.0)
>>> found.top(1)
(Extreme(prompt 0, pos 1 '·John': +2),)

That is all a new result needs: the base class checks axes and labels, saves and loads (`.save`, `Result.load`),
makes a tidy table (`.to_dataframe`), plain data (`.to_dict`), a picture (`.plot`) and a page (`.to_html`).

**Axes that depend on the question** (a patching result is [layer, pos] or [layer, head]) are written `*axes` in
the annotation and named when the result is made: `PatchingResult(values, axes=("layer", "head"))`.
**Labels**: integers are the coordinates themselves (`{"layer": [0, 4, 8]}`); strings stand beside the index
and may repeat, as tokens do. **Tensors** may be given for arrays: they are brought to the CPU as numpy
(bfloat16 as float32). Arrays become read-only. Fields that are not arrays must be plain JSON values, or results
themselves, which are saved and shown as parts of the whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from jaxtyping import Shaped
from torch import Tensor

from interp import axes as _axes
from interp import storage, text
from interp.errors import LabError, choose
from interp.provenance import Provenance
from interp.style import Scale

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from interp.page import Section

R = TypeVar("R", bound="Result")
Labels = Mapping[str, Sequence[int] | Sequence[str]]


@dataclass(frozen=True)
class Extreme:
    """One entry of an array: its value and where it stands."""

    value: float
    index: tuple[int, ...]
    at: tuple[tuple[str, Any], ...]

    @property
    def place(self) -> str:
        """Where it stands, in words: `L9H6`, or `layer 3, pos 4 '·Mary'`."""
        return text.place(self.at)

    def __repr__(self) -> str:
        return f"Extreme({self.place}: {text.number(self.value)})"


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """Base of all results; see the module's docstring for how to write one.

    Class attributes that a subclass may set: `title`, `shows` and `caveat` (one sentence each, for its page:
    what is seen, what to mind about it), `primary` (the array that `top` and `plot` read by default), `unit` (what its
    numbers are, e.g. "logit difference"), `scale` (how they are coloured, see `interp.style`).

    Raises:
        LabError: at construction, when arrays, axes and labels do not fit together.
    """

    title: ClassVar[str] = ""
    shows: ClassVar[str] = ""
    caveat: ClassVar[str] = ""
    primary: ClassVar[str] = "values"
    unit: ClassVar[str] = ""
    scale: ClassVar[Scale | None] = None

    axes: tuple[str, ...] = field(default=(), kw_only=True)
    labels: Labels = field(default_factory=dict, kw_only=True)
    provenance: Provenance = field(default_factory=Provenance, kw_only=True)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name in ("__eq__", "__repr__"):  # the generated ones would compare arrays to a truth value
            if name not in cls.__dict__:
                setattr(cls, name, getattr(cls, name))
        storage.register(cls)

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", tuple(self.axes))
        for name in _axes.declared(type(self)):
            object.__setattr__(self, name, _frozen_array(getattr(self, name)))
        sizes = _axes.check_arrays(self)
        object.__setattr__(self, "labels", _axes.check_labels(self, sizes))

    # -- what it holds ------------------------------------------------------------------------------------------

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by field name."""
        return {name: getattr(self, name) for name in _axes.declared(type(self))}

    def axes_of(self, name: str) -> tuple[str, ...]:
        """The axes of the array `name`, in order.

        Raises:
            LabError: there is no such array.
        """
        declared = _axes.declared(type(self))
        return _axes.resolve(declared[choose("array", name, declared)], self.axes)

    @property
    def facts(self) -> dict[str, Any]:
        """The fields that are neither arrays nor part of every result."""
        common = {f.name for f in fields(Result)} | set(self.arrays)
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in common}

    def __repr__(self) -> str:
        def shape(name: str) -> str:
            pairs = zip(self.axes_of(name), getattr(self, name).shape, strict=True)
            return f"{name}[{', '.join(f'{axis} {size}' for axis, size in pairs)}]"

        parts = [shape(name) for name in self.arrays] + [f"{k}={v!r}" for k, v in self.facts.items()]
        return f"{type(self).__name__}({', '.join(parts)})"

    def __eq__(self, other: object) -> bool:
        """Equal when class, facts, axes, labels and every number agree (NaN equals NaN); provenance may differ."""
        if type(other) is not type(self) or not isinstance(other, Result):
            return NotImplemented
        return (self.axes, self.labels, self.facts) == (other.axes, other.labels, other.facts) and all(
            mine.dtype == other.arrays[name].dtype
            and np.array_equal(mine, other.arrays[name], equal_nan=mine.dtype.kind == "f")
            for name, mine in self.arrays.items()
        )

    # -- looking -----------------------------------------------------------------------------------------------

    def top(self, k: int = 10, of: str | None = None) -> tuple[Extreme, ...]:
        """The `k` entries furthest from zero, the furthest first; NaN is left out.

        A class whose `scale` has another middle counts its primary array from there: from 1, say, when 1 is no effect.
        """
        middle = self.scale.middle if self.scale and of in (None, self.primary) else None
        return self._extremes(-np.abs(self._numbers(of) - (middle or 0.0)), k, of)

    def highest(self, k: int = 10, of: str | None = None) -> tuple[Extreme, ...]:
        """The `k` largest entries, the largest first; NaN is left out."""
        return self._extremes(-self._numbers(of), k, of)

    def lowest(self, k: int = 10, of: str | None = None) -> tuple[Extreme, ...]:
        """The `k` smallest entries, the smallest first; NaN is left out."""
        return self._extremes(self._numbers(of), k, of)

    def _numbers(self, of: str | None) -> np.ndarray:
        name = of or self.primary
        self.axes_of(name)
        array = getattr(self, name)
        if array.dtype.kind not in "fiub":
            raise LabError(f"{name!r} holds {array.dtype}; expected numbers")
        return array.astype(np.float64)

    def _extremes(self, order: np.ndarray, k: int, of: str | None) -> tuple[Extreme, ...]:
        name = of or self.primary
        axes, array, flat = self.axes_of(name), getattr(self, name), order.reshape(-1)
        places = [p for p in np.argsort(flat, kind="stable")[: max(k, 0)] if not np.isnan(flat[p])]
        indices = [tuple(int(i) for i in np.unravel_index(p, array.shape)) for p in places]
        return tuple(
            Extreme(
                float(array[index]), index, tuple((a, self.coordinate(a, i)) for a, i in zip(axes, index, strict=True))
            )
            for index in indices
        )

    def coordinate(self, axis: str, index: int) -> Any:
        """What stands at `index` of `axis`: the index, the integer label, or `(index, text label)`."""
        if axis not in self.labels:
            return index
        named = self.labels[axis][index]
        return named if isinstance(named, int) else (index, named)

    def to_dataframe(self, of: str | None = None) -> pd.DataFrame:
        """A tidy table: one row per entry of the array `of` (default: the primary one), one column per axis.

        Axes with text labels get a second column `<axis>_label`. Other arrays with the same axes stand beside it.
        """
        import pandas as pd

        name = of or self.primary
        axes, shape = self.axes_of(name), getattr(self, name).shape
        columns: dict[str, Any] = {}
        for axis, index in zip(axes, np.indices(shape).reshape(len(axes), -1), strict=True):
            named = np.asarray(self.labels.get(axis, range(shape[axes.index(axis)])))
            columns[axis] = named[index] if named.dtype.kind == "i" else index
            if named.dtype.kind != "i":
                columns[f"{axis}_label"] = named[index]
        same = [other for other in self.arrays if self.axes_of(other) == axes]
        return pd.DataFrame(columns | {n: getattr(self, n).reshape(-1) for n in dict.fromkeys([name, *same])})

    def to_dict(self, arrays: Sequence[str] | None = None) -> dict[str, Any]:
        """Plain data for JSON (NaN and infinities as null): `arrays` by name, or all of them."""
        chosen = list(self.arrays if arrays is None else arrays)
        return {
            "kind": type(self).__name__,
            "axes": {name: list(self.axes_of(name)) for name in chosen},
            "labels": {axis: list(named) for axis, named in self.labels.items()},
            **{name: storage.plain(getattr(self, name)) for name in chosen},
            **storage.plain(self.facts),
            "provenance": storage.plain(self.provenance.to_dict()),
        }

    # -- keeping -----------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file, whole or not at all.

        Raises:
            LabError: the path cannot be written to, or a field is not plain data.
        """
        storage.save(self, path)

    @classmethod
    def load(cls: type[R], path: str | os.PathLike[str]) -> R:
        """Read what `save` wrote, as the class that wrote it. Nothing in the file is executed.

        Raises:
            LabError: the file is missing, damaged, no saved result, or of another class than `cls`.
        """
        return storage.load(path, cls)

    # -- showing -----------------------------------------------------------------------------------------------

    def plot(self) -> go.Figure:
        """The primary array as a picture: bars for one axis, a heatmap for two, a heatmap each for three."""
        from interp import pictures

        return pictures.of_result(self)

    def sections(self) -> tuple[Section, ...]:
        """What its page shows; a subclass with more to show overrides this."""
        from interp.page import Plot, Section

        figure = self.plot().update_layout(title=None)  # the section's heading says it
        return (Section(self.title or type(self).__name__, (Plot(figure),), self.shows, self.caveat),)

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """A page that needs no network, as text; also written to `path` when one is given.

        Raises:
            LabError: the path cannot be written to.
        """
        from interp.page import Page

        page = Page(self.title or type(self).__name__, self.sections(), self.provenance)
        return page.render() if path is None else page.write(path)


def _frozen_array(value: Any) -> Any:
    """`value` as a read-only array; anything that is neither tensor, array nor number stays for the check."""
    array = to_numpy(value) if isinstance(value, Tensor) else np.asarray(value)
    array = array.view()
    array.flags.writeable = False
    return array


def to_numpy(tensor: Shaped[Tensor, "..."]) -> Shaped[np.ndarray, "..."]:
    """The tensor's numbers on the CPU; types that numpy does not have (bfloat16) as float32."""
    tensor = tensor.detach()
    if tensor.is_floating_point() and tensor.dtype.itemsize < 4:
        tensor = tensor.float()
    return tensor.cpu().resolve_conj().resolve_neg().numpy()
