"""Examples to fine-tune on: prompts with an answer, or with two answers of which one is preferred.

A file of them has one JSON object a line:

    {"prompt": "Who has the ring?", "answer": "Mary."}
    {"prompt": "Who has the ring?", "chosen": "Mary.", "rejected": "Mary has the ring, I think."}
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from interp.errors import LabError
from interp.files import read_text


@dataclass(frozen=True)
class Example:
    """A prompt and its answer.

    Raises:
        LabError: one of them is empty.
    """

    prompt: str
    answer: str

    def __post_init__(self) -> None:
        _check_not_empty(self)


@dataclass(frozen=True)
class Preference:
    """A prompt, an answer, and another answer that is liked less.

    Raises:
        LabError: one of them is empty, or the answers are equal.
    """

    prompt: str
    chosen: str
    rejected: str

    def __post_init__(self) -> None:
        _check_not_empty(self)
        if self.chosen == self.rejected:
            raise LabError(f"chosen and rejected are both {self.chosen!r}; a preference needs two different answers.")


E = TypeVar("E", Example, Preference)


def read_examples(path: str | os.PathLike[str], kind: type[E]) -> list[E]:
    """The examples in a file, in its order; entries that the kind does not have are passed over.

    Raises:
        LabError: the file cannot be read, or holds no examples; else the first line that is wrong, and why.
    """
    examples = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                examples.append(_example(line, kind))
            except LabError as problem:
                raise LabError(f"{str(path)!r}, line {number}: {problem}") from None
    if not examples:
        raise LabError(f"{str(path)!r} has no examples; expected one JSON object a line, such as {_sample(kind)}.")
    return examples


def set_apart(examples: Sequence[E], share: float | int, seed: int) -> tuple[list[E], list[E]]:
    """The examples to train on, and those to measure with, split by prompt: no prompt is in both.

    share: of the prompts to measure with; at least one of them where there are several, none for 0.

    Raises:
        LabError: a share that leaves nothing to train on.
    """
    if not 0 <= share < 1:
        raise LabError(f"held_out={share}; expected a share of the prompts, from 0 to below 1.")
    prompts = sorted({example.prompt for example in examples})
    random.Random(f"held out {seed}").shuffle(prompts)
    several = share > 0 and len(prompts) > 1
    apart = set(prompts[: min(max(1, round(share * len(prompts))), len(prompts) - 1)] if several else ())
    return [e for e in examples if e.prompt not in apart], [e for e in examples if e.prompt in apart]


def _example(line: str, kind: type[E]) -> E:
    try:
        entries = json.loads(line)
    except json.JSONDecodeError as problem:
        raise LabError(f"not JSON: {problem.msg} at column {problem.colno}; expected {_sample(kind)}.") from None
    if not isinstance(entries, dict):
        raise LabError(f"a {type(entries).__name__}; expected an object such as {_sample(kind)}.")
    wanted = [field.name for field in fields(kind)]
    missing = [name for name in wanted if name not in entries]
    if missing:
        raise LabError(f"no {missing[0]!r} (it has {', '.join(map(repr, entries))}); expected {_sample(kind)}.")
    values: dict[str, Any] = {name: entries[name] for name in wanted}
    for name, value in values.items():
        if not isinstance(value, str):
            raise LabError(f"{name} is {value!r}; expected text.")
    return kind(**values)


def _sample(kind: type) -> str:
    return json.dumps({field.name: "..." for field in fields(kind)})


def _check_not_empty(example: Any) -> None:
    for field in fields(example):
        if not getattr(example, field.name).strip():
            raise LabError(f"the {field.name} is empty; expected some text.")
