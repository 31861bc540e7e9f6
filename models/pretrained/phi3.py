"""Phi-3 checkpoints (Abdin et al. 2024, arXiv:2404.14219): Llama with fused tensors, and a window on every layer.

The long-context models ("longrope") run within their first context: beyond, their angles depend on the length of the
input (see `models.rotary_scaling`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.config import TransformerConfig
from models.pretrained.family import Entry, Family, require
from models.pretrained.llama import FIXED, NORMS, shape
from models.pretrained.rotary import local_layers, longrope, rotary_entries

_FIXED = FIXED | {"attn_bias": False, "mlp_bias": False}

_LONG = ("longrope", "su", "yarn")  # names of the same thing; the older ones are not what they are elsewhere

_LINEARS = (
    ("self_attn.qkv_proj", ("attn.q", "attn.k", "attn.v")),
    ("self_attn.o_proj", ("attn.o",)),
    ("mlp.gate_up_proj", ("mlp.gate", "mlp.in_")),
    ("mlp.down_proj", ("mlp.out",)),
)


def entries(cfg: TransformerConfig) -> list[Entry]:
    """Every stored tensor of such a model."""
    table = [Entry("embed_tokens.weight", ("embed.W_E",))]
    for i in range(cfg.n_layers):
        table += [Entry(f"layers.{i}.{theirs}.weight", (f"blocks.{i}.{ours}.w",)) for theirs, ours in NORMS]
        for theirs, parts in _LINEARS:
            table.append(Entry(f"layers.{i}.{theirs}.weight", tuple(f"blocks.{i}.{part}.weight" for part in parts)))
    table.append(Entry("norm.weight", ("ln_final.w",)))
    return table if cfg.tie_embeddings else [*table, Entry("lm_head.weight", ("unembed.weight",))]


def read_config(config: Mapping[str, Any]) -> TransformerConfig:
    """Our config of a Phi-3 config.json.

    Raises:
        LabError: an entry is missing, or asks for what the lab does not compute.
    """
    angles = rotary_entries(config)
    rotated = angles.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    window = config.get("sliding_window")
    sizes = shape({"rms_norm_eps": 1e-5, **config}) | _FIXED
    rotary_dim, scaling = int(sizes["d_head"] * rotated), None
    if angles["rope_type"] in _LONG:
        scaling = longrope(angles, config, rotary_dim // 2)
        sizes |= {"n_ctx": min(sizes["n_ctx"], scaling.original_n_ctx)}
    else:
        require(angles, {"rope_type": "default"})
    return TransformerConfig(
        **sizes,
        rotary_dim=rotary_dim,
        rotary_base=float(angles["rope_theta"]),
        rotary_scaling=scaling,
        **local_layers(config, lambda layer: window is not None, window),
    )


PHI3 = Family(
    name="Phi-3",
    model_types=("phi3",),
    architecture="Phi3ForCausalLM",
    prefix="model.",
    ignored=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    fixed=_FIXED,
    read_config=read_config,
    entries=entries,
)
