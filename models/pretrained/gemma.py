"""Gemma (arXiv:2403.08295), Gemma 2 (arXiv:2408.00118) and the text models of Gemma 3 (arXiv:2503.19786).

Llama's names, with gains stored as their distance from 1, and scaled embeddings. The later two have norms before and
after attention and MLP, and layers with a window between the others. Gemma 2 caps scores and logits, Gemma 3 normalises
queries and keys and turns the layers with a window by angles of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.config import TransformerConfig
from models.pretrained.family import Entry, Family, activation, require, wanted
from models.pretrained.llama import FIXED, QK_NORMS, shape, table
from models.pretrained.llama import entries as llama_entries
from models.pretrained.rotary import local_layers, rotary, rotary_entries

_NORMS = (
    ("input_layernorm", "ln1"),
    ("post_attention_layernorm", "ln1_post"),
    ("pre_feedforward_layernorm", "ln2"),
    ("post_feedforward_layernorm", "ln2_post"),
)

_CAUSAL = {"use_bidirectional_attention": False}


def read_config1(config: Mapping[str, Any]) -> TransformerConfig:
    """Our config of a Gemma config.json.

    Raises:
        LabError: an entry is missing, or asks for what the lab does not compute.
    """
    stated = {"num_key_value_heads": 16, "head_dim": 256, **config}
    name = config.get("hidden_act", "gelu_pytorch_tanh")
    angles = rotary_entries(stated)
    require(angles, {"partial_rotary_factor": 1.0})
    act_fn = activation("gelu_pytorch_tanh" if name == "gelu" else name)  # the first files say gelu and mean this
    return TransformerConfig(**(shape(stated) | _common(stated) | {"act_fn": act_fn}), **rotary(angles, stated))


def entries2(cfg: TransformerConfig) -> list[Entry]:
    """Every stored tensor of a Gemma 2 model."""
    return table(cfg, _NORMS)


def entries3(cfg: TransformerConfig) -> list[Entry]:
    """Every stored tensor of a Gemma 3 text model."""
    return table(cfg, _NORMS + QK_NORMS)


def read_config2(config: Mapping[str, Any]) -> TransformerConfig:
    """Our config of a Gemma 2 config.json.

    Raises:
        LabError: an entry is missing, or asks for what the lab does not compute.
    """
    stated = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, **config}
    angles = rotary_entries(stated)
    require(angles, {"partial_rotary_factor": 1.0})
    layers = local_layers(stated, lambda layer: layer % 2 == 0, stated.get("sliding_window", 4096))
    caps = {"attn_scores_soft_cap": stated["attn_logit_softcapping"]}
    return TransformerConfig(**(_shape(stated) | rotary(angles, stated) | layers | caps))


def read_config3(config: Mapping[str, Any]) -> TransformerConfig:
    """Our config of a Gemma 3 text model's config.json.

    Raises:
        LabError: an entry is missing, or asks for what the lab does not compute.
    """
    require(config, {"attn_logit_softcapping": None})
    everywhere, nested = rotary_entries(config, 1e6), config.get("rope_parameters") or {}
    angles = everywhere | (nested.get("full_attention") or {})
    local = {"rope_theta": config.get("rope_local_base_freq", 1e4)} | (nested.get("sliding_attention") or {})
    require(angles, {"partial_rotary_factor": 1.0})
    require(local, {"partial_rotary_factor": 1.0, "rope_type": "default"})
    period = config.get("sliding_window_pattern", 6)
    layers = local_layers(config, lambda layer: (layer + 1) % period != 0, config.get("sliding_window", 4096))
    own = {"rotary_base_local": float(local["rope_theta"]), "qk_norm": "head"}
    return TransformerConfig(**(_shape(config) | rotary(angles, config) | layers | own))


def _shape(config: Mapping[str, Any]) -> dict[str, Any]:
    """What Gemma 2 and 3 read alike."""
    stated = {"num_key_value_heads": 4, "head_dim": 256, **config}
    return (
        shape(stated)
        | _common(config)
        | {
            "act_fn": activation(config.get("hidden_activation") or "gelu_pytorch_tanh"),
            "norm_places": "both",
            "attn_scale": config.get("query_pre_attn_scalar", 256) ** 0.5,
            "output_logits_soft_cap": config.get("final_logit_softcapping"),
        }
    )


def _common(config: Mapping[str, Any]) -> dict[str, Any]:
    """What all three read alike."""
    require({"use_bidirectional_attention": bool(config.get("use_bidirectional_attention"))}, _CAUSAL)
    return {
        "mlp_bias": False,
        "tie_embeddings": config.get("tie_word_embeddings", True),
        "norm_gain_offset": 1.0,
        "embed_scale": wanted(config, "hidden_size") ** 0.5,
    }


GEMMA = Family(
    name="Gemma",
    model_types=("gemma",),
    architecture="GemmaForCausalLM",
    prefix="model.",
    ignored=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    fixed=FIXED,
    read_config=read_config1,
    entries=llama_entries,
)

GEMMA2 = Family(
    name="Gemma 2",
    model_types=("gemma2",),
    architecture="Gemma2ForCausalLM",
    prefix="model.",
    ignored=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    fixed=FIXED,
    read_config=read_config2,
    entries=entries2,
)

GEMMA3 = Family(
    name="Gemma 3",
    model_types=("gemma3_text",),
    architecture="Gemma3ForCausalLM",
    prefix="model.",
    ignored=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    fixed=FIXED,
    read_config=read_config3,
    entries=entries3,
)
