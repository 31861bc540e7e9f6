"""A text file as data: random windows of its beginning to train on, its end to measure with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import LabError, UnknownModelError, did_you_mean
from interp.files import read_text
from models.batches import Batch, Windows
from models.fine_tuning import check_writes
from models.tokenizers import Tokenizer, characters_of, train_bpe
from models.training import mean_loss
from models.zoo.lessons import Lesson, checked

MEASURED = 64
"""Windows of the end that are measured, spread evenly over it."""


@dataclass(frozen=True)
class PlainText:
    """How a text is read.

    file: UTF-8. tokenizer: "characters" (those that occur), "bpe" (learned from the text to train on), or that of a
    model, by name or directory (`models.pretrained.load_tokenizer`). vocab_size: of a learned one, at most.
    n_ctx: tokens in a window. held_out: the share at the end of the text that is measured with; 0 for none.

    Raises:
        LabError: a share that leaves nothing.
    """

    file: str
    tokenizer: str = "characters"
    vocab_size: int = 1024
    n_ctx: int = 128
    batch_size: int = 16
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise LabError(f"held_out={self.held_out}; expected a share of the text, from 0 to below 1.")

    def lesson(self, tokenizer: Tokenizer | None = None) -> Lesson:
        """Windows of the text in the tokens of a tokenizer, by default of the one that the settings name.

        Raises:
            LabError: the file is no text or too short for a window; the tokenizer cannot be read or lacks a character.
        """
        text = read_text(self.file)
        cut = len(text) - int(self.held_out * len(text))
        chosen = tokenizer or self._tokenizer(text, text[:cut])
        batches = Windows(torch.tensor(chosen.encode(text[:cut])), self.n_ctx, self.batch_size, self.seed)
        if cut == len(text):
            return Lesson(batches, None, chosen)
        return Lesson(batches, self._measure(torch.tensor(chosen.encode(text[cut:]))), chosen)

    def _tokenizer(self, text: str, learned_from: str) -> Tokenizer:
        if self.tokenizer == "characters":
            return characters_of(text)
        if self.tokenizer == "bpe":
            return train_bpe(learned_from.splitlines(keepends=True), self.vocab_size)
        from models.pretrained import load_tokenizer

        try:
            return load_tokenizer(self.tokenizer)
        except UnknownModelError as problem:
            near = did_you_mean(self.tokenizer, ("characters", "bpe"))
            raise LabError(
                f"no tokenizer {self.tokenizer!r}.{near}  expected characters, bpe, or: {problem}"
            ) from problem

    def _measure(self, tokens: Int[Tensor, "held_out"]) -> HeldOutLoss:
        if len(tokens) <= self.n_ctx:
            raise LabError(
                f"the held-out end of {self.file!r} has {len(tokens)} tokens, expected at least {self.n_ctx + 1} (a "
                "window and the token after it); give more text, a smaller n_ctx, or held_out=0."
            )
        whole = tokens.unfold(0, self.n_ctx + 1, self.n_ctx)  # each begins with the last target of the one before
        chosen = torch.linspace(0, len(whole) - 1, min(MEASURED, len(whole))).long()
        return HeldOutLoss(whole[chosen], self.batch_size)


@dataclass(frozen=True)
class HeldOutLoss:
    """Measures the mean loss in nats a token on windows that are never trained on."""

    windows: Int[Tensor, "window pos"]
    batch_size: int

    def __call__(self, model: Any) -> dict[str, float]:
        parts = self.windows.split(self.batch_size)
        batches = [Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()) for rows in parts]
        return {"held_out_loss": mean_loss(model, batches)}


def lesson(options: Mapping[str, Any], seed: int) -> Lesson:
    """The lesson of a recipe whose data are of the kind "text"; options are the fields of `PlainText`."""
    return _read(options, seed).lesson()


def further(options: Mapping[str, Any], seed: int, model: Any) -> Lesson:
    """The same for a trained model, in the tokens that it knows.

    Raises:
        LabError: it does not write text, or the options name another tokenizer.
    """
    check_writes(model)
    if "tokenizer" in options:
        raise LabError("a trained model keeps its tokenizer; expected no data.tokenizer beside model.start.")
    settings = {"n_ctx": min(PlainText.n_ctx, model.cfg.n_ctx)} | dict(options)
    return _read(settings, seed).lesson(model.tokenizer)


def _read(options: Mapping[str, Any], seed: int) -> PlainText:
    given = checked(PlainText, options, "data")
    if "file" not in given:
        raise LabError("[data] of the kind 'text' lacks file, the text to learn.")
    return PlainText(**{"seed": seed} | given)
