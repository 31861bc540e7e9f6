"""GPT-NeoX checkpoints (Black et al. 2022, arXiv:2204.06745), Pythia's among them (arXiv:2304.01373).

One fused tensor holds queries, keys and values, those of the first head first; a part of each head is rotated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from models.config import TransformerConfig
from models.pretrained.family import Entry, Family, activation, wanted
from models.pretrained.rotary import rotary, rotary_entries

_NORMS = (("input_layernorm", "ln1"), ("post_attention_layernorm", "ln2"))
_LINEARS = (("attention.dense", "attn.o"), ("mlp.dense_h_to_4h", "mlp.in_"), ("mlp.dense_4h_to_h", "mlp.out"))

_FIXED: dict[str, Any] = {
    "normalization_type": "LN",
    "positional_embedding_type": "rotary",
    "attention_dir": "causal",
    "gated_mlp": False,
    "attn_only": False,
    "mlp_bias": True,
    "unembed_bias": False,
}


def entries(cfg: TransformerConfig) -> list[Entry]:
    """Every stored tensor of such a model."""

    def parts_first(fused: Float[Tensor, "rows *columns"]) -> Float[Tensor, "rows *columns"]:
        return rearrange(fused, "(head part d) ... -> (part head d) ...", head=cfg.n_heads, part=3)

    table = [Entry("embed_in.weight", ("embed.W_E",))]
    for i in range(cfg.n_layers):
        for theirs, ours in _NORMS:
            table.append(Entry(f"layers.{i}.{theirs}.weight", (f"blocks.{i}.{ours}.w",)))
            table.append(Entry(f"layers.{i}.{theirs}.bias", (f"blocks.{i}.{ours}.b",)))
        for kind in ("weight", "bias") if cfg.attn_bias else ("weight",):
            fused = tuple(f"blocks.{i}.attn.{part}.{kind}" for part in "qkv")
            table.append(Entry(f"layers.{i}.attention.query_key_value.{kind}", fused, arrange=parts_first))
        for theirs, ours in _LINEARS:
            for kind in ("weight", "bias") if cfg.attn_bias or ours != "attn.o" else ("weight",):
                table.append(Entry(f"layers.{i}.{theirs}.{kind}", (f"blocks.{i}.{ours}.{kind}",)))
    table += [Entry("final_layer_norm.weight", ("ln_final.w",)), Entry("final_layer_norm.bias", ("ln_final.b",))]
    return table if cfg.tie_embeddings else [*table, Entry("embed_out.weight", ("unembed.weight",))]


def read_config(config: Mapping[str, Any]) -> TransformerConfig:
    """Our config of a GPT-NeoX config.json.

    Raises:
        LabError: an entry is missing, or asks for what the lab does not compute.
    """
    n_heads, width = wanted(config, "num_attention_heads"), wanted(config, "hidden_size")
    angles = rotary_entries(config, default_base=config.get("rotary_emb_base", 10000.0))
    rotated = angles.get("partial_rotary_factor", config.get("rotary_pct", 0.25))
    return TransformerConfig(
        n_layers=wanted(config, "num_hidden_layers"),
        n_heads=n_heads,
        d_model=width,
        d_mlp=wanted(config, "intermediate_size"),
        d_vocab=wanted(config, "vocab_size"),
        n_ctx=wanted(config, "max_position_embeddings"),
        act_fn=activation(config.get("hidden_act", "gelu")),
        eps=config.get("layer_norm_eps", 1e-5),
        rotary_dim=int(width // n_heads * rotated),
        parallel_attn_mlp=config.get("use_parallel_residual", True),
        attn_bias=config.get("attention_bias", True),
        tie_embeddings=config.get("tie_word_embeddings", False),
        init_range=config.get("initializer_range", 0.02),
        **rotary(angles, config),
        **_FIXED,
    )


NEOX = Family(
    name="GPT-NeoX",
    model_types=("gpt_neox",),
    architecture="GPTNeoXForCausalLM",
    prefix="gpt_neox.",
    ignored=r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
    fixed=_FIXED,
    read_config=read_config,
    entries=entries,
    head="embed_out",
)
