"""Labels of axes, made from prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped

from interp.prompts import PromptPairs


def position_labels(model: Any, pairs: PromptPairs) -> list[str]:
    """The token at each position where all clean prompts agree; the first prompt's with `…` where they differ.

    Padding has no say: a position's token is that of the prompts that have one there.
    """
    first = pairs.mask.int().argmax(0)
    row = pairs.clean.gather(0, first[None])[0]
    same = ((pairs.clean == row) | ~pairs.mask).all(0).tolist()
    return [token if agreed else f"{token}…" for token, agreed in zip(model.to_str_tokens(row), same, strict=True)]


def token_texts(model: Any, ids: Int[np.ndarray, "*axes"]) -> Shaped[np.ndarray, "*axes"]:
    """The text of each id, in the same arrangement; each different id is looked up once."""
    unique, places = np.unique(ids, return_inverse=True)
    words = model.to_str_tokens(torch.from_numpy(unique))
    return np.array(words, dtype=str)[places].reshape(ids.shape)
