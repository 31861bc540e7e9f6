"""Prompt families with known answers: each `task(model, n=32, seed=0)` gives a `PromptPairs`.

Clean and corrupted prompts are aligned token by token in any tokenizer that keeps the task's words whole; words that
it splits are left out, and a task that has too few left says which they are.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from interp.errors import choose
from interp.prompts import PromptPairs
from interp.tasks.indirect_object import ioi
from interp.tasks.repetition import induction, repeated_tokens
from interp.tasks.verb_number import agreement
from interp.tasks.world import facts
from interp.tasks.year_order import greater_than


@runtime_checkable
class Task(Protocol):
    """What every task is: a function from a model to prompts that suit it."""

    def __call__(self, model: Any, n: int = 32, seed: int = 0) -> PromptPairs: ...


_TASKS: MappingProxyType[str, Task] = MappingProxyType(
    {
        "ioi": ioi,
        "greater_than": greater_than,
        "induction": induction,
        "facts": facts,
        "agreement": agreement,
    }
)
NAMES = tuple(_TASKS)


def get(name: str) -> Task:
    """The task of that name.

    Raises:
        LabError: there is none; the message names the near misses and all tasks.
    """
    return _TASKS[choose("task", name, NAMES)]


__all__ = [
    "NAMES",
    "Task",
    "agreement",
    "facts",
    "get",
    "greater_than",
    "induction",
    "ioi",
    "repeated_tokens",
]
