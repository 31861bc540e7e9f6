"""What a zoo model learns from: its batches, how its progress is measured, and the tokenizer that names its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from interp.errors import choose
from models.batches import Batches
from models.tokenizers import Tokenizer
from models.training import Evaluate, Loss, batch_loss


@dataclass(frozen=True)
class Lesson:
    """One source of batches, ready for training.

    batches: what is trained on. measure: numbers by name, on data that is never trained on.
    tokenizer: of the trained model, or None. loss: what is minimised.
    """

    batches: Batches
    measure: Evaluate | None = None
    tokenizer: Tokenizer | None = None
    loss: Loss = batch_loss


def checked(kind: type, options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options, if all of them are fields of the dataclass `kind`.

    Raises:
        LabError: an unknown one; near misses named.
    """
    known = [field.name for field in fields(kind) if field.init]
    return {choose(f"entry of [{where}]", name, known): value for name, value in options.items()}
