"""Facts told twice, in two orders and two forms, so that a hidden word is known from the other telling.

    mary has the red ball . tom has the blue cup . the blue cup is tom 's . the red ball is mary 's .

A word hidden in the first telling is known from the second alone, which only a model that looks both ways can use.
Names, colours and things are drawn without repetition within a text.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from interp.errors import LabError
from models.batches import Batch
from models.masking import SHARE, MaskedBatches, Masking
from models.tokenizers import Tokenizer
from models.word_pieces import ROLES, words
from models.zoo.lessons import Lesson, checked

NAMES = "mary tom anna john lucy paul emma mark rose jack ella finn".split()
COLOURS = "red blue green white black brown pink grey gold violet".split()
THINGS = "ball cup book lamp hat key box pen coat bowl drum kite".split()
KINDS = {"name": NAMES, "colour": COLOURS, "thing": THINGS}
TELLINGS = ("first", "second")

Fact = tuple[str, str, str]


def text(facts: Sequence[Fact], order: Sequence[int]) -> str:
    """The facts as they are given, and again in an order of their own."""
    first = [f"{name} has the {colour} {thing} ." for name, colour, thing in facts]
    second = [f"the {facts[i][1]} {facts[i][2]} is {facts[i][0]} 's ." for i in order]
    return " ".join([*first, *second])


def drawn(n_facts: int, source: random.Random) -> tuple[list[Fact], list[int]]:
    """Facts without a word in common, and the order of the second telling."""
    columns = [source.sample(every, n_facts) for every in (NAMES, COLOURS, THINGS)]
    return list(zip(*columns, strict=True)), source.sample(range(n_facts), n_facts)


def vocabulary() -> Tokenizer:
    """A token for each word, beside BERT's special tokens."""
    core = words([text([(n, c, t)], [0]) for n, c, t in zip(NAMES, COLOURS * 2, THINGS, strict=False)])
    return Tokenizer(core, pad_token=ROLES["pad_token"], mask_token=ROLES["mask_token"])


@dataclass(frozen=True)
class Tellings:
    """Batches of texts, each a function of the step.

    Raises:
        LabError: more facts than there are words.
    """

    tokenizer: Tokenizer
    n_facts: int = 3
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        most = min(map(len, KINDS.values()))
        if not 1 <= self.n_facts <= most:
            raise LabError(f"n_facts={self.n_facts}; expected 1 to {most}, as no word comes in two facts.")

    def batch(self, step: int) -> Batch:
        """The texts of one step."""
        source = random.Random(f"tellings {self.seed} {step}")
        texts = [text(*drawn(self.n_facts, source)) for _ in range(self.batch_size)]
        return Batch(torch.tensor([self.tokenizer.encode(each, add_special_tokens=True) for each in texts]))


def places(tokenizer: Tokenizer, row: Int[Tensor, "pos"], kind: str, telling: str) -> list[int]:
    """Where the words of a kind stand in one telling of a text."""
    ids = {tokenizer.core.token_to_id(word) for word in KINDS[kind]}
    found = [position for position, token in enumerate(row.tolist()) if token in ids]
    half = len(found) // 2
    return found[:half] if telling == "first" else found[half:]


def accuracy(model: nn.Module, tokenizer: Tokenizer, rows: Int[Tensor, "batch pos"], kind: str, telling: str) -> float:
    """How often a word is guessed where it alone is hidden, in one telling."""
    number = torch.arange(len(rows))
    positions = torch.tensor([places(tokenizer, row, kind, telling)[i % 2] for i, row in enumerate(rows)])
    hidden, mask_token = rows.clone(), tokenizer.mask_token_id
    assert mask_token is not None
    hidden[number, positions] = mask_token
    device = next(model.parameters()).device
    with torch.no_grad():
        logits = model(hidden.to(device)).cpu()
    return float((logits[number, positions].argmax(-1) == rows[number, positions]).double().mean())


def held_out(tokenizer: Tokenizer, n_facts: int, n: int = 256) -> Int[Tensor, "batch pos"]:
    """Texts that are never trained on: of a seed of their own."""
    return Tellings(tokenizer, n_facts, n, seed=-1).batch(0).tokens


@dataclass(frozen=True)
class Options:
    """The settings of [data]. share: of the tokens, to be guessed."""

    n_facts: int = 3
    batch_size: int = 64
    share: float = SHARE


def lesson(options: Mapping[str, Any], seed: int) -> Lesson:
    """Texts with some of their words hidden, and how often hidden words are guessed in texts of their own.

    Raises:
        LabError: unknown settings, or values out of range.
    """
    given = Options(**checked(Options, options, "data"))
    tokenizer = vocabulary()
    texts = Tellings(tokenizer, given.n_facts, given.batch_size, seed)
    batches = MaskedBatches(texts, Masking.of(tokenizer, given.share), seed)
    rows = held_out(tokenizer, given.n_facts)

    def measure(model: nn.Module) -> dict[str, float]:
        return {
            f"{kind}_{telling}": accuracy(model, tokenizer, rows, kind, telling)
            for telling in TELLINGS
            for kind in KINDS
        }

    return Lesson(batches, measure, tokenizer)
