"""`PromptPairs`: clean and corrupted prompts, the answers to tell apart, and which tokens are real.

What every analysis takes. A pair differs in content, never in length; right and wrong are answers to the clean prompt,
as one token each or several. All of it is checked once, here, so an analysis need not.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import LabError
from interp.prompt_text import Labels, answer_ids, label, mask_places, prompt_ids, shown

NO_ANSWER = -1  # fills the answers of a prompt that has fewer than another
Rows = Int[Tensor, "_ _"] | Sequence[Sequence[int]] | Sequence[Int[Tensor, "_"]]
Answers = Int[Tensor, "..."] | Sequence[int] | Sequence[Sequence[int]]
AnswerTexts = Sequence[str] | Sequence[int] | Sequence[Sequence[str]] | Sequence[Sequence[int]]
Side = Literal["left", "right"]


@dataclass(frozen=True, eq=False)
class PromptPairs:
    """Pairs of prompts, aligned token by token.

    clean, corrupted: token ids. mask: true where a token is real, false where it pads; the same for both. Prompts are
    padded on one side only. right, wrong: the answers to the clean prompt, filled up with -1. at: the position where
    each prompt's answer is read, for encoders that of its mask token; None: its last real token.

    Raises:
        LabError: shapes that do not fit, an empty prompt, padding inside a prompt, a prompt without a right or a wrong
            answer, a token that is both, or an answer that is read at no real token.
    """

    clean: Int[Tensor, "batch pos"]
    corrupted: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    right: Int[Tensor, "batch n_right"]
    wrong: Int[Tensor, "batch n_wrong"]
    labels: Labels | None = None
    at: Int[Tensor, "batch"] | None = None

    def __post_init__(self) -> None:
        if self.clean.shape != self.corrupted.shape or self.clean.ndim != 2:
            raise LabError(
                f"clean {list(self.clean.shape)} and corrupted {list(self.corrupted.shape)} must be token ids "
                "[batch, pos] of the same shape."
            )
        for name in ("clean", "corrupted", "right", "wrong"):
            dtype = getattr(self, name).dtype
            if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
                raise LabError(f"{name} must be integer token ids, not {dtype}.")
        if self.mask.shape != self.clean.shape:
            raise LabError(f"mask {list(self.mask.shape)} must have the prompts' shape {list(self.clean.shape)}.")
        _check_mask(self.mask)
        _check_answers(self.right, self.wrong, len(self.clean))
        if self.at is not None:
            _check_places(self.at, self.mask)

    @classmethod
    def from_tokens(
        cls,
        clean: Rows,
        corrupted: Rows,
        right: Answers,
        wrong: Answers,
        mask: Bool[Tensor, "_ _"] | None = None,
        model: Any = None,
        padding_side: Side = "left",
        at: Int[Tensor, "_"] | None = None,
    ) -> PromptPairs:
        """Pairs from token ids: `[batch, pos]` tensors, or rows of different lengths, which are padded.

        right, wrong: one id per prompt, or a row of ids per prompt (shorter rows are filled up). mask: for tensors that
        are padded already. model: if given, lengths and ids are checked against it, labels are made, and an encoder's
        answers are read where each clean prompt has the mask token. at: as of the class, in the padded batch.

        Raises:
            LabError: what the class refuses, a pair of unequal length, or what `check` refuses.
        """
        answers = _filled(right), _filled(wrong)
        if isinstance(clean, Tensor) and isinstance(corrupted, Tensor):
            device = clean.device
            mask = torch.ones_like(clean, dtype=torch.bool) if mask is None else mask
            right, wrong = (a.to(device) for a in answers)
            pairs = cls(clean, corrupted.to(device), mask.to(device), right, wrong)
        else:
            if mask is not None:
                raise LabError("a mask goes with [batch, pos] tensors; rows of different lengths are padded here.")
            rows = [[[int(token) for token in row] for row in side] for side in (clean, corrupted)]
            pairs = _padded(cls, rows[0], rows[1], answers, padding_side, model)
        if model is not None:
            pairs.check(model)
            at = mask_places(model, pairs.clean) if at is None else at
            pairs = replace(pairs, labels=_labels(pairs, model))
        return pairs if at is None else replace(pairs, at=at.to(pairs.clean.device))

    @classmethod
    def from_text(
        cls,
        model: Any,
        clean: str | Sequence[str],
        corrupted: str | Sequence[str],
        right: str | AnswerTexts,
        wrong: str | AnswerTexts,
        padding_side: Side = "left",
    ) -> PromptPairs:
        """Pairs from text, tokenised by `model.to_tokens` (so with a start token where the model has one).

        right, wrong: per prompt an answer or several, each as text (with its leading space) or as a token id.

        Raises:
            LabError: an empty prompt; prompts of unequal token length (both are shown tokenised); an answer that is not
                one token (it is shown tokenised); a prompt longer than the context.
        """
        clean, corrupted = ([side] if isinstance(side, str) else list(side) for side in (clean, corrupted))
        right, wrong = ([side] if isinstance(side, str) else side for side in (right, wrong))
        if not len(clean) == len(corrupted) == len(right) == len(wrong):
            raise LabError(
                f"{len(clean)} clean and {len(corrupted)} corrupted prompts, {len(right)} right and {len(wrong)} wrong "
                "answers; expected as many of each."
            )
        rows = [[prompt_ids(model, text) for text in side] for side in (clean, corrupted)]
        ids = [[answer_ids(model, text, a) for text, a in zip(clean, side, strict=True)] for side in (right, wrong)]
        return cls.from_tokens(rows[0], rows[1], ids[0], ids[1], model=model, padding_side=padding_side)

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, index: int | slice) -> PromptPairs:
        """Some of the pairs; an integer gives one pair, still as a batch."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"pair {index} of {len(self)}")
            index = slice(index, index + 1 or None)
        tensors = {name: getattr(self, name)[index] for name in _TENSORS}
        labels = self.labels and Labels(*(getattr(self.labels, field.name)[index] for field in fields(Labels)))
        return PromptPairs(**tensors, labels=labels, at=None if self.at is None else self.at[index])

    def take(self, index: Int[Tensor, "chosen"]) -> PromptPairs:
        """The pairs with these numbers, in this order; a number may come more than once. Labels are left out."""
        taken = copy(self)  # what was checked once is not checked again: on a GPU every check waits for the device
        at = None if self.at is None else self.at[index]
        tensors = {name: getattr(self, name)[index] for name in _TENSORS}
        for name, value in {**tensors, "labels": None, "at": at}.items():
            object.__setattr__(taken, name, value)
        return taken

    def to(self, device: torch.device | str) -> PromptPairs:
        """The same pairs on another device."""
        at = None if self.at is None else self.at.to(device)
        return replace(self, **{name: getattr(self, name).to(device) for name in _TENSORS}, at=at)

    @property
    def last(self) -> Int[Tensor, "batch"]:
        """Position of each prompt's last real token."""
        positions = torch.arange(self.mask.shape[1], device=self.mask.device)
        return (positions * self.mask).amax(dim=1)

    @property
    def answered(self) -> Int[Tensor, "batch"]:
        """Position where each prompt's answer is read."""
        return self.last if self.at is None else self.at

    @property
    def first_difference(self) -> Int[Tensor, "batch"]:
        """Per prompt the first position at which clean and corrupted differ; the length where they never do."""
        differ = (self.clean != self.corrupted) & self.mask
        return torch.where(differ.any(dim=1), differ.int().argmax(dim=1), differ.shape[1])

    @property
    def padded(self) -> bool:
        """Whether any prompt is padded."""
        return not bool(self.mask.all())

    def swapped(self) -> PromptPairs:
        """Clean and corrupted in each other's place; the answers stay."""
        labels = self.labels and replace(self.labels, clean=self.labels.corrupted, corrupted=self.labels.clean)
        return replace(self, clean=self.corrupted, corrupted=self.clean, labels=labels)

    def check(self, model: Any) -> None:
        """Refuse prompts that this model cannot take.

        Raises:
            LabError: more positions than `model.cfg.n_ctx`, or a token id outside the vocabulary.
        """
        length, n_ctx, d_vocab = int(self.mask.sum(dim=1).max()), model.cfg.n_ctx, model.cfg.d_vocab
        if length > n_ctx:
            raise LabError(f"a prompt has {length} tokens, but the model's context is {n_ctx}: shorten the prompt.")
        outputs = getattr(model.cfg, "d_vocab_out", None) or d_vocab
        for name, size in (
            ("clean", d_vocab),
            ("corrupted", d_vocab),
            ("right", outputs),
            ("wrong", outputs),
        ):
            ids = getattr(self, name)
            outside = ids[(ids >= size) | (ids < NO_ANSWER if name in ("right", "wrong") else ids < 0)]
            if outside.numel():
                raise LabError(f"{name} has token id {int(outside[0])}, but the model's ids are 0 to {size - 1}.")


def _labels(pairs: PromptPairs, model: Any) -> Labels | None:
    return label(model, pairs.clean, pairs.corrupted, pairs.mask, pairs.right, pairs.wrong)


_TENSORS = ("clean", "corrupted", "mask", "right", "wrong")


def _check_mask(mask: Bool[Tensor, "batch pos"]) -> None:
    if mask.dtype != torch.bool:
        raise LabError(f"the mask must be boolean (true where a token is real), not {mask.dtype}.")
    if not len(mask):
        raise LabError("there are no prompts: expected at least one pair.")
    empty = (~mask.any(dim=1)).nonzero()
    if len(empty):
        raise LabError(f"prompt {int(empty[0])} is empty: expected at least one token.")
    switches = (mask[:, 1:] != mask[:, :-1]).sum(dim=1)
    both = (switches > 1).nonzero()
    if len(both):
        raise LabError(f"prompt {int(both[0])} is padded in its middle or on both sides; pad on one side only.")


def _check_places(at: Int[Tensor, "batch"], mask: Bool[Tensor, "batch pos"]) -> None:
    if at.shape != mask.shape[:1] or at.dtype.is_floating_point or at.dtype == torch.bool:
        raise LabError(f"at is {list(at.shape)} of {at.dtype}; expected one position for each of {len(mask)} prompts.")
    inside = (at >= 0) & (at < mask.shape[1])
    real = inside & mask[torch.arange(len(mask), device=mask.device), at.clamp(0, mask.shape[1] - 1)]
    if not bool(real.all()):
        row = int((~real).nonzero()[0])
        raise LabError(f"the answer to prompt {row} is to be read at {int(at[row])}, where it has no token.")


def _check_answers(right: Tensor, wrong: Tensor, n: int) -> None:
    for name, answers in (("right", right), ("wrong", wrong)):
        if answers.ndim != 2 or len(answers) != n:
            raise LabError(f"{name} answers {list(answers.shape)} must be [{n}] or [{n}, answers] for {n} prompts.")
        none = (~(answers > NO_ANSWER).any(dim=1)).nonzero()
        if len(none):
            raise LabError(f"prompt {int(none[0])} has no {name} answer: expected at least one token id.")
        if int(answers.min()) < NO_ANSWER:
            raise LabError(f"{name} has token id {int(answers.min())}; ids are 0 or more (-1 fills short rows).")
    both = (right[:, :, None] == wrong[:, None, :]) & (right[:, :, None] > NO_ANSWER)
    if both.any():
        row, place = (int(i) for i in both.any(dim=2).nonzero()[0])
        raise LabError(f"token {int(right[row, place])} is both a right and a wrong answer to prompt {row}.")


def _filled(answers: Answers) -> Int[Tensor, "..."]:
    """Answers as [batch, answers], short rows filled up with -1."""
    if isinstance(answers, Tensor):
        return answers[:, None] if answers.ndim == 1 else answers
    rows = [torch.atleast_1d(torch.as_tensor(row)).tolist() for row in answers]
    width = max((len(row) for row in rows), default=0)
    return torch.tensor([row + [NO_ANSWER] * (width - len(row)) for row in rows], dtype=torch.long)


def _padded(
    cls: type[PromptPairs],
    clean: list[list[int]],
    corrupted: list[list[int]],
    answers: tuple[Tensor, Tensor],
    side: Side,
    model: Any,
) -> PromptPairs:
    """Rows of different lengths as one batch."""
    if side not in ("left", "right"):
        raise LabError(f"padding_side={side!r}; expected 'left' or 'right'.")
    if len(clean) != len(corrupted):
        raise LabError(f"{len(clean)} clean and {len(corrupted)} corrupted prompts; expected as many of each.")
    for number, (one, other) in enumerate(zip(clean, corrupted, strict=True)):
        if len(one) != len(other):
            raise LabError(
                f"prompt {number}: clean has {len(one)} tokens, corrupted {len(other)}; they must be aligned.\n"
                f"  clean:     {shown(model, one)}\n  corrupted: {shown(model, other)}"
            )
    width, filler, device = max(map(len, clean), default=0), _filler(model), _device(model)

    def fill(rows: list[list[int]], value: int) -> Tensor:
        gaps = [[value] * (width - len(row)) for row in rows]
        full = [gap + row if side == "left" else row + gap for row, gap in zip(rows, gaps, strict=True)]
        return torch.tensor(full, dtype=torch.long, device=device).reshape(len(rows), width)

    mask = fill([[1] * len(row) for row in clean], 0).bool()
    right, wrong = (a.to(device) for a in answers)
    return cls(fill(clean, filler), fill(corrupted, filler), mask, right, wrong)


def _filler(model: Any) -> int:
    """The id that pads: the tokenizer's own, or any other; the mask keeps it from being read."""
    return getattr(getattr(model, "tokenizer", None), "pad_token_id", None) or 0


def _device(model: Any) -> torch.device | str | None:
    return getattr(model, "device", None) or getattr(getattr(model, "cfg", None), "device", None)
