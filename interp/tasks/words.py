"""Which words a task can use with a model: those that its tokenizer keeps whole."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

from interp.errors import LabError
from interp.prompt_text import unknown_token

T = TypeVar("T", bound=Hashable)


def token_after(model: Any, before: str, word: str) -> int | None:
    """The one token that `word` adds when it follows `before`, or None when it adds another number, or is unknown."""
    start, both = _ids(model, before), _ids(model, before + word)
    return both[-1] if both[:-1] == start and both[-1] != unknown_token(model) else None


def single_tokens(model: Any, words: Iterable[str], task: str, at_least: int = 2) -> dict[str, int]:
    """The words that are one token after a space, with that token; the others are dropped.

    Raises:
        LabError: fewer than `at_least` remain; the message names those that are not single tokens.
    """
    tokens = {word: token_after(model, "the", f" {word}") for word in words}
    kept = {word: token for word, token in tokens.items() if token is not None}
    if len(kept) < at_least:
        raise too_few(task, at_least, [word for word in tokens if word not in kept])
    return kept


def too_few(task: str, at_least: int, dropped: Sequence[str]) -> LabError:
    """The error of a task whose words the tokenizer splits."""
    shown = ", ".join(repr(f" {word}") for word in dropped[:8]) + (", ..." if len(dropped) > 8 else "")
    return LabError(
        f"task {task!r} needs at least {at_least} of its words as single tokens; this model's tokenizer splits "
        f"or lacks {shown}.  Try another model or task, or PromptPairs.from_text with words of its own."
    )


def draw_distinct(draw: Callable[[random.Random], T], n: int, seed: int, task: str) -> list[T]:
    """`n` different draws.

    Raises:
        LabError: n is not positive, or the task does not have that many.
    """
    if n < 1:
        raise LabError(f"task {task!r} was asked for n={n} prompts; n must be at least 1.")
    rng, found, misses = random.Random(f"{task} {seed}"), dict[T, None](), 0
    while len(found) < n and misses < 1000:  # in a row: then nearly all there is has been found
        before = len(found)
        found.setdefault(draw(rng))
        misses = 0 if len(found) > before else misses + 1
    if len(found) == n:
        return list(found)
    raise LabError(f"task {task!r} has only about {len(found)} different prompts; n={n} is too many.")


def _ids(model: Any, text: str) -> list[int]:
    return model.to_tokens(text, prepend_bos=False)[0].tolist() if text else []
