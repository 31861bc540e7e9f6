"""Qwen 2 (arXiv:2407.10671) and Qwen 3 (arXiv:2505.09388): Llama's names; biases, or normalised queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.config import TransformerConfig
from models.pretrained.family import Entry, Family, require
from models.pretrained.llama import FIXED, NORMS, QK_NORMS, shape, table
from models.pretrained.rotary import local_layers, rotary, rotary_entries


def entries2(cfg: TransformerConfig) -> list[Entry]:
    """Every stored tensor of a Qwen 2 model."""
    return table(cfg, NORMS)


def entries3(cfg: TransformerConfig) -> list[Entry]:
    """Every stored tensor of a Qwen 3 model."""
    return table(cfg, NORMS + QK_NORMS)


def read_config2(config: Mapping[str, Any]) -> TransformerConfig:
    """Our config of a Qwen 2 config.json: queries, keys and values have biases.

    Raises:
        LabError: an entry is missing, or asks for what the lab does not compute.
    """
    stated = {"num_key_value_heads": 32, **config}
    biases = {"attn_bias": True, "attn_out_bias": False, "mlp_bias": False}
    return TransformerConfig(**(shape(stated) | biases), **_positions(stated))


def read_config3(config: Mapping[str, Any]) -> TransformerConfig:
    """Our config of a Qwen 3 config.json: queries and keys of each head are normalised.

    Raises:
        LabError: an entry is missing, or asks for what the lab does not compute.
    """
    stated = {"num_key_value_heads": 32, "head_dim": 128, **config}
    return TransformerConfig(**(shape(stated) | {"mlp_bias": False}), **_positions(stated), qk_norm="head")


def _positions(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary angles, and a window for the layers from `max_window_layers` on where the config uses one."""
    angles = rotary_entries(config)
    require(angles, {"partial_rotary_factor": 1.0})
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window", False) else None
    first = config.get("max_window_layers", 28)
    return rotary(angles, config) | local_layers(config, lambda layer: window is not None and layer >= first, window)


QWEN2 = Family(
    name="Qwen 2",
    model_types=("qwen2",),
    architecture="Qwen2ForCausalLM",
    prefix="model.",
    ignored=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    fixed=FIXED,
    read_config=read_config2,
    entries=entries2,
)

QWEN3 = Family(
    name="Qwen 3",
    model_types=("qwen3",),
    architecture="Qwen3ForCausalLM",
    prefix="model.",
    ignored=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    fixed=FIXED,
    read_config=read_config3,
    entries=entries3,
)
