"""OPT checkpoints (Zhang et al. 2022, arXiv:2205.01068) that normalise before attention and MLP: all but OPT-350m.

The stored position vectors start with two that no position uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.config import TransformerConfig
from models.pretrained.family import Entry, Family, activation, require, wanted

_NORMS = (("self_attn_layer_norm", "ln1"), ("final_layer_norm", "ln2"))
_LINEARS = (
    ("self_attn.q_proj", "attn.q"),
    ("self_attn.k_proj", "attn.k"),
    ("self_attn.v_proj", "attn.v"),
    ("self_attn.out_proj", "attn.o"),
    ("fc1", "mlp.in_"),
    ("fc2", "mlp.out"),
)

_FIXED: dict[str, Any] = {
    "normalization_type": "LN",
    "eps": 1e-5,
    "positional_embedding_type": "learned",
    "attention_dir": "causal",
    "gated_mlp": False,
    "attn_only": False,
    "parallel_attn_mlp": False,
    "unembed_bias": False,
}


def entries(cfg: TransformerConfig) -> list[Entry]:
    """Every stored tensor of such a model."""
    table = [
        Entry("decoder.embed_tokens.weight", ("embed.W_E",)),
        Entry("decoder.embed_positions.weight", ("pos_embed.W_pos",), rows_from=2),
    ]
    for i in range(cfg.n_layers):
        for theirs, ours in _NORMS:
            table.append(Entry(f"decoder.layers.{i}.{theirs}.weight", (f"blocks.{i}.{ours}.w",)))
            table.append(Entry(f"decoder.layers.{i}.{theirs}.bias", (f"blocks.{i}.{ours}.b",)))
        for theirs, ours in _LINEARS:
            for kind in ("weight", "bias") if cfg.attn_bias else ("weight",):
                table.append(Entry(f"decoder.layers.{i}.{theirs}.{kind}", (f"blocks.{i}.{ours}.{kind}",)))
    table.append(Entry("decoder.final_layer_norm.weight", ("ln_final.w",)))
    table.append(Entry("decoder.final_layer_norm.bias", ("ln_final.b",)))
    return table if cfg.tie_embeddings else [*table, Entry("lm_head.weight", ("unembed.weight",))]


def read_config(config: Mapping[str, Any]) -> TransformerConfig:
    """Our config of an OPT config.json.

    Raises:
        LabError: an entry is missing, or asks for what the lab does not compute.
    """
    width, biased = wanted(config, "hidden_size"), config.get("enable_bias", True)
    projected = config.get("word_embed_proj_dim") or width
    require({**config, "word_embed_proj_dim": projected}, {"word_embed_proj_dim": width})
    require(
        config, {"do_layer_norm_before": True, "_remove_final_layer_norm": False, "layer_norm_elementwise_affine": True}
    )
    return TransformerConfig(
        n_layers=wanted(config, "num_hidden_layers"),
        n_heads=wanted(config, "num_attention_heads"),
        d_model=width,
        d_mlp=wanted(config, "ffn_dim"),
        d_vocab=wanted(config, "vocab_size"),
        n_ctx=wanted(config, "max_position_embeddings"),
        act_fn=activation(config.get("activation_function", "relu")),
        attn_bias=biased,
        mlp_bias=biased,
        tie_embeddings=config.get("tie_word_embeddings", True),
        init_range=config.get("init_std", 0.02),
        **_FIXED,
    )


OPT = Family(
    name="OPT",
    model_types=("opt",),
    architecture="OPTForCausalLM",
    prefix="model.",
    ignored=r"decoder\.version",
    fixed=_FIXED,
    read_config=read_config,
    entries=entries,
)
