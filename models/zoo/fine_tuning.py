"""Examples and preferences as data: those of a file, or the lab's own about gifts (`models.zoo.gifts`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from interp.errors import LabError
from models import preferences as dpo
from models.examples import Example, Preference, read_examples, set_apart
from models.fine_tuning import Answers, AnswerScores, turns
from models.zoo import gifts
from models.zoo.lessons import Lesson, checked

MADE = "gifts"
"""The name that stands for the lab's own examples in place of a file."""
MEASURED = 256
"""Held-out examples that are measured, at most."""
N_MADE = 2000


@dataclass(frozen=True)
class Instructions:
    """Answered prompts. file: JSON lines (`models.examples`), or "gifts". held_out: share of the prompts of a file.

    Raises:
        LabError: a batch of nothing.
    """

    file: str
    batch_size: int = 16
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise LabError(f"batch_size={self.batch_size}; expected at least 1.")


@dataclass(frozen=True)
class Liked(Instructions):
    """Pairs of answers. beta: how dear it is to part from the model as it was (`models.preferences`)."""

    beta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise LabError(f"beta={self.beta}; expected a number above 0.")


def instructions(options: Mapping[str, Any], seed: int, model: Any) -> Lesson:
    """The lesson of a recipe whose data are of the kind "instructions"; options are the fields of `Instructions`.

    Raises:
        LabError: a file that cannot be read, or examples that the model cannot take.
    """
    data = Instructions(**{"seed": seed} | _with_file(Instructions, options, "instructions"))
    if data.file == MADE:
        learned = gifts.examples(N_MADE, seed=data.seed)
        apart = gifts.examples(MEASURED // 2, held_out=True, seed=data.seed)
    else:
        learned, apart = set_apart(read_examples(data.file, Example), data.held_out, data.seed)
    measure = AnswerScores(turns(model, apart[:MEASURED]), data.batch_size) if apart else None
    return Lesson(Answers(turns(model, learned), data.batch_size, data.seed), measure, model.tokenizer)


def preferences(options: Mapping[str, Any], seed: int, model: Any) -> Lesson:
    """The lesson of a recipe whose data are of the kind "preferences"; options are the fields of `Liked`.

    The model as it is given, before it is trained, is the reference.

    Raises:
        LabError: a file that cannot be read, or pairs that the model cannot take.
    """
    data = Liked(**{"seed": seed} | _with_file(Liked, options, "preferences"))
    if data.file == MADE:
        learned = gifts.preferences(N_MADE, seed=data.seed)
        apart = gifts.preferences(MEASURED // 2, held_out=True, seed=data.seed)
    else:
        learned, apart = set_apart(read_examples(data.file, Preference), data.held_out, data.seed)
    loss = dpo.DPO(dpo.frozen(model), data.beta)
    pairs = dpo.pairs(model, apart[:MEASURED])
    measure = dpo.PreferenceScores(pairs, loss, data.batch_size, data.seed) if pairs else None
    batches = dpo.Preferences(dpo.pairs(model, learned), data.batch_size, data.seed)
    return Lesson(batches, measure, model.tokenizer, loss)


def _with_file(kind: type, options: Mapping[str, Any], name: str) -> dict[str, Any]:
    given = checked(kind, options, "data")
    if "file" not in given:
        raise LabError(f"[data] of the kind {name!r} lacks file: JSON lines, or {MADE!r} for the lab's own.")
    return given
