"""StarCoder 2 checkpoints (Lozhkov et al. 2024, arXiv:2402.19173).

Llama's attention with layer norms, biases and a plain MLP; where there is a window, every layer has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.config import TransformerConfig
from models.pretrained.family import Entry, Family, activation, require, wanted
from models.pretrained.rotary import local_layers, rotary, rotary_entries

_NORMS = (("input_layernorm", "ln1"), ("post_attention_layernorm", "ln2"))
_LINEARS = (
    ("self_attn.q_proj", "attn.q"),
    ("self_attn.k_proj", "attn.k"),
    ("self_attn.v_proj", "attn.v"),
    ("self_attn.o_proj", "attn.o"),
    ("mlp.c_fc", "mlp.in_"),
    ("mlp.c_proj", "mlp.out"),
)

_FIXED: dict[str, Any] = {
    "normalization_type": "LN",
    "positional_embedding_type": "rotary",
    "attention_dir": "causal",
    "gated_mlp": False,
    "attn_only": False,
    "parallel_attn_mlp": False,
    "unembed_bias": False,
}


def entries(cfg: TransformerConfig) -> list[Entry]:
    """Every stored tensor of such a model."""
    table = [Entry("embed_tokens.weight", ("embed.W_E",))]
    for i in range(cfg.n_layers):
        for theirs, ours in _NORMS:
            table.append(Entry(f"layers.{i}.{theirs}.weight", (f"blocks.{i}.{ours}.w",)))
            table.append(Entry(f"layers.{i}.{theirs}.bias", (f"blocks.{i}.{ours}.b",)))
        for theirs, ours in _LINEARS:
            for kind in ("weight", "bias") if cfg.attn_bias else ("weight",):
                table.append(Entry(f"layers.{i}.{theirs}.{kind}", (f"blocks.{i}.{ours}.{kind}",)))
    table += [Entry("norm.weight", ("ln_final.w",)), Entry("norm.bias", ("ln_final.b",))]
    return table if cfg.tie_embeddings else [*table, Entry("lm_head.weight", ("unembed.weight",))]


def read_config(config: Mapping[str, Any]) -> TransformerConfig:
    """Our config of a StarCoder 2 config.json.

    Raises:
        LabError: an entry is missing, or asks for what the lab does not compute.
    """
    angles = rotary_entries(config)
    require(angles, {"partial_rotary_factor": 1.0})
    biased, window = config.get("use_bias", True), config.get("sliding_window")
    return TransformerConfig(
        n_layers=wanted(config, "num_hidden_layers"),
        n_heads=wanted(config, "num_attention_heads"),
        n_key_value_heads=config.get("num_key_value_heads", 2),
        d_model=wanted(config, "hidden_size"),
        d_head=config.get("head_dim"),
        d_mlp=wanted(config, "intermediate_size"),
        d_vocab=wanted(config, "vocab_size"),
        n_ctx=wanted(config, "max_position_embeddings"),
        act_fn=activation(config.get("hidden_act", "gelu_pytorch_tanh")),
        eps=config.get("norm_epsilon", 1e-5),
        attn_bias=biased,
        mlp_bias=biased,
        tie_embeddings=config.get("tie_word_embeddings", True),
        init_range=config.get("initializer_range", 0.018042),
        **rotary(angles, config),
        **local_layers(config, lambda layer: window is not None, window),
        **_FIXED,
    )


STARCODER2 = Family(
    name="StarCoder 2",
    model_types=("starcoder2",),
    architecture="Starcoder2ForCausalLM",
    prefix="model.",
    ignored=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    fixed=_FIXED,
    read_config=read_config,
    entries=entries,
)
