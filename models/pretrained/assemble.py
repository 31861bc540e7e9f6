"""From stored tensors to a `GPT`, with one copy of the weights.

The model is built without storage (torch's meta device); every tensor is then read, cast, transposed and moved in
one copy. Names and shapes are compared before any data is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from interp.errors import LabError
from models.config import TransformerConfig
from models.gpt import GPT
from models.pretrained.family import Entry
from models.pretrained.tensors import StoredTensors
from models.tokenizers import Tokenizer


def hollow(cfg: TransformerConfig, tokenizer: Tokenizer | None) -> GPT:
    """A model whose parameters have shapes but no storage."""
    with torch.device("meta"):
        return GPT(replace(cfg, device=None), tokenizer)


def fill(
    model: GPT, entries: Sequence[Entry], stored: StoredTensors, ignored: str, device: torch.device, dtype: torch.dtype
) -> GPT:
    """Give the hollow `model` the stored weights.

    entries: which stored tensor holds which parameters. ignored: a regular expression for stored tensors to leave.

    Raises:
        LabError: tensors are missing, unexpected or of other shapes than the config makes them.
    """
    check(model, entries, stored, ignored)
    for entry in entries:
        tensor = stored.read(entry.stored)
        tensor = (tensor.T if entry.transposed else tensor)[entry.rows_from :]
        tensor = tensor if entry.arrange is None else entry.arrange(tensor)
        sizes = [model.get_parameter(name).shape[0] for name in entry.parameters]
        for name, part in zip(entry.parameters, tensor.split(sizes), strict=True):
            _place(model, name, torch.empty(part.shape, device=device, dtype=dtype).copy_(part))
    if model._cfg.tie_embeddings:
        model.unembed.weight = model.embed.W_E
    return model


def check(model: GPT, entries: Sequence[Entry], stored: StoredTensors, ignored: str) -> None:
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


def _stored_shape(model: GPT, entry: Entry) -> tuple[int, ...]:
    shapes = [tuple(model.get_parameter(name).shape) for name in entry.parameters]
    whole = (entry.rows_from + sum(shape[0] for shape in shapes), *shapes[0][1:])
    return whole[::-1] if entry.transposed else whole


def _place(model: GPT, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor))


def _listed(names: Sequence[str], n: int = 4) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(repr(name) for name in names[:n]) + more
