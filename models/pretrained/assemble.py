"""From stored tensors to a model, with one copy of the weights.

The model is built without storage (torch's meta device); every tensor is then read, cast, transposed and moved in
one copy, a piece at a time, so beside the model no more than a piece is in memory. Names and shapes are compared
before any data is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import LabError
from models.architectures import architecture
from models.pretrained.family import Entry
from models.pretrained.tensors import StoredTensors
from models.tokenizers import Tokenizer


def hollow(cfg: Any, tokenizer: Tokenizer | None, kind: str = "gpt") -> Any:
    """A model whose parameters have shapes but no storage. kind: its architecture (see `models.architectures`).

    Raises:
        LabError: the sizes are beyond what a tensor can have.
    """
    try:
        with torch.device("meta"):
            return architecture(kind).model_class(replace(cfg, device=None), tokenizer)
    except (RuntimeError, OverflowError) as error:
        raise LabError(f"config.json asks for sizes that no tensor has: {str(error).partition(chr(10))[0]}.") from error


def check_depth(n_layers: Any, stored: StoredTensors) -> None:
    """Compare a number of layers with that of the tensors, before anything is made for every layer.

    Raises:
        LabError: there are more layers.
    """
    if isinstance(n_layers, int) and n_layers > len(stored.entries):
        raise LabError(
            f"config.json contradicts the weights: {str(stored.label)!r} has {len(stored.entries)} tensors, the config "
            f"{n_layers} layers."
        )


def fill(
    model: Any, entries: Sequence[Entry], stored: StoredTensors, ignored: str, device: torch.device, dtype: torch.dtype
) -> Any:
    """Give the hollow `model` the stored weights.

    entries: which stored tensor holds which parameters. ignored: a regular expression for stored tensors to leave.

    Raises:
        LabError: tensors are missing, unexpected or of other shapes than the config makes them.
    """
    check(model, entries, stored, ignored)
    for entry in entries:
        shapes = [model.get_parameter(name).shape for name in entry.parameters]
        parts = [torch.empty(shape, device=device, dtype=dtype) for shape in shapes]
        _copy(entry, stored, parts)
        for name, part in zip(entry.parameters, parts, strict=True):
            _place(model, name, part)
    if getattr(model._cfg, "tie_embeddings", False):
        model.unembed.weight = model.embed.W_E
    return model


def _copy(entry: Entry, stored: StoredTensors, parts: Sequence[Tensor]) -> None:
    """Copy a stored tensor to the parameters that it holds."""
    for first, piece in _pieces(entry, stored):
        if entry.transposed:  # its rows are the columns of every part
            for part, columns in zip(parts, piece.split([len(part) for part in parts], 1), strict=True):
                part[:, first : first + len(piece)].copy_(columns.T)
            continue
        start = entry.rows_from
        for part in parts:
            low, high = max(first, start), min(first + len(piece), start + len(part))
            if low < high:
                part[low - start : high - start].copy_(piece[low - first : high - first])
            start += len(part)


def _pieces(entry: Entry, stored: StoredTensors) -> Iterator[tuple[int, Tensor]]:
    if entry.leading_axis:
        return iter([(0, stored.read(entry.stored)[0])])
    if entry.arrange is None:
        return stored.pieces(entry.stored)
    return iter([(0, entry.arrange(stored.read(entry.stored)))])


def check(model: nn.Module, entries: Sequence[Entry], stored: StoredTensors, ignored: str) -> None:
    """Compare names and shapes of what is stored with what the config asks for.

    Raises:
        LabError: they differ; the message lists how.
    """
    expected = {entry.stored: _stored_shape(model, entry) for entry in entries}
    missing = [name for name in expected if name not in stored]
    unexpected = [name for name in stored if name not in expected and not re.search(f"(^|\\.)({ignored})$", name)]
    if missing or unexpected:
        raise LabError(
            f"{str(stored.label)!r} does not fit its config.json: missing {_listed(missing)}; "
            f"not expected {_listed(unexpected)}.  Check that both files come from the same model."
        )
    for name, shape in expected.items():
        found = stored.entries[name].shape
        if found != shape:
            raise LabError(
                f"config.json contradicts the weights: {name!r} has shape {list(found)} in "
                f"{str(stored.entries[name].file)!r}, the config makes it {list(shape)}."
            )


def _stored_shape(model: nn.Module, entry: Entry) -> tuple[int, ...]:
    shapes = [tuple(model.get_parameter(name).shape) for name in entry.parameters]
    whole = (entry.rows_from + sum(shape[0] for shape in shapes), *shapes[0][1:])
    whole = whole[::-1] if entry.transposed else whole
    return (1, *whole) if entry.leading_axis else whole


def _place(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor))


def _listed(names: Sequence[str], n: int = 4) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(repr(name) for name in names[:n]) + more
