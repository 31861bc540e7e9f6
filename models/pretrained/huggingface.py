"""Hugging Face directories of the families that the lab's own code computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from interp.errors import LabError, did_you_mean
from models.config import DTYPES, TransformerConfig
from models.pretrained.assemble import check_depth, fill, hollow
from models.pretrained.bart import BART
from models.pretrained.bert import BERT, DISTILBERT, ROBERTA
from models.pretrained.family import Family, UnsupportedError
from models.pretrained.gemma import GEMMA, GEMMA2, GEMMA3
from models.pretrained.gpt2 import GPT2
from models.pretrained.gptj import GPTJ
from models.pretrained.llama import LLAMA
from models.pretrained.neox import NEOX
from models.pretrained.olmo2 import OLMO2
from models.pretrained.opt import OPT
from models.pretrained.phi3 import PHI3
from models.pretrained.places import Checkpoint
from models.pretrained.qwen import QWEN2, QWEN3
from models.pretrained.stablelm import STABLELM
from models.pretrained.starcoder2 import STARCODER2
from models.pretrained.t5 import T5
from models.pretrained.tensors import StoredTensors, open_tensors, read_json
from models.tokenizers import Tokenizer

FAMILIES = (
    *(GPT2, NEOX, GPTJ, OPT, LLAMA, PHI3, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3, OLMO2, STARCODER2, STABLELM),
    *(BERT, ROBERTA, DISTILBERT),
    *(T5, BART),
)

_OTHER_HEADS = (
    "ForMaskedLM",
    "ForPreTraining",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config.json.

    Raises:
        LabError: it names no architecture, or (UnsupportedError) none of the lab's; the message names these.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise LabError(f"config.json has model_type={kind!r}; expected the name of an architecture, such as 'llama'.")
    for family in FAMILIES:
        if kind in family.model_types:
            return family
    known = [name for family in FAMILIES for name in family.model_types]
    raise UnsupportedError(
        f"config.json has model_type={kind!r}, which the lab has no code for.{did_you_mean(kind, known, n=1)}  "
        f"known: {', '.join(known)}."
    )


def read(
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Any:
    """The model of a Hugging Face directory, in the lab's own code.

    dtype: by default the checkpoint's own.

    Raises:
        LabError: weights that do not fit the config, or (UnsupportedError) an unknown family, or a config that asks
            for more than the lab computes.
    """
    check_plain(checkpoint, config)
    family = family_of(config)
    stored = open_tensors(checkpoint.directory)
    check_depth(_n_layers(config), stored)
    cfg = replace(_read_config(family, config), model_name=checkpoint.name)
    cfg = cfg if family.with_tensors is None else family.with_tensors(cfg, stored)
    dtype = dtype or dtype_of(config, stored)
    prefix = family.prefix if any(each.startswith(family.prefix) for each in stored) else ""
    entries = [family.as_stored(entry, stored) for entry in family.prefixed(cfg, prefix)]
    head = f"{family.head}.weight"
    ignored = f"{family.ignored}|{head}" if cfg.tie_embeddings else family.ignored
    _check_tie(cfg, entries[0].stored, head, stored)
    return fill(hollow(cfg, tokenizer, family.kind), entries, stored, ignored, device, dtype)


def _read_config(family: Family, config: Mapping[str, Any]) -> TransformerConfig:
    try:
        return family.read_config(config)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise LabError(f"config.json is not that of a {family.name} model: {error}.") from error


def check_plain(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    """Refuse what no backend loads: quantised weights, remote code, a revision of a single checkpoint.

    Raises:
        LabError: saying which.
    """
    if config.get("quantization_config"):
        raise LabError(f"the weights of {checkpoint.name!r} are quantised; expected a full-precision checkpoint.")
    if config.get("auto_map"):
        raise LabError(
            f"{checkpoint.name!r} brings code of its own (auto_map in config.json), which the lab does not run; "
            "expected an architecture that transformers knows."
        )
    if checkpoint.step is not None:
        raise LabError(
            f"{str(checkpoint.directory)!r} has no revision {checkpoint.step!r}: a Hugging Face directory holds one "
            "version; try without revision."
        )


def check_layers(checkpoint: Checkpoint) -> None:
    """Refuse a config of no layers, or of more than there are tensors, which would be built one by one.

    Raises:
        LabError: so it is, or there are no sound weights.
    """
    n_layers = _n_layers(read_json(checkpoint.directory / "config.json"))
    if isinstance(n_layers, int) and n_layers < 1:
        raise LabError(f"config.json has {n_layers} layers; expected at least one.")
    check_depth(n_layers, open_tensors(checkpoint.directory))


def _n_layers(config: Mapping[str, Any]) -> Any:
    names = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers")
    return next((config[name] for name in names if name in config), None)


def check_head(config: Mapping[str, Any]) -> None:
    """Refuse a model that states another purpose than predicting the next token.

    Raises:
        LabError: naming its class in transformers.
    """
    for architecture in config.get("architectures") or ():
        if str(architecture).endswith(_OTHER_HEADS):
            raise LabError(f"it is a {architecture}, whose head does not predict the next token.")


def dtype_of(config: Mapping[str, Any], stored: StoredTensors | None = None) -> torch.dtype:
    """The dtype that config.json states, or else that of the stored tensors, or else float32."""
    stated = config.get("dtype", config.get("torch_dtype"))
    found = [entry.dtype for entry in stored.entries.values()] if stored is not None else []
    return next((DTYPES[name] for name in [stated, *found] if name in DTYPES), torch.float32)


def _check_tie(cfg: TransformerConfig, embedding: str, head: str, stored: StoredTensors) -> None:
    """A tied model may store its embedding twice, but not two different ones."""
    if not cfg.tie_embeddings or head not in stored or embedding not in stored:
        return
    if not stored.same(embedding, head):
        raise LabError(
            f"config.json ties the embeddings, but {embedding!r} and {head!r} differ in "
            f"{str(stored.label)!r}; set tie_word_embeddings to false in config.json to use both."
        )
