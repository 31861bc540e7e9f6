"""BERT, RoBERTa and DistilBERT checkpoints, as transformers' `...ForMaskedLM` stores them.

One architecture (Devlin et al. 2019, arXiv:1810.04805) under three tables of names. RoBERTa (arXiv:1907.11692) leaves
the first rows of the positions to padding and has one segment; DistilBERT (arXiv:1910.01108) has no segments. A
checkpoint without the head of a masked language model, such as a bare base model, has the stream and no trained logits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from models.bert_config import BertConfig
from models.pretrained.family import Entry, Family, activation, require, wanted
from models.pretrained.tensors import StoredTensors


@dataclass(frozen=True)
class Names:
    """What a family calls its tensors. layer: of a block, with {}. block: stored name, ours, within it. head: dense
    layer, norm and bias of the head, and the unembedding. first_position: the row of the first position of a token."""

    layer: str
    block: tuple[tuple[str, str], ...]
    head: tuple[str, str, str, str]
    first_position: int = 0


_BERT_BLOCK = (
    ("attention.self.query", "attn.q"),
    ("attention.self.key", "attn.k"),
    ("attention.self.value", "attn.v"),
    ("attention.output.dense", "attn.o"),
    ("attention.output.LayerNorm", "ln1"),
    ("intermediate.dense", "mlp.in_"),
    ("output.dense", "mlp.out"),
    ("output.LayerNorm", "ln2"),
)
_DISTIL_BLOCK = (
    ("attention.q_lin", "attn.q"),
    ("attention.k_lin", "attn.k"),
    ("attention.v_lin", "attn.v"),
    ("attention.out_lin", "attn.o"),
    ("sa_layer_norm", "ln1"),
    ("ffn.lin1", "mlp.in_"),
    ("ffn.lin2", "mlp.out"),
    ("output_layer_norm", "ln2"),
)
_CLS = "cls.predictions"
_BERT = Names(
    "encoder.layer.{}", _BERT_BLOCK,
    (f"{_CLS}.transform.dense", f"{_CLS}.transform.LayerNorm", f"{_CLS}.bias", f"{_CLS}.decoder.weight"),
)  # fmt: skip
_ROBERTA = Names(
    "encoder.layer.{}", _BERT_BLOCK,
    ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder.weight"),
    first_position=2,  # after that of padding, whose id is 1
)  # fmt: skip
_DISTIL = Names(
    "transformer.layer.{}", _DISTIL_BLOCK,
    ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias", "vocab_projector.weight"),
)  # fmt: skip


def table(names: Names) -> Callable[[BertConfig], list[Entry]]:
    """The table of a family."""

    def entries(cfg: BertConfig) -> list[Entry]:
        embeddings = "embeddings.{}_embeddings.weight".format
        found = [
            Entry(embeddings("word"), ("embed.W_E",)),
            Entry(embeddings("position"), ("pos_embed.W_pos",), rows_from=names.first_position),
            *_both("embeddings.LayerNorm", "embed_ln"),
        ]
        if cfg.n_segments is not None:
            found.append(Entry(embeddings("token_type"), ("token_type_embed.W_token_type",)))
        for layer in range(cfg.n_layers):
            for theirs, ours in names.block:
                found += _both(f"{names.layer.format(layer)}.{theirs}", f"blocks.{layer}.{ours}")
        return found + list(_head(cfg, names))

    return entries


def _head(cfg: BertConfig, names: Names) -> Iterator[Entry]:
    if not cfg.mlm_head:
        return
    dense, norm, bias, decoder = names.head
    yield from _both(dense, "ln_final.dense")
    yield from _both(norm, "ln_final.ln")
    if cfg.tie_embeddings:
        yield Entry(bias, ("unembed.bias",))
        return
    yield Entry(decoder, ("unembed.weight",))
    yield Entry(decoder.replace("weight", "bias"), ("unembed.bias",))


def _both(theirs: str, ours: str) -> list[Entry]:
    """Weight and bias; a norm's are called w and b."""
    weight, bias = ("w", "b") if ours.rpartition(".")[2] in ("ln1", "ln2", "ln", "embed_ln") else ("weight", "bias")
    return [Entry(f"{theirs}.weight", (f"{ours}.{weight}",)), Entry(f"{theirs}.bias", (f"{ours}.{bias}",))]


def read_bert(config: Mapping[str, Any]) -> BertConfig:
    """Our config of a BERT config.json.

    Raises:
        LabError: an entry is missing, or asks for what the lab does not compute.
    """
    act = activation(config.get("hidden_act", "gelu"))
    return _of_bert(config, n_ctx=config.get("max_position_embeddings", 512), head_act_fn=act)


def read_roberta(config: Mapping[str, Any]) -> BertConfig:
    """The same of RoBERTa's, whose positions begin after that of padding, and whose head has its own activation."""
    require(config, {"pad_token_id": _ROBERTA.first_position - 1})
    positions = config.get("max_position_embeddings", 512) - _ROBERTA.first_position
    return _of_bert(config, n_ctx=positions, head_act_fn="gelu")


def _of_bert(config: Mapping[str, Any], **own: Any) -> BertConfig:
    plain = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"}
    require(config, {**plain, "chunk_size_feed_forward": 0})
    return BertConfig(
        n_layers=wanted(config, "num_hidden_layers"),
        n_heads=wanted(config, "num_attention_heads"),
        d_model=wanted(config, "hidden_size"),
        d_mlp=config.get("intermediate_size", 3072),
        d_vocab=wanted(config, "vocab_size"),
        n_segments=config.get("type_vocab_size", 2),
        act_fn=activation(config.get("hidden_act", "gelu")),
        eps=config.get("layer_norm_eps", 1e-12),
        tie_embeddings=config.get("tie_word_embeddings", True),
        init_range=config.get("initializer_range", 0.02),
        **own,
    )


def read_distilbert(config: Mapping[str, Any]) -> BertConfig:
    """Our config of a DistilBERT config.json; raises as `read_bert`."""
    act = activation(config.get("activation", "gelu"))
    return BertConfig(
        n_layers=wanted(config, "n_layers"),
        n_heads=wanted(config, "n_heads"),
        d_model=wanted(config, "dim"),
        d_mlp=config.get("hidden_dim", 3072),
        d_vocab=wanted(config, "vocab_size"),
        n_ctx=config.get("max_position_embeddings", 512),
        n_segments=None,
        act_fn=act,
        head_act_fn=act,
        tie_embeddings=config.get("tie_word_embeddings", True),
        init_range=config.get("initializer_range", 0.02),
    )


def with_head(names: Names) -> Callable[[BertConfig, StoredTensors], BertConfig]:
    """What the tensors say beyond config.json: whether there is a head."""

    def found(cfg: BertConfig, stored: StoredTensors) -> BertConfig:
        if f"{names.head[0]}.weight" in stored:
            return cfg
        warnings.warn(
            f"{str(stored.label)!r} has no masked-language-model head: the residual stream is that of the checkpoint, "
            "logits are its products with the embeddings, which were not trained for it.",
            stacklevel=2,
        )
        return replace(cfg, mlm_head=False, unembed_bias=False, tie_embeddings=True)

    return found


_FIXED: dict[str, Any] = {"normalization_type": "LN", "norm_places": "stream", "attention_dir": "bidirectional"}
_IGNORED = r"pooler\.dense\.(weight|bias)|seq_relationship\.(weight|bias)|position_ids"
_IGNORED += r"|(predictions|lm_head)\.bias|decoder\.bias"  # one bias under two names
# Early checkpoints call a norm's weights so, and have the bias once also where the unembedding is its own.
_OLDER = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta", "decoder.bias": "bias"}


def _family(
    name: str, architecture: str, read: Callable[[Mapping[str, Any]], BertConfig], names: Names, head: str
) -> Family:
    return Family(
        name=name,
        model_types=(name.lower(),),
        architecture=architecture,
        prefix=f"{name.lower()}.",
        ignored=_IGNORED,
        fixed=_FIXED,
        read_config=read,
        entries=table(names),
        head=head,
        outside=("cls.", "lm_head.", "vocab_"),
        kind="bert",
        with_tensors=with_head(names),
        older=_OLDER,
    )


BERT = _family("BERT", "BertForMaskedLM", read_bert, _BERT, f"{_CLS}.decoder")
ROBERTA = _family("RoBERTa", "RobertaForMaskedLM", read_roberta, _ROBERTA, "lm_head.decoder")
DISTILBERT = _family("DistilBERT", "DistilBertForMaskedLM", read_distilbert, _DISTIL, "vocab_projector")
