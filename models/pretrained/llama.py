"""Llama checkpoints (Touvron et al. 2023, arXiv:2302.13971), and Mistral's where every layer sees everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interp.errors import LabError
from models.config import TransformerConfig
from models.pretrained.family import ACTIVATIONS_BACK, TRY_THE_BRIDGE, Entry, Family, activation, require, wanted

_NORMS = (("input_layernorm", "ln1"), ("post_attention_layernorm", "ln2"))
_ATTENTION = (
    ("self_attn.q_proj", "q"),
    ("self_attn.k_proj", "k"),
    ("self_attn.v_proj", "v"),
    ("self_attn.o_proj", "o"),
)
_MLP = (("mlp.gate_proj", "gate"), ("mlp.up_proj", "in_"), ("mlp.down_proj", "out"))

_FIXED: dict[str, Any] = {
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
    table = [Entry("embed_tokens.weight", ("embed.W_E",))]
    for i in range(cfg.n_layers):
        table += [Entry(f"layers.{i}.{theirs}.weight", (f"blocks.{i}.{ours}.w",)) for theirs, ours in _NORMS]
        for part, linears, biased in (("attn", _ATTENTION, cfg.attn_bias), ("mlp", _MLP, cfg.mlp_bias)):
            for theirs, ours in linears:
                for kind in ("weight", "bias") if biased else ("weight",):
                    table.append(Entry(f"layers.{i}.{theirs}.{kind}", (f"blocks.{i}.{part}.{ours}.{kind}",)))
    table.append(Entry("norm.weight", ("ln_final.w",)))
    return table if cfg.tie_embeddings else [*table, Entry("lm_head.weight", ("unembed.weight",))]


def read_config(config: Mapping[str, Any]) -> TransformerConfig:
    """Our config of a Llama or Mistral config.json.

    Raises:
        LabError: an entry is missing, or asks for what the lab does not compute.
    """
    mistral = config.get("model_type") == "mistral"
    n_heads, width = wanted(config, "num_attention_heads"), wanted(config, "hidden_size")
    n_ctx = wanted(config, "max_position_embeddings")
    _check_window(config, n_ctx)
    return TransformerConfig(
        n_layers=wanted(config, "num_hidden_layers"),
        n_heads=n_heads,
        n_key_value_heads=config.get("num_key_value_heads") or (8 if mistral else n_heads),
        d_model=width,
        d_head=config.get("head_dim") or width // n_heads,
        d_mlp=wanted(config, "intermediate_size"),
        d_vocab=wanted(config, "vocab_size"),
        n_ctx=n_ctx,
        act_fn=activation(config.get("hidden_act", "silu")),
        eps=config.get("rms_norm_eps", 1e-6),
        rotary_base=rotary_base(config),
        attn_bias=config.get("attention_bias", False),
        mlp_bias=config.get("mlp_bias", False),
        tie_embeddings=config.get("tie_word_embeddings", False),
        init_range=config.get("initializer_range", 0.02),
        **_FIXED,
    )


def rotary_base(config: Mapping[str, Any]) -> float:
    """The base of the rotary angles, wherever the config keeps it.

    Raises:
        LabError: the angles are scaled, or only a part of the head is rotated.
    """
    places = [config.get(name) for name in ("rope_parameters", "rope_scaling")]
    for place in (place for place in places if place):
        kind = place.get("rope_type", place.get("type", "default"))
        if kind != "default":
            raise LabError(
                f"config.json scales the rotary positions (rope_type={kind!r}); the lab's own code computes only "
                f"'default'.  {TRY_THE_BRIDGE}"
            )
        require(place, {"partial_rotary_factor": 1.0})
    stated = [place["rope_theta"] for place in [*places, config] if place and place.get("rope_theta") is not None]
    return float(stated[0]) if stated else 10000.0


def _check_window(config: Mapping[str, Any], n_ctx: int) -> None:
    default = 4096 if config.get("model_type") == "mistral" else None
    window = config.get("sliding_window", default)
    if window is not None and window < n_ctx:
        raise LabError(
            f"config.json limits attention to a window of {window} of {n_ctx} positions; the lab's own code attends to "
            f"all of them.  {TRY_THE_BRIDGE}"
        )


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
    fixed=_FIXED,
    read_config=read_config,
    write_config=write_config,
    entries=entries,
)
