"""Directories of a HookedTransformer: the JSON of its config, and its state dict as TransformerLens 2 and 3 saved it.

config.json holds `HookedTransformerConfig.to_dict()`; the weights are `model.safetensors` or one `.pth` or `.pt` file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interp.errors import LabError
from models.config import TransformerConfig
from models.gpt import GPT
from models.hooked_transformer.weights import BUFFERS, check_names, config_of_hooked, from_hooked
from models.pretrained.assemble import hollow
from models.pretrained.places import Checkpoint
from models.pretrained.tensors import StoredTensors, open_file, open_tensors
from models.tokenizers import Tokenizer

_MARKS = {"d_model", "d_head", "n_layers", "n_ctx", "act_fn", "normalization_type"}


def is_hooked(config: Mapping[str, Any]) -> bool:
    return config.keys() >= _MARKS and "format" not in config


def read(
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    device: torch.device,
    dtype: torch.dtype | None,
) -> GPT:
    """The model of a HookedTransformer's directory.

    Raises:
        LabError: a config that asks for more than the lab computes, no weights or several, or weights that do not fit.
    """
    cfg = replace(_read_config(config), model_name=checkpoint.name)
    if checkpoint.step is not None:
        raise LabError(
            f"{str(checkpoint.directory)!r} has no revision {checkpoint.step!r}: it holds one version; try without it."
        )
    stored = _weights(checkpoint)
    check_names(list(stored), cfg)
    weights: dict[str, Tensor] = {}
    for names in _one_block_at_a_time(stored):
        state = from_hooked({name: stored.read(name) for name in names}, cfg, strict=False)
        for name, tensor in state.items():
            weights[name] = torch.empty(tensor.shape, device=device, dtype=dtype or cfg.dtype).copy_(tensor)
    model = hollow(cfg, tokenizer)
    model.load_state_dict(weights, assign=True)
    return model


def _read_config(config: Mapping[str, Any]) -> TransformerConfig:
    try:
        return config_of_hooked(config)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise LabError(f"config.json is not that of a HookedTransformer: {error}.") from error


def _one_block_at_a_time(stored: StoredTensors) -> Iterable[list[str]]:
    """The names of the tensors of each block, which are read together, and of all that is outside them."""
    groups: dict[str, list[str]] = {}
    for name in stored:
        if not name.endswith(BUFFERS):
            block = re.match(r"blocks\.\d+", name)
            groups.setdefault(block[0] if block else name, []).append(name)
    return groups.values()


def _weights(checkpoint: Checkpoint) -> StoredTensors:
    directory = checkpoint.directory
    files = sorted(path for path in directory.iterdir() if path.suffix in (".pth", ".pt"))
    if len(files) > 1:
        raise LabError(
            f"{str(directory)!r} holds the weights {', '.join(path.name for path in files)}; expected one of them."
        )
    if files and not any(directory.glob("*.safetensors")):
        return open_file(files[0])
    return open_tensors(directory)
