"""T5 checkpoints (Raffel et al. 2020, arXiv:1910.10683), as transformers' `T5ForConditionalGeneration` stores them.

Versions 1.0 (ReLU; the embedding unembeds, scaled) and 1.1 (gated GELU; an unembedding of its own). There are no
biases, scores are not scaled, and the relative positions of a side are stored with its first layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from models.encoder_decoder_config import EncoderDecoderConfig
from models.pretrained.family import (
    Entry,
    Family,
    UnsupportedError,
    activation,
    check_shared_embedding,
    require,
    wanted,
)
from models.pretrained.tensors import StoredTensors

# Parts of a block in the order of their numbers, stored name and ours; the MLP comes last and keeps its number.
_ATTENTION = tuple((name, name) for name in ("q", "k", "v", "o"))
_MLPS = {False: (("wi", "in_"), ("wo", "out")), True: (("wi_0", "gate"), ("wi_1", "in_"), ("wo", "out"))}

_FIXED: dict[str, Any] = {
    "normalization_type": "RMS",
    "positional_embedding_type": "none",
    "attn_scale": 1.0,
    "attn_bias": False,
    "mlp_bias": False,
    "default_prepend_bos": False,
}


def entries(cfg: EncoderDecoderConfig) -> list[Entry]:
    """Every stored tensor of such a model."""
    table = [Entry("shared.weight", ("embed.W_E",))]
    for side in ("encoder", "decoder"):
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        table.append(Entry(bias, (f"{side}_positions.rel_pos_bias.weight",)))
        for layer in range((cfg.encoder if side == "encoder" else cfg.decoder).n_layers):
            table += _block(f"{side}.block.{layer}.layer", f"{side}.{layer}", side == "decoder", cfg.gated_mlp)
        table.append(Entry(f"{side}.final_layer_norm.weight", (f"{side}_final_ln.w",)))
    return table if cfg.tie_embeddings else [*table, Entry("lm_head.weight", ("unembed.weight",))]


def _block(theirs: str, ours: str, crosses: bool, gated: bool) -> Iterator[Entry]:
    steps = [("SelfAttention", "attn", _ATTENTION)]
    steps += [("EncDecAttention", "cross_attn", _ATTENTION)] if crosses else []
    for number, (stored, part, names) in enumerate([*steps, ("DenseReluDense", "mlp", _MLPS[gated])]):
        yield Entry(f"{theirs}.{number}.layer_norm.weight", (f"{ours}.ln{number + 1}.w",))
        for name, own in names:
            yield Entry(f"{theirs}.{number}.{stored}.{name}.weight", (f"{ours}.{part}.{own}.weight",))


def read_config(config: Mapping[str, Any]) -> EncoderDecoderConfig:
    """Our config of a T5 config.json. The longest input is the one of its training, which T5 itself does not limit.

    Raises:
        LabError: an entry is missing, or asks for what the lab does not compute.
    """
    require(config, {"is_encoder_decoder": True})
    kind, _, gate = str(config.get("feed_forward_proj", "relu")).rpartition("-")
    if kind not in ("", "gated"):
        raise UnsupportedError(f"config.json has feed_forward_proj={config['feed_forward_proj']!r}.")
    act = "gelu_new" if (kind, gate) == ("gated", "gelu") else activation(gate)
    width, padding = wanted(config, "d_model"), config.get("pad_token_id", 0)
    # transformers 5 says it outright; before, an embedding that also unembeds was the sign of version 1.0.
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
    return EncoderDecoderConfig(
        n_layers=wanted(config, "num_layers"),
        n_decoder_layers=config.get("num_decoder_layers"),
        n_heads=wanted(config, "num_heads"),
        d_model=width,
        d_head=wanted(config, "d_kv"),
        d_mlp=wanted(config, "d_ff"),
        d_vocab=wanted(config, "vocab_size"),
        n_ctx=config.get("n_positions", 512),
        act_fn=act,
        gated_mlp=kind == "gated",
        eps=config.get("layer_norm_epsilon", 1e-6),
        relative_attention_num_buckets=config.get("relative_attention_num_buckets", 32),
        relative_attention_max_distance=config.get("relative_attention_max_distance", 128),
        tie_embeddings=True,
        unembed_scale=width**-0.5 if scaled else None,
        decoder_start_token_id=config.get("decoder_start_token_id", padding),
        pad_token_id=padding,
        eos_token_id=config.get("eos_token_id", 1),
        **_FIXED,
    )


def with_tensors(cfg: EncoderDecoderConfig, stored: StoredTensors) -> EncoderDecoderConfig:
    """Version 1.1's config as transformers writes it says that the embeddings are tied, yet there is a head of its own.

    Raises:
        LabError: the two sides have embeddings of their own.
    """
    check_shared_embedding(stored)
    own = "lm_head.weight" in stored and not stored.same("lm_head.weight", "shared.weight")
    return replace(cfg, tie_embeddings=not own)


T5 = Family(
    name="T5",
    model_types=("t5",),
    architecture="T5ForConditionalGeneration",
    prefix="",
    ignored=r"(en|de)coder\.embed_tokens\.weight|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    fixed=_FIXED,
    read_config=read_config,
    entries=entries,
    kind="encoder-decoder",
    with_tensors=with_tensors,
)
