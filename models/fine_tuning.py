"""Supervised fine-tuning: a trained model learns to answer, with the loss on the answers alone.

A prompt ends with a line end, its answer with the end-of-text token. What the prompt says next is never a target:

    <|endoftext|> Who has the ring ? \n Mary . <|endoftext|>
                                      ^ the first prediction that counts

Rows are padded on the right, where a causal model does not look, so no mask is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from interp.errors import LabError
from interp.text import short
from models.batches import UNCOUNTED, Batch, shuffled
from models.examples import Example
from models.generation import generate_tokens
from models.text import pad
from models.training import mean_loss

PROMPT_END = "\n"


@dataclass(frozen=True)
class Turn:
    """A prompt and its answer as token ids; the prompt with start token and line end, the answer with its end."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def row(self) -> list[int]:
        return [*self.prompt, *self.answer]


@dataclass(frozen=True)
class Answers:
    """Batches of answered prompts; every turn comes once an epoch."""

    turns: tuple[Turn, ...]
    batch_size: int = 32
    seed: int = 0

    def batch(self, step: int) -> Batch:
        """The turns of one step."""
        return as_batch([self.turns[i] for i in shuffled(len(self.turns), self.batch_size, step, self.seed)])


@dataclass(frozen=True)
class AnswerScores:
    """Measures a model on examples that it is not trained on: the loss on their answers, and how many it gives exactly.

    `exact` is the share of prompts whose likeliest answer, token by token, is one of those that the examples have.
    """

    turns: tuple[Turn, ...]
    batch_size: int = 32

    def __call__(self, model: Any) -> dict[str, float]:
        known: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
        for turn in self.turns:
            known.setdefault(turn.prompt, set()).add(turn.answer)
        longest = max(len(turn.answer) for turn in self.turns)
        written = answer(model, list(known), longest, batch_size=self.batch_size)
        exact = sum(given in answers for given, answers in zip(written, known.values(), strict=True))
        return {"held_out_loss": mean_loss(model, in_batches(self.turns, self.batch_size)), "exact": exact / len(known)}


def turns(model: Any, examples: Sequence[Example]) -> tuple[Turn, ...]:
    """The examples as token ids of a model.

    Raises:
        LabError: a model without text, that does not write, or without an end-of-text token; an example that does not
            fit into its window.
    """
    check_writes(model)
    return tuple(turn(model, example.prompt, example.answer) for example in examples)


def turn(model: Any, prompt: str, answer: str) -> Turn:
    """One prompt and answer as token ids of a model that `check_writes`.

    Raises:
        LabError: they do not fit into its window, or its vocabulary lacks a character.
    """
    asked = model.to_tokens(prompt + PROMPT_END, truncate=False)[0].tolist()
    told = [*model.tokenizer.encode(answer), model.tokenizer.eos_token_id]
    read = len(asked) + len(told) - 1  # the last token is only a target
    if read > model.cfg.n_ctx:
        raise LabError(
            f"the prompt {short(prompt, 40)!r} with its answer {short(answer, 40)!r} is {read} tokens long, but the "
            f"context window is {model.cfg.n_ctx} (n_ctx); shorten it, or choose a model with a wider window."
        )
    return Turn(tuple(asked), tuple(told))


def check_writes(model: Any) -> None:
    """Raises:
    LabError: the model has no tokenizer, no end-of-text token, or does not write from left to right.
    """
    name, cfg = model.cfg.model_name, model.cfg
    if model.tokenizer is None:
        raise LabError(f"the model {name!r} has no tokenizer, so it reads no text; expected one that has.")
    if not getattr(cfg, "causal", False) or cfg.n_outputs > cfg.d_vocab:
        raise LabError(f"the model {name!r} does not write from left to right; expected a causal language model.")
    if model.tokenizer.eos_token_id is None:
        raise LabError(f"the tokenizer of {name!r} has no end-of-text token, with which an answer would end.")


def as_batch(turns: Sequence[Turn]) -> Batch:
    """Turns as rows, padded on the right; the answers are the only targets."""
    rows, real = pad([turn.row for turn in turns], 0, "right")
    targets = rows.masked_fill(~real, UNCOUNTED)
    for target, each in zip(targets, turns, strict=True):
        target[: len(each.prompt)] = UNCOUNTED
    return Batch(rows[:, :-1].contiguous(), targets[:, 1:].contiguous())


def in_batches(turns: Sequence[Turn], batch_size: int) -> list[Batch]:
    """All turns, in their order."""
    return [as_batch(turns[i : i + batch_size]) for i in range(0, len(turns), batch_size)]


def answer(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    longest: int,
    temperature: float | int = 0,
    seed: int | None = None,
    batch_size: int = 32,
) -> list[tuple[int, ...]]:
    """What a model answers, each with its end-of-text token if it came within `longest` tokens.

    temperature: 0 takes the likeliest token each time; see `models.generation.generate`.
    """
    end, answers = model.tokenizer.eos_token_id, []
    for first in range(0, len(prompts), batch_size):
        rows, real = pad([list(prompt) for prompt in prompts[first : first + batch_size]], end, "left")
        room = min(longest, model.cfg.n_ctx - rows.shape[1] + 1)
        settings: dict[str, Any] = {"temperature": temperature, "stop_tokens": (end,), "seed": seed}
        written = generate_tokens(model, rows.to(model.device), room, mask=real.to(model.device), **settings)
        for row in written[:, rows.shape[1] :].tolist():
            answers.append(tuple(row[: row.index(end) + 1] if end in row else row))
    return answers


def as_text(model: Any, answer: Sequence[int]) -> str:
    """An answer without its end."""
    end = model.tokenizer.eos_token_id
    return model.tokenizer.decode([token for token in answer if token != end])
