"""BART checkpoints (Lewis et al. 2020, arXiv:1910.13461), as transformers' `BartForConditionalGeneration` stores them.

The block of 2017 (norms stand on the stream), learned positions whose first two rows belong to padding, a norm on the
embeddings, none at the end, and a constant on the logits that is not trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from models.encoder_decoder_config import EncoderDecoderConfig
from models.pretrained.family import Entry, Family, activation, check_shared_embedding, require, wanted
from models.pretrained.tensors import StoredTensors

_OFFSET = 2  # rows of the positions that no token has
_PROJECTIONS = (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("out_proj", "o"))
# In a block: stored name, ours, of weights and biases; and the norms that come after each step.
_ENCODER_NORMS = (("self_attn_layer_norm", "ln1"), ("final_layer_norm", "ln2"))
_DECODER_NORMS = (("self_attn_layer_norm", "ln1"), ("encoder_attn_layer_norm", "ln2"), ("final_layer_norm", "ln3"))

_FIXED: dict[str, Any] = {
    "normalization_type": "LN",
    "norm_places": "stream",
    "positional_embedding_type": "learned",
    "embed_norm": True,
    "final_norm": False,
    "eps": 1e-5,
    "default_prepend_bos": False,
}


def entries(cfg: EncoderDecoderConfig) -> list[Entry]:
    """Every stored tensor of such a model."""
    table = [Entry("shared.weight", ("embed.W_E",))]
    for side in ("encoder", "decoder"):
        positions = (f"{side}_positions.pos_embed.W_pos",)
        table.append(Entry(f"{side}.embed_positions.weight", positions, rows_from=_OFFSET))
        table += _norm(f"{side}.layernorm_embedding", f"{side}_positions.ln")
        for layer in range((cfg.encoder if side == "encoder" else cfg.decoder).n_layers):
            table += _block(f"{side}.layers.{layer}", f"{side}.{layer}", side == "decoder")
    if cfg.unembed_bias:
        table.append(Entry("final_logits_bias", ("unembed.bias",), leading_axis=True))
    return table


def _block(theirs: str, ours: str, crosses: bool) -> Iterator[Entry]:
    linears = [(f"self_attn.{name}", f"attn.{own}") for name, own in _PROJECTIONS]
    linears += [(f"encoder_attn.{name}", f"cross_attn.{own}") for name, own in _PROJECTIONS if crosses]
    for stored, part in (*linears, ("fc1", "mlp.in_"), ("fc2", "mlp.out")):
        for leaf in ("weight", "bias"):
            yield Entry(f"{theirs}.{stored}.{leaf}", (f"{ours}.{part}.{leaf}",))
    for stored, norm in _DECODER_NORMS if crosses else _ENCODER_NORMS:
        yield from _norm(f"{theirs}.{stored}", f"{ours}.{norm}")


def _norm(theirs: str, ours: str) -> list[Entry]:
    return [Entry(f"{theirs}.weight", (f"{ours}.w",)), Entry(f"{theirs}.bias", (f"{ours}.b",))]


def read_config(config: Mapping[str, Any]) -> EncoderDecoderConfig:
    """Our config of a BART config.json.

    Raises:
        LabError: an entry is missing, or asks for what the lab does not compute.
    """
    old = {"normalize_before": False, "add_final_layer_norm": False, "static_position_embeddings": False}
    always = {"is_encoder_decoder": True, "normalize_embedding": True, "extra_pos_embeddings": _OFFSET}
    require(config, {**always, **old, "tie_word_embeddings": True})
    width = wanted(config, "d_model")
    return EncoderDecoderConfig(
        n_layers=wanted(config, "encoder_layers"),
        n_decoder_layers=wanted(config, "decoder_layers"),
        n_heads=wanted(config, "encoder_attention_heads"),
        n_decoder_heads=wanted(config, "decoder_attention_heads"),
        d_model=width,
        d_mlp=wanted(config, "encoder_ffn_dim"),
        d_mlp_decoder=wanted(config, "decoder_ffn_dim"),
        d_vocab=wanted(config, "vocab_size"),
        n_ctx=wanted(config, "max_position_embeddings"),
        act_fn=activation(config.get("activation_function", "gelu")),
        embed_scale=math.sqrt(width) if config.get("scale_embedding", False) else None,
        tie_embeddings=True,
        init_range=config.get("init_std", 0.02),
        decoder_start_token_id=config.get("decoder_start_token_id", 2),
        pad_token_id=config.get("pad_token_id", 1),
        eos_token_id=config.get("eos_token_id", 2),
        **_FIXED,
    )


def with_tensors(cfg: EncoderDecoderConfig, stored: StoredTensors) -> EncoderDecoderConfig:
    """A bare base model has no constant on its logits.

    Raises:
        LabError: the two sides have embeddings of their own.
    """
    check_shared_embedding(stored)
    return replace(cfg, unembed_bias="final_logits_bias" in stored)


BART = Family(
    name="BART",
    model_types=("bart",),
    architecture="BartForConditionalGeneration",
    prefix="model.",
    ignored=r"(en|de)coder\.embed_tokens\.weight|(en|de)coder\.version",
    fixed=_FIXED,
    read_config=read_config,
    entries=entries,
    outside=("final_logits_bias",),
    kind="encoder-decoder",
    with_tensors=with_tensors,
)
