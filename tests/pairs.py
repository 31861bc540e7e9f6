"""Random prompt pairs for tests, and one prompt of a batch on its own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st

from interp.prompts import PromptPairs
from tests.strategies import D_VOCAB, SEEDS


def random_pairs(
    seed: int,
    lengths: Sequence[int] = (5, 3, 6),
    side: Any = "left",
    d_vocab: int = D_VOCAB,
) -> PromptPairs:
    """Pairs of the given lengths, each with one to three right and one to three wrong answers."""
    rng = random.Random(seed)
    clean, corrupted, right, wrong = [], [], [], []
    for length in lengths:
        clean.append([rng.randrange(d_vocab) for _ in range(length)])
        corrupted.append([rng.randrange(d_vocab) for _ in range(length)])
        answers = rng.sample(range(d_vocab), 6)
        right.append(answers[: rng.randint(1, 3)])
        wrong.append(answers[3 : 3 + rng.randint(1, 3)])
    return PromptPairs.from_tokens(clean, corrupted, right, wrong, padding_side=side)


@st.composite
def pairs(draw: st.DrawFn, d_vocab: int = D_VOCAB, max_prompts: int = 3, max_pos: int = 7) -> PromptPairs:
    """Random pairs of different lengths, padded on either side."""
    lengths = draw(st.lists(st.integers(1, max_pos), min_size=1, max_size=max_prompts))
    return random_pairs(draw(SEEDS), lengths, draw(st.sampled_from(["left", "right"])), d_vocab)


def alone(pairs: PromptPairs, number: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Clean and corrupted ids [1 pos] of one prompt without its padding, and the position where they began."""
    real = pairs.mask[number]
    first = int(real.int().argmax())
    return pairs.clean[number, real][None], pairs.corrupted[number, real][None], first
