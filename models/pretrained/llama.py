"""Llama checkpoints (Touvron et al. 2023, arXiv:2302.13971) and Mistral's (arXiv:2310.06825).

`shape` and `table` serve the later families that keep Llama's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.config import TransformerConfig
from models.pretrained.family import ACTIVATIONS_BACK, Entry, Family, activation, require, wanted
from models.pretrained.rotary import local_layers, rotary, rotary_entries

Names = tuple[tuple[str, str], ...]  # stored name, ours

NORMS: Names = (("input_layernorm", "ln1"), ("post_attention_layernorm", "ln2"))
QK_NORMS: Names = (("self_attn.q_norm", "attn.q_norm"), ("self_attn.k_norm", "attn.k_norm"))
_LINEARS: Names = (
    ("self_attn.q_proj", "attn.q"),
    ("self_attn.k_proj", "attn.k"),
    ("self_attn.v_proj", "attn.v"),
    ("self_attn.o_proj", "attn.o"),
    ("mlp.gate_proj", "mlp.gate"),
    ("mlp.up_proj", "mlp.in_"),
    ("mlp.down_proj", "mlp.out"),
)

FIXED: dict[str, Any] = {
    "normalization_type": "RMS",
    "positional_embedding_type": "rotary",
    "attention_dir": "causal",
    "gated_mlp": True,
    "attn_only": False,
    "parallel_attn_mlp": False,
    "unembed_bias": False,
}


def entries(cfg: TransformerConfig) -> list[Entry]:
    """Every stored tensor of such a model."""
    return table(cfg, NORMS)


def table(cfg: TransformerConfig, norms: Names) -> list[Entry]:
    """Every stored tensor of a model with Llama's names. norms: of a block."""
    rows = [Entry("embed_tokens.weight", ("embed.W_E",))]
    for i in range(cfg.n_layers):
        rows += [Entry(f"layers.{i}.{theirs}.weight", (f"blocks.{i}.{ours}.w",)) for theirs, ours in norms]
        for theirs, ours in _LINEARS:
            for kind in ("weight", "bias") if _is_biased(cfg, ours) else ("weight",):
                rows.append(Entry(f"layers.{i}.{theirs}.{kind}", (f"blocks.{i}.{ours}.{kind}",)))
    rows.append(Entry("norm.weight", ("ln_final.w",)))
    return rows if cfg.tie_embeddings else [*rows, Entry("lm_head.weight", ("unembed.weight",))]


def _is_biased(cfg: TransformerConfig, linear: str) -> bool:
    if linear.startswith("mlp"):
        return cfg.mlp_bias
    return cfg.out_bias if linear == "attn.o" else cfg.attn_bias


def shape(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of our config that Llama and the families after it read alike.

    Raises:
        LabError: an entry is missing, or names an unknown activation function.
    """
    n_heads, width = wanted(config, "num_attention_heads"), wanted(config, "hidden_size")
    return {
        "n_layers": wanted(config, "num_hidden_layers"),
        "n_heads": n_heads,
        "n_key_value_heads": config.get("num_key_value_heads") or n_heads,
        "d_model": width,
        "d_head": config.get("head_dim") or width // n_heads,
        "d_mlp": wanted(config, "intermediate_size"),
        "d_vocab": wanted(config, "vocab_size"),
        "n_ctx": wanted(config, "max_position_embeddings"),
        "act_fn": activation(config.get("hidden_act", "silu")),
        "eps": config.get("rms_norm_eps", 1e-6),
        "attn_bias": config.get("attention_bias", False),
        "mlp_bias": config.get("mlp_bias", False),
        "tie_embeddings": config.get("tie_word_embeddings", False),
        "init_range": config.get("initializer_range", 0.02),
        **FIXED,
    }


def read_config(config: Mapping[str, Any]) -> TransformerConfig:
    """Our config of a Llama or Mistral config.json.

    Raises:
        LabError: an entry is missing, or asks for what the lab does not compute.
    """
    window = None
    if config.get("model_type") == "mistral":
        config = {"num_key_value_heads": 8, "sliding_window": 4096, **config}  # where transformers' defaults differ
        window = config["sliding_window"]
    angles = rotary_entries(config)
    require(angles, {"partial_rotary_factor": 1.0})
    n_ctx = wanted(config, "max_position_embeddings")
    hides = window is not None and window < n_ctx  # a window as long as the context hides nothing
    layers = local_layers(config, lambda layer: hides, window)
    return TransformerConfig(**shape(config), **rotary(angles, config), **layers)


def write_config(cfg: TransformerConfig) -> dict[str, Any]:
    """The config.json of a model that has no obstacles."""
    return {
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads,
        "hidden_size": cfg.d_model,
        "head_dim": cfg.d_head,
        "intermediate_size": cfg.d_mlp,
        "vocab_size": cfg.d_vocab,
        "max_position_embeddings": cfg.n_ctx,
        "hidden_act": ACTIVATIONS_BACK[cfg.act_fn],
        "rms_norm_eps": cfg.eps,
        "rope_theta": cfg.rotary_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rotary_base},
        "attention_bias": cfg.attn_bias,
        "mlp_bias": cfg.mlp_bias,
        "tie_word_embeddings": cfg.tie_embeddings,
        "initializer_range": cfg.init_range,
        "attention_dropout": 0.0,
    }


class _Llama(Family):
    def obstacles(self, cfg: TransformerConfig) -> list[str]:
        differing = super().obstacles(cfg)
        if cfg.positional_embedding_type == "rotary" and cfg.rotary_dim != cfg.d_head:
            differing.append(f"rotary_dim={cfg.rotary_dim} (must be d_head={cfg.d_head})")
        return differing


LLAMA = _Llama(
    name="Llama",
    model_types=("llama", "mistral"),
    architecture="LlamaForCausalLM",
    prefix="model.",
    ignored=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    fixed=FIXED,
    read_config=read_config,
    write_config=write_config,
    entries=entries,
)
