"""Tiny checkpoints of the lab and of GPT-2's and Llama's shape, and ways to spoil them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp.errors import LabError
from models import GPT, TransformerConfig, load

TINY: dict[str, Any] = {"n_layers": 2, "n_heads": 2, "d_model": 8, "d_vocab": 7, "n_ctx": 6, "seed": 0}
TOKENS = torch.tensor([[0, 1, 2, 3]])
OTHER_SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "tied": {"tie_embeddings": True},
    "llama": {
        "normalization_type": "RMS",
        "positional_embedding_type": "rotary",
        "gated_mlp": True,
        "act_fn": "silu",
        "attn_bias": False,
        "mlp_bias": False,
        "n_key_value_heads": 1,
    },
}


def tiny(**changes: Any) -> GPT:
    return GPT(TransformerConfig(**(TINY | changes)))


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def change_weights(directory: Path, **changes: Any) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path) | changes
    path.unlink()
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def message_of(name: Any, **arguments: Any) -> str:
    with pytest.raises(LabError) as caught:
        load(name, **arguments)
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    return message


def bloom(directory: Path, **changes: Any) -> Path:
    """A checkpoint of an architecture that the lab's own code lacks, with entries of config.json changed."""
    from transformers import BloomConfig, BloomForCausalLM

    BloomForCausalLM(BloomConfig(vocab_size=7, hidden_size=8, n_layer=2, n_head=2)).save_pretrained(directory)
    change_config(directory, **changes)
    return directory
