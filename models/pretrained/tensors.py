"""The tensors of a checkpoint, read a piece at a time: safetensors, whole or sharded, or as a last resort `.bin` files.

A file is mapped into memory, and the pages of it that were read count as the process's memory until it is unmapped.
So a safetensors file is mapped anew for every `PIECE` bytes, and of `.bin` files one is open at a time.

Nothing is ever unpickled: `.bin` files go through `torch.load(weights_only=True)`, which knows only tensors.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp.errors import LabError
from models.config import DTYPES

# In order of preference: one file, or an index that says which file holds which tensor.
_WHOLE = ("model.safetensors", "pytorch_model.bin")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
PIECE = 32 * 2**20
_SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Stored:
    """Where a tensor is and what it is like; the data is not read yet."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclass
class StoredTensors:
    """The tensors of a checkpoint by name: what each is like, and `read` and `pieces` for its data.

    label: the file to name in messages.
    """

    label: Path
    entries: dict[str, Stored]
    _opened: dict[Path, dict[str, Tensor]] = field(default_factory=dict)  # the `.bin` file that was read last

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def read(self, name: str) -> Tensor:
        """A tensor in host memory, mapped from its file where possible: copy it before keeping it.

        Raises:
            LabError: the data cannot be read, or is of a dtype that no model runs in.
        """
        return self._rows(name, slice(None))

    def pieces(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """The tensor in pieces of about `PIECE` bytes along its first axis: the first row of each, and its rows.

        Copy a piece before asking for the next.

        Raises:
            LabError: as `read`.
        """
        rows, row_bytes = self.entries[name].shape[0], self._check(name).itemsize * prod(self.entries[name].shape[1:])
        step = max(1, PIECE // max(1, row_bytes))
        for first in range(0, rows, step):
            yield first, self._rows(name, slice(first, first + step))

    def same(self, one: str, other: str) -> bool:
        """Whether two tensors are equal, read piece by piece."""
        a, b = self.entries[one], self.entries[other]
        if not a.shape or (a.shape, a.dtype) != (b.shape, b.dtype):
            return False
        pairs = zip(self.pieces(one), self.pieces(other), strict=True)
        return all(torch.equal(rows, others) for (_, rows), (_, others) in pairs)

    def _rows(self, name: str, rows: slice) -> Tensor:
        self._check(name)
        file = self.entries[name].file
        if file.suffix != ".safetensors":
            if file not in self._opened:
                self._opened.clear()
                self._opened[file] = _load_bin(file)
            return self._opened[file][name][rows]
        with _reading(file), safe_open(file, framework="pt") as opened:
            return opened.get_slice(name)[rows]

    def _check(self, name: str) -> torch.dtype:
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            raise LabError(
                f"{name!r} in {entry.file} has dtype {entry.dtype}; expected one of {', '.join(DTYPES)}. "
                "Quantised weights are not supported; load a full-precision checkpoint."
            )
        return DTYPES[entry.dtype]


def open_tensors(directory: Path) -> StoredTensors:
    """The weights of a checkpoint directory.

    Raises:
        LabError: there are none, or a file is missing, truncated, corrupt or a pickle.
    """
    for name in _WHOLE:
        if (directory / name).is_file():
            return open_file(directory / name)
        index = directory / f"{name}.index.json"
        if index.is_file():
            return _open_shards(index)
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLES)
    found = f"  Found {', '.join(pickles)}, but {_NO_PICKLES}" if pickles else ""
    raise LabError(
        f"no weights in {str(directory)!r}; expected model.safetensors or model.safetensors.index.json.{found}"
    )


def open_file(path: Path) -> StoredTensors:
    """The tensors of one file.

    Raises:
        LabError: the file is truncated, corrupt or a pickle.
    """
    if path.suffix != ".safetensors":
        tensors = _load_bin(path)
        entries = {n: Stored(path, tuple(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in tensors.items()}
        return StoredTensors(path, entries, {path: tensors})
    with _reading(path), safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 not a mapping
        entries = {
            name: Stored(path, tuple(s.get_shape()), _SAFETENSORS_DTYPES.get(s.get_dtype(), s.get_dtype()))
            for name, s in slices.items()
        }
    return StoredTensors(path, entries)


def _open_shards(index: Path) -> StoredTensors:
    entries: dict[str, Stored] = {}
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise LabError(f"{index} has no weight_map; expected the names of tensors and of the files that hold them.")
    for name in sorted({str(file) for file in files.values()}):
        path = index.parent / Path(name).name  # an index may not lead out of its directory
        if not path.is_file():
            raise LabError(f"{index} names {name!r}, which is not there; download the checkpoint again.")
        entries |= open_file(path).entries
    return StoredTensors(index, entries)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        LabError: the file holds something else, or cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LabError(f"cannot read {path} as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise LabError(f"{path} holds a {type(content).__name__}, expected a JSON object.")
    return content


_NO_PICKLES = (
    "a pickle runs code when it is opened, so the lab does not open it; expected safetensors. "
    "Convert it where you trust it: safetensors.torch.save_file(state_dict, 'model.safetensors')."
)


def refuse_pickle(path: Path) -> LabError:
    """The error for a pickle where weights were expected."""
    return LabError(f"{str(path)!r} is a pickle: {_NO_PICKLES}")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        with path.open("rb") as file:
            start = file.read(4)
        if start[:1] == b"\x80" or start == b"PK\x03\x04":  # a pickle, and the archive that torch.save puts it in
            raise refuse_pickle(path) from error
        raise LabError(
            f"cannot read {str(path)!r} as safetensors: {error}. It is truncated or corrupt; get the file again."
        ) from error


def _load_bin(path: Path) -> dict[str, Tensor]:
    try:
        content = _tensors_in(path)
    except pickle.UnpicklingError as error:
        raise refuse_pickle(path) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise LabError(f"cannot read {str(path)!r}: {error}. It is truncated or corrupt; get it again.") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise LabError(f"{str(path)!r} holds no plain table of tensors; expected the state dict of a model.")
    return content


def _tensors_in(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols, before the error that counts
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before torch 1.6 cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
