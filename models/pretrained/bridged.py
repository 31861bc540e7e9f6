"""Checkpoints through TransformerLens's bridge instead of the lab's own code."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from models.pretrained import native
from models.pretrained.export import to_huggingface
from models.pretrained.huggingface import check_plain, dtype_of
from models.pretrained.places import Checkpoint
from models.pretrained.tensors import read_json
from models.tokenizers import Tokenizer

if TYPE_CHECKING:
    from models.bridge import Bridge


def read(
    checkpoint: Checkpoint, tokenizer: Tokenizer | None, device: torch.device, dtype: torch.dtype | None
) -> Bridge:
    """A `Bridge` of a checkpoint; a directory of the lab's own format is exported to a temporary one first.

    Raises:
        LabError: the model has no counterpart in transformers, or TransformerLens does not know its architecture.
    """
    from models.bridge import boot

    config = read_json(checkpoint.directory / "config.json")
    if not native.is_native(config):
        check_plain(checkpoint, config)
        directory = checkpoint.directory
        bridge = boot(directory, device, dtype or dtype_of(config), tokenizer=tokenizer, model_name=checkpoint.name)
    else:
        model = native.read(checkpoint, config, tokenizer, torch.device("cpu"), dtype)
        with tempfile.TemporaryDirectory() as folder:
            exported = to_huggingface(model, Path(folder) / "model")
            bridge = boot(exported, device, model.dtype, tokenizer=tokenizer, model_name=model.cfg.model_name)
    bridge.revision = checkpoint.revision
    return bridge
