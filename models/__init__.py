"""Models under the contract: transformers written from scratch, pretrained weights, a zoo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.lazy import attributes

if TYPE_CHECKING:
    from models.config import TransformerConfig
    from models.gpt import GPT
    from models.hooked_transformer import HookedTransformer
    from models.pretrained import load

__all__ = ["GPT", "HookedTransformer", "TransformerConfig", "load"]

__getattr__ = attributes(
    "models",
    {
        "GPT": "models.gpt",
        "HookedTransformer": "models.hooked_transformer",
        "TransformerConfig": "models.config",
        "load": "models.pretrained",
    },
)
