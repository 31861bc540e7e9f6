"""Addition modulo a prime, the task on which grokking was reverse-engineered (arXiv:2301.05217).

A row is `a b =`, its target a + b mod p, read at the equals sign. Part of all p² pairs is trained on, the rest tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from tokenizers import Tokenizer as Core
from tokenizers import normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor, nn

from interp.errors import LabError
from models.batches import UNCOUNTED, Batch, step_generator
from models.tokenizers import Tokenizer
from models.training import cross_entropy
from models.zoo.lessons import Lesson, checked


@dataclass(frozen=True)
class ModularAddition:
    """All pairs of 0..p-1, split at random.

    fraction: of the pairs to train on. batch_size: pairs in a batch, drawn at random; None: all of them, as the
    paper does.

    Raises:
        LabError: a fraction that leaves nothing to train on.
    """

    p: int = 113
    fraction: float = 0.3
    batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1 or int(self.p**2 * self.fraction) < 1:
            raise LabError(f"fraction={self.fraction} of {self.p**2} pairs; expected at least one pair, at most all.")

    def batch(self, step: int) -> Batch:
        """The pairs of one step."""
        if self.batch_size is None:
            return self._train
        generator = step_generator(self.seed, step)
        rows = torch.randint(len(self._train.tokens), (self.batch_size,), generator=generator)
        assert self._train.targets is not None
        return Batch(self._train.tokens[rows], self._train.targets[rows])

    def all_rows(self) -> Int[Tensor, "batch 3"]:
        """Every pair as `a b =`, a changing slowest."""
        a, b = torch.meshgrid(torch.arange(self.p), torch.arange(self.p), indexing="ij")
        return torch.stack([a.flatten(), b.flatten(), torch.full((self.p**2,), self.p)], 1)

    @cached_property
    def order(self) -> Int[Tensor, "pairs"]:
        """The pairs in random order; the first `n_train` are trained on."""
        return torch.randperm(self.p**2, generator=torch.Generator().manual_seed(self.seed))

    @property
    def n_train(self) -> int:
        return int(self.p**2 * self.fraction)

    @cached_property
    def _train(self) -> Batch:
        return with_sums(self.all_rows()[self.order[: self.n_train]], self.p)

    @cached_property
    def test(self) -> Batch:
        """The pairs that are not trained on."""
        return with_sums(self.all_rows()[self.order[self.n_train :]], self.p)

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, float]:
        """Loss in nats and share of right sums, on the pairs of training and on the others."""
        numbers: dict[str, float] = {}
        for name, batch in (("train", self._train), ("test", self.test)):
            batch = batch.to(next(model.parameters()).device)
            assert batch.targets is not None
            logits = model(batch.tokens)
            numbers[f"{name}_loss"] = float(cross_entropy(logits, batch.targets))
            numbers[f"{name}_accuracy"] = float((logits[:, -1].argmax(-1) == batch.targets[:, -1]).float().mean())
        return numbers


def with_sums(rows: Int[Tensor, "batch 3"], p: int) -> Batch:
    """Rows `a b =` with a + b mod p as the only target."""
    targets = torch.full_like(rows, UNCOUNTED)
    targets[:, -1] = (rows[:, 0] + rows[:, 1]) % p
    return Batch(rows, targets)


def numbers(p: int) -> Tokenizer:
    """One token per number below p, then the equals sign: "3 + 5 =" and "3 5 =" are both the tokens 3, 5, =."""
    words = [*map(str, range(p)), "="]
    core = Core(WordLevel({word: i for i, word in enumerate(words)}, unk_token=None))
    core.normalizer = normalizers.Replace("+", " ")
    split_equals = pre_tokenizers.Split("=", "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([split_equals, pre_tokenizers.WhitespaceSplit()])
    return Tokenizer(core)


def lesson(options: Mapping[str, Any], seed: int) -> Lesson:
    """The lesson of a recipe whose data are of the kind "modular"; options are the fields of `ModularAddition`."""
    data = ModularAddition(**{"seed": seed} | checked(ModularAddition, options, "data"))
    return Lesson(data, data.measure, numbers(data.p))
