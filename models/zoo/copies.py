"""Random rows of symbols that an encoder-decoder is to write once more, or backwards.

Nothing can be guessed: a row of n symbols holds n · log2(symbols) bits, all of which the decoder must get from the
encoder. So the share of symbols that come back right, by length, measures what passes between the two (the fixed-size
hidden state of Sutskever et al. 2014, arXiv:1409.3215; Bahdanau et al. 2015, arXiv:1409.0473, fig. 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import LabError
from models.batches import SourceBatch, step_generator

START, END, FIRST = 0, 1, 2
"""The ids of the decoder's start, of the end of a target, and of the first symbol."""


@dataclass(frozen=True)
class Copies:
    """Rows of 1 to `max_length` symbols, the rows of a batch all of one length, and their copies.

    reverse: the copies are written backwards.

    Raises:
        LabError: a size below 1.
    """

    max_length: int = 32
    symbols: int = 16
    batch_size: int = 64
    reverse: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_length", "symbols", "batch_size"):
            if getattr(self, name) < 1:
                raise LabError(f"{name}={getattr(self, name)}; expected at least 1.")

    @property
    def d_vocab(self) -> int:
        """Symbols, start and end."""
        return FIRST + self.symbols

    def batch(self, step: int) -> SourceBatch:
        """The rows of one step."""
        generator = step_generator(self.seed, step)
        length = int(torch.randint(1, self.max_length + 1, (), generator=generator))
        rows = torch.randint(FIRST, self.d_vocab, (self.batch_size, length), generator=generator)
        return self.with_targets(rows)

    def with_targets(self, rows: Int[Tensor, "batch source_pos"]) -> SourceBatch:
        """Rows with what the decoder reads, and what it is to write: their copies and the end."""
        copies = self.copies_of(rows)
        edge = rows.new_ones(len(rows), 1)
        return SourceBatch(
            tokens=torch.cat([START * edge, copies], 1), targets=torch.cat([copies, END * edge], 1), source=rows
        )

    def copies_of(self, rows: Int[Tensor, "batch source_pos"]) -> Int[Tensor, "batch source_pos"]:
        """What is to be written, without the end."""
        return rows.flip(1) if self.reverse else rows

    def rows(self, length: int, n: int, seed: int) -> Int[Tensor, "batch source_pos"]:
        """`n` rows of one length for tests, of a random generator of their own; short ones come up in training too."""
        generator = torch.Generator().manual_seed((2**62 + 10_000 * seed + length) % 2**63)
        return torch.randint(FIRST, self.d_vocab, (n, length), generator=generator)
