"""Models under the contract: transformers written from scratch, pretrained weights, a zoo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from models.config import TransformerConfig
from models.gpt import GPT

if TYPE_CHECKING:
    from models.pretrained import load

__all__ = ["GPT", "TransformerConfig", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from models.pretrained import load

        return load
    raise AttributeError(f"module 'models' has no attribute {name!r}")
