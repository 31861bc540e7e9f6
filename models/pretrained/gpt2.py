"""GPT-2 checkpoints (Radford et al. 2019), as transformers' `GPT2LMHeadModel` stores them.

Linear weights are stored as [in, out], queries, keys and values fused in one `c_attn`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.config import TransformerConfig
from models.pretrained.family import ACTIVATIONS_BACK, Entry, Family, activation, require, wanted

# In a block: stored name, ours. Weights of "linear" ones are [in, out].
_NORMS = (("ln_1", "ln1"), ("ln_2", "ln2"))
_LINEARS = (
    ("attn.c_attn", ("attn.q", "attn.k", "attn.v")),
    ("attn.c_proj", ("attn.o",)),
    ("mlp.c_fc", ("mlp.in_",)),
    ("mlp.c_proj", ("mlp.out",)),
)

_FIXED: dict[str, Any] = {
    "normalization_type": "LN",
    "positional_embedding_type": "learned",
    "attention_dir": "causal",
    "gated_mlp": False,
    "attn_only": False,
    "parallel_attn_mlp": False,
    "attn_bias": True,
    "mlp_bias": True,
    "unembed_bias": False,
}


def entries(cfg: TransformerConfig) -> list[Entry]:
    """Every stored tensor of such a model."""
    table = [Entry("wte.weight", ("embed.W_E",)), Entry("wpe.weight", ("pos_embed.W_pos",))]
    for i in range(cfg.n_layers):
        for theirs, ours in _NORMS:
            table.append(Entry(f"h.{i}.{theirs}.weight", (f"blocks.{i}.{ours}.w",)))
            table.append(Entry(f"h.{i}.{theirs}.bias", (f"blocks.{i}.{ours}.b",)))
        for theirs, parts in _LINEARS:
            weights = tuple(f"blocks.{i}.{part}.weight" for part in parts)
            biases = tuple(f"blocks.{i}.{part}.bias" for part in parts)
            table.append(Entry(f"h.{i}.{theirs}.weight", weights, transposed=True))
            table.append(Entry(f"h.{i}.{theirs}.bias", biases))
    table += [Entry("ln_f.weight", ("ln_final.w",)), Entry("ln_f.bias", ("ln_final.b",))]
    return table if cfg.tie_embeddings else [*table, Entry("lm_head.weight", ("unembed.weight",))]


def read_config(config: Mapping[str, Any]) -> TransformerConfig:
    """Our config of a GPT-2 config.json.

    Raises:
        LabError: an entry is missing, or asks for what the lab does not compute.
    """
    require(
        config,
        {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    )
    width = wanted(config, "n_embd")
    return TransformerConfig(
        n_layers=wanted(config, "n_layer"),
        n_heads=wanted(config, "n_head"),
        d_model=width,
        d_vocab=wanted(config, "vocab_size"),
        n_ctx=wanted(config, "n_positions", "n_ctx"),
        d_mlp=config.get("n_inner") or 4 * width,
        act_fn=activation(config.get("activation_function", "gelu_new")),
        eps=config.get("layer_norm_epsilon", 1e-5),
        tie_embeddings=config.get("tie_word_embeddings", True),
        init_range=config.get("initializer_range", 0.02),
        **_FIXED,
    )


def write_config(cfg: TransformerConfig) -> dict[str, Any]:
    """The config.json of a model that has no obstacles."""
    return {
        "n_layer": cfg.n_layers,
        "n_head": cfg.n_heads,
        "n_embd": cfg.d_model,
        "n_inner": cfg.d_mlp,
        "vocab_size": cfg.d_vocab,
        "n_positions": cfg.n_ctx,
        "activation_function": ACTIVATIONS_BACK[cfg.act_fn],
        "layer_norm_epsilon": cfg.eps,
        "tie_word_embeddings": cfg.tie_embeddings,
        "initializer_range": cfg.init_range,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


class _GPT2(Family):
    def obstacles(self, cfg: TransformerConfig) -> list[str]:
        differing = super().obstacles(cfg)
        if cfg.n_kv_heads != cfg.n_heads:
            differing.append(f"n_key_value_heads={cfg.n_key_value_heads} (must be n_heads={cfg.n_heads})")
        if cfg.n_heads * cfg.head_size != cfg.d_model:
            differing.append(f"d_head={cfg.d_head} (must be d_model / n_heads)")
        return differing


GPT2 = _GPT2(
    name="GPT-2",
    model_types=("gpt2",),
    architecture="GPT2LMHeadModel",
    prefix="transformer.",
    ignored=r"h\.\d+\.attn\.(masked_)?bias",
    fixed=_FIXED,
    read_config=read_config,
    write_config=write_config,
    entries=entries,
)
