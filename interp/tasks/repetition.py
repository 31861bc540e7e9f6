"""Induction: random tokens, then the same again; the token that followed last time follows again.

Olsson et al. 2022 (arXiv 2209.11895). No words are needed, so it works without a tokenizer.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import LabError
from interp.prompts import PromptPairs

LONGEST = 20  # tokens in a block, where the context window allows


def induction(model: Any, n: int = 32, seed: int = 0) -> PromptPairs:
    """`n` prompts: a block of different random tokens, then the block without its last token, which is right.

    A block has 20 tokens, or as many as fit twice into the context window. The start token comes first where the
    model has one. The corrupted prompt ends its first block with another token, which is wrong on the clean prompt.

    Raises:
        LabError: n is not positive, or fewer than three ordinary tokens or a context of less than four.
    """
    if n < 1:
        raise LabError(f"task 'induction' was asked for n={n} prompts; n must be at least 1.")
    ordinary, start = ordinary_tokens(model), start_tokens(model)
    length = min(LONGEST, (model.cfg.n_ctx - len(start) + 1) // 2, len(ordinary) - 1)
    if length < 2:
        raise LabError(
            f"task 'induction' needs three ordinary tokens and a context of four; this model has {len(ordinary)} "
            f"and {model.cfg.n_ctx}."
        )
    rng = random.Random(f"induction {seed}")
    clean, corrupted, right, wrong = [], [], [], []
    for _ in range(n):
        *block, last, other = rng.sample(ordinary, length + 1)
        clean.append([*start, *block, last, *block])
        corrupted.append([*start, *block, other, *block])
        right.append(last)
        wrong.append(other)
    return PromptPairs.from_tokens(clean, corrupted, right, wrong, model=model)


def repeated_tokens(model: Any, n: int, length: int, seed: int = 0) -> Int[Tensor, "batch pos"]:
    """`n` rows of `length` different random tokens repeated once, after the start token where there is one.

    For the loss on a repeat and for head scores: the second copy of token i is `length` positions after the first.

    Raises:
        LabError: the rows do not fit into the context, or the vocabulary is smaller than the block.
    """
    ordinary, start = ordinary_tokens(model), start_tokens(model)
    if len(start) + 2 * length > model.cfg.n_ctx or length > len(ordinary):
        raise LabError(
            f"a block of {length} tokens twice needs a context of {len(start) + 2 * length} and {length} ordinary "
            f"tokens; this model has {model.cfg.n_ctx} and {len(ordinary)}."
        )
    rng = random.Random(f"repeated {seed}")
    blocks = [rng.sample(ordinary, length) for _ in range(n)]
    return torch.tensor([[*start, *block, *block] for block in blocks], device=_device(model))


def ordinary_tokens(model: Any) -> list[int]:
    """All token ids but the special ones."""
    tokenizer = getattr(model, "tokenizer", None)
    special = set(getattr(tokenizer, "all_special_ids", ())) if tokenizer is not None else set()
    size = model.cfg.d_vocab if tokenizer is None else min(model.cfg.d_vocab, len(tokenizer))
    return [token for token in range(size) if token not in special]


def start_tokens(model: Any) -> list[int]:
    """The token that the model puts before every text, or nothing."""
    start = getattr(getattr(model, "tokenizer", None), "bos_token_id", None)
    return [start] if start is not None and getattr(model.cfg, "default_prepend_bos", True) else []


def _device(model: Any) -> torch.device | str | None:
    return getattr(model, "device", None) or getattr(model.cfg, "device", None)
