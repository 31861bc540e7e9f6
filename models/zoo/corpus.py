"""The town's corpus: rows of tokens, made up as they are needed, the same on every machine.

A row begins with the start token. Most rows are filled with documents, a start token between them, the last one cut
at the end of the row. The other rows are a block of random tokens repeated to the end, from which induction is learned.
`batch` is a function of the seed and the step alone, so a run that resumes at step n sees what it would have seen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch

from interp.errors import LabError
from models.batches import UNCOUNTED, Batch
from models.tokenizers import Tokenizer, train_bpe
from models.zoo.lessons import Lesson, checked
from models.zoo.scores import measure
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


def lesson(options: Mapping[str, Any], seed: int) -> Lesson:
    """The lesson of a recipe whose data are of the kind "town"; options are the fields of `Town`."""
    settings: dict[str, Any] = {"seed": seed, "tokenizer": town_tokenizer()} | checked(Town, options, "data")
    data = Town(**settings)
    return Lesson(data, measure, data.tokenizer)


@dataclass(frozen=True)
class Town:
    """The corpus as batches of token rows.

    n_ctx: tokens in a row. batch_size: rows in a batch. repeats: share of the rows that are repeated random tokens.
    lead_in: steps over which that share falls from 0.9. Over its first third the random tokens are 64 different ones,
    then ever more until they are all: induction forms on a few tokens that are met often, and widens from there.
    """

    tokenizer: Tokenizer
    n_ctx: int = 64
    batch_size: int = 32
    seed: int = 0
    repeats: float = 0.25
    lead_in: int = 3000

    def __post_init__(self) -> None:
        if self.lead_in < 1 or not 0 <= self.repeats <= 0.9:
            raise LabError(
                f"lead_in={self.lead_in}, repeats={self.repeats}; expected at least one step and a share from 0 to 0.9."
            )

    def batch(self, step: int) -> Batch:
        """The rows of one step. The random tokens of a first block cannot be predicted and do not count."""
        rng = random.Random(f"town {self.seed} {step}")
        share = max(self.repeats, 0.9 - (0.9 - self.repeats) * step / self.lead_in)
        made = [self._repeat(rng, step) if rng.random() < share else self._text(rng) for _ in range(self.batch_size)]
        tokens = torch.tensor([row for row, _ in made])
        targets = torch.full_like(tokens, UNCOUNTED)
        for target, (row, first) in zip(targets, made, strict=True):
            target[first:-1] = torch.tensor(row[first + 1 :])
        return Batch(tokens, targets)

    def _text(self, rng: random.Random) -> tuple[list[int], int]:
        """A row, and the first position whose next token counts."""
        row: list[int] = []
        while len(row) < self.n_ctx:
            row += [self._start, *self.tokenizer.encode(story(rng))]
        return row[: self.n_ctx], 0

    def _repeat(self, rng: random.Random, step: int) -> tuple[list[int], int]:
        """A row of repeats, of ordinary tokens whose number doubles five times after the first third of the lead-in."""
        special = len(self.tokenizer.all_special_ids)  # they come first in the town's vocabulary
        doublings = max(0, int(7.5 * step / self.lead_in - 2.5))
        pool = min(64 * 2**doublings, len(self.tokenizer) - special)
        length = rng.randint(5, self.n_ctx // 2)
        block = rng.sample(range(special, special + pool), length)
        return [self._start, *islice(cycle(block), self.n_ctx - 1)], length + 1

    @property
    def _start(self) -> int:
        start = self.tokenizer.bos_token_id
        assert start is not None
        return start
