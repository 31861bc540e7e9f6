"""Prompts and answers between text and token ids, by the tokenizer of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import LabError


@dataclass(frozen=True)
class Labels:
    """The same as text: per prompt its tokens (padding is an empty string), per prompt its answers."""

    clean: tuple[tuple[str, ...], ...]
    corrupted: tuple[tuple[str, ...], ...]
    right: tuple[tuple[str, ...], ...]
    wrong: tuple[tuple[str, ...], ...]


def prompt_ids(model: Any, text: str) -> list[int]:
    """The ids of a prompt, with the start token where the model has one.

    Raises:
        LabError: the text is empty.
    """
    if not text:
        raise LabError("a prompt is empty: expected some text.")
    return model.to_tokens(text, truncate=False)[0].tolist()


def answer_ids(model: Any, prompt: str, answers: Any) -> list[int]:
    """The ids of one answer or several to a prompt, each given as text or as an id.

    Raises:
        LabError: an answer that is not one token; it is shown tokenised.
    """
    several = [answers] if isinstance(answers, str | int) else list(answers)
    return [a if isinstance(a, int) else _answer_id(model, prompt, a) for a in several]


def _answer_id(model: Any, prompt: str, answer: str) -> int:
    """The answer's one token, on its own or, for tokenisers that treat the start of a text apart, behind its prompt."""
    alone = model.to_tokens(answer, prepend_bos=False)[0].tolist() if answer else []
    if len(alone) == 1:
        if alone[0] == unknown_token(model):
            raise LabError(f"the vocabulary lacks the answer {answer!r}; expected one of its tokens.")
        return alone[0]
    before, after = prompt_ids(model, prompt), prompt_ids(model, prompt + answer)
    if after[:-1] == before:
        return after[-1]
    raise LabError(
        f"the answer {answer!r} is {len(alone)} tokens, {shown(model, alone)}; expected one.  "
        "Answers need their leading space: ' Mary', not 'Mary'."
    )


def unknown_token(model: Any) -> int | None:
    """The id that stands for words that the vocabulary lacks, if there is one."""
    return getattr(getattr(model, "tokenizer", None), "unk_token_id", None)


def mask_places(model: Any, prompts: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch"] | None:
    """Where an encoder's prompts have their mask token; None for a model that predicts what comes next.

    Raises:
        LabError: a prompt without a mask token, or with several.
    """
    token = getattr(getattr(model, "tokenizer", None), "mask_token_id", None)
    if token is None or getattr(model.cfg, "attention_dir", "causal") != "bidirectional":
        return None
    masked = prompts == token
    wrong = (masked.sum(1) != 1).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise LabError(
            f"prompt {row} has {int(masked[row].sum())} mask tokens {model.tokenizer.mask_token!r}; expected one, "
            "where the encoder is to answer."
        )
    return masked.int().argmax(1)


def shown(model: Any, ids: list[int]) -> str:
    """Tokens for a message: as text where the model can say it, else as ids."""
    texts = _texts(model, ids)
    return str(ids) if texts is None else " ".join(repr(texts[i]) for i in ids) or "nothing"


def label(
    model: Any,
    clean: Int[Tensor, "batch pos"],
    corrupted: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
    right: Int[Tensor, "batch n_right"],
    wrong: Int[Tensor, "batch n_wrong"],
) -> Labels | None:
    """The text of prompts and answers, or None for a model without a tokenizer."""
    ids = torch.cat([t.flatten() for t in (clean, corrupted, right, wrong)]).unique()
    texts = _texts(model, [i for i in ids.tolist() if i >= 0])
    if texts is None:
        return None

    def words(tokens: Tensor, real: Tensor) -> tuple[tuple[str, ...], ...]:
        rows = zip(tokens.tolist(), real.tolist(), strict=True)
        return tuple(tuple(texts[i] if r else "" for i, r in zip(*row, strict=True)) for row in rows)

    def answers(tokens: Tensor) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(texts[i] for i in row if i >= 0) for row in tokens.tolist())

    return Labels(words(clean, mask), words(corrupted, mask), answers(right), answers(wrong))


def _texts(model: Any, ids: list[int]) -> dict[int, str] | None:
    """What each token stands for, or None without a tokenizer."""
    if model is None or getattr(model, "tokenizer", None) is None:
        return None
    unique = sorted(set(ids))
    return dict(zip(unique, model.to_str_tokens(torch.tensor(unique, dtype=torch.long)), strict=True)) if unique else {}
