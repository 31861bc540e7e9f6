"""The town's corpus: rows of tokens, made up as they are needed, the same on every machine.

A row begins with the start token. Most rows are filled with documents, a start token between them, the last one cut
at the end of the row. The other rows are a block of random tokens repeated to the end, from which induction is learned.
`batch` is a function of the seed and the step alone, so a run that resumes at step n sees what it would have seen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from jaxtyping import Int
from torch import Tensor

from models.tokenizers import Tokenizer, train_bpe
from models.zoo.stories import story

TOKENIZER_DOCUMENTS = 80_000
VOCABULARY = 2_000  # an upper bound; the corpus runs out of pairs to merge before


def documents(seed: int) -> Iterator[str]:
    """Documents without end."""
    rng = random.Random(f"documents {seed}")
    while True:
        yield story(rng)


def town_tokenizer(seed: int = 0) -> Tokenizer:
    """The tokenizer of the town: trained until every word of the corpus is one token."""
    return train_bpe(islice(documents(seed), TOKENIZER_DOCUMENTS), VOCABULARY)


@dataclass(frozen=True)
class Town:
    """The corpus as batches of token rows.

    n_ctx: tokens in a row. batch_size: rows in a batch. repeats: share of the rows that are repeated random tokens.
    """

    tokenizer: Tokenizer
    n_ctx: int = 64
    batch_size: int = 64
    seed: int = 0
    repeats: float = 0.2

    def batch(self, step: int) -> Int[Tensor, "batch pos"]:
        """The rows of one step."""
        rng = random.Random(f"town {self.seed} {step}")
        rows = [self._repeat(rng) if rng.random() < self.repeats else self._text(rng) for _ in range(self.batch_size)]
        return torch.tensor(rows)

    def _text(self, rng: random.Random) -> list[int]:
        row: list[int] = []
        while len(row) < self.n_ctx:
            row += [self._start, *self.tokenizer.encode(story(rng))]
        return row[: self.n_ctx]

    def _repeat(self, rng: random.Random) -> list[int]:
        special = len(self.tokenizer.all_special_ids)  # they come first in the town's vocabulary
        length = rng.randint(3, self.n_ctx // 2)
        block = rng.sample(range(special, len(self.tokenizer)), length)
        return [self._start, *islice(cycle(block), self.n_ctx - 1)]

    @property
    def _start(self) -> int:
        start = self.tokenizer.bos_token_id
        assert start is not None
        return start
