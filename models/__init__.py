"""Models under the contract: transformers written from scratch, pretrained weights, a zoo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.lazy import attributes

if TYPE_CHECKING:
    from models.bert import BERT
    from models.bert_config import BertConfig
    from models.config import TransformerConfig
    from models.encoder_decoder import EncoderDecoder
    from models.encoder_decoder_config import EncoderDecoderConfig
    from models.gpt import GPT
    from models.hooked_transformer import HookedTransformer
    from models.pretrained import load

__all__ = [
    "BERT",
    "GPT",
    "BertConfig",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "HookedTransformer",
    "TransformerConfig",
    "load",
]

__getattr__ = attributes(
    "models",
    {
        "BERT": "models.bert",
        "BertConfig": "models.bert_config",
        "EncoderDecoder": "models.encoder_decoder",
        "EncoderDecoderConfig": "models.encoder_decoder_config",
        "GPT": "models.gpt",
        "HookedTransformer": "models.hooked_transformer",
        "TransformerConfig": "models.config",
        "load": "models.pretrained",
    },
)
