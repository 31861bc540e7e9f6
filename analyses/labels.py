"""Labels of axes, made from prompts."""

from __future__ import annotations

from typing import Any

from interp.prompts import PromptPairs


def position_labels(model: Any, pairs: PromptPairs) -> list[str]:
    """The token at each position where all clean prompts agree; the first prompt's with `…` where they differ."""
    tokens = model.to_str_tokens(pairs.clean[0])
    same = (pairs.clean == pairs.clean[0]).all(0).tolist()
    return [token if agreed else f"{token}…" for token, agreed in zip(tokens, same, strict=True)]
