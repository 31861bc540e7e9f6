"""GPT-J checkpoints (Wang & Komatsuzaki 2021): attention and MLP read one norm's output, and the logits have a bias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.config import TransformerConfig
from models.pretrained.family import Entry, Family, activation, wanted

_ATTENTION = (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("out_proj", "o"))
_MLP = (("fc_in", "in_"), ("fc_out", "out"))

_FIXED: dict[str, Any] = {
    "normalization_type": "LN",
    "positional_embedding_type": "rotary",
    "rotary_adjacent_pairs": True,
    "rotary_base": 10000.0,
    "attention_dir": "causal",
    "gated_mlp": False,
    "attn_only": False,
    "parallel_attn_mlp": True,
    "attn_bias": False,
    "mlp_bias": True,
    "unembed_bias": True,
}


def entries(cfg: TransformerConfig) -> list[Entry]:
    """Every stored tensor of such a model; its one norm of a block is both of ours."""
    table = [Entry("wte.weight", ("embed.W_E",))]
    for i in range(cfg.n_layers):
        for norm in ("ln1", "ln2"):
            table.append(Entry(f"h.{i}.ln_1.weight", (f"blocks.{i}.{norm}.w",)))
            table.append(Entry(f"h.{i}.ln_1.bias", (f"blocks.{i}.{norm}.b",)))
        for theirs, ours in _ATTENTION:
            table.append(Entry(f"h.{i}.attn.{theirs}.weight", (f"blocks.{i}.attn.{ours}.weight",)))
        for theirs, ours in _MLP:
            for kind in ("weight", "bias"):
                table.append(Entry(f"h.{i}.mlp.{theirs}.{kind}", (f"blocks.{i}.mlp.{ours}.{kind}",)))
    table += [Entry("ln_f.weight", ("ln_final.w",)), Entry("ln_f.bias", ("ln_final.b",))]
    table.append(Entry("lm_head.bias", ("unembed.bias",)))
    return table if cfg.tie_embeddings else [*table, Entry("lm_head.weight", ("unembed.weight",))]


def read_config(config: Mapping[str, Any]) -> TransformerConfig:
    """Our config of a GPT-J config.json.

    Raises:
        LabError: an entry is missing, or asks for what the lab does not compute.
    """
    width = wanted(config, "n_embd")
    return TransformerConfig(
        n_layers=wanted(config, "n_layer"),
        n_heads=wanted(config, "n_head"),
        d_model=width,
        d_mlp=config.get("n_inner") or 4 * width,
        d_vocab=wanted(config, "vocab_size"),
        n_ctx=wanted(config, "n_positions"),
        act_fn=activation(config.get("activation_function", "gelu_new")),
        eps=config.get("layer_norm_epsilon", 1e-5),
        rotary_dim=wanted({"rotary_dim": 64, **config}, "rotary_dim"),
        tie_embeddings=config.get("tie_word_embeddings", False),
        init_range=config.get("initializer_range", 0.02),
        **_FIXED,
    )


GPTJ = Family(
    name="GPT-J",
    model_types=("gptj",),
    architecture="GPTJForCausalLM",
    prefix="transformer.",
    ignored=r"h\.\d+\.attn\.(masked_)?bias",
    fixed=_FIXED,
    read_config=read_config,
    entries=entries,
)
