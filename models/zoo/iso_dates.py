"""Dates as people write them, and as ISO 8601 does: "March 5, 1987" and "5 Mar 1987" are "1987-03-05".

A small translation: the order changes, most digits are copied, a day of one digit is filled up, and the name of a month
becomes a number. Which characters of the source each character of the target depends on is known (`alignment`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import torch
from einops import einsum, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import LabError
from models.batches import SourceBatch, step_generator
from models.text import pad
from models.tokenizers import Tokenizer, characters
from models.training import batch_loss
from models.zoo.lessons import Lesson, checked

MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
STYLES = ("{day} {month} {year}", "{month} {day}, {year}", "{day} {short} {year}", "{day}/{number}/{year}")
YEARS = range(1000, 3000)
N_TARGET = len("1987-03-05")
ALPHABET = "".join(sorted({*"0123456789 ,/-", *"".join(MONTHS)}))


@dataclass(frozen=True)
class Written:
    """A date in one of the `STYLES`."""

    day: date
    style: int

    @property
    def source(self) -> str:
        return STYLES[self.style].format(**self._parts)

    @property
    def target(self) -> str:
        return self.day.isoformat()

    @property
    def alignment(self) -> list[list[int]]:
        """For each character of the target the positions of the source that say what it is; none for the hyphens.

        The digits of the year, and of a day of two digits, come from one position each; the 0 before a day of one
        digit and both digits of the month from all positions of theirs.
        """
        places = {name: self._place(name) for name in ("year", "month", "day")}
        days = [[pos] for pos in places["day"]] if len(places["day"]) == 2 else [places["day"]] * 2
        return [*([pos] for pos in places["year"]), [], *([places["month"]] * 2), [], *days]

    @property
    def _parts(self) -> dict[str, str]:
        name = MONTHS[self.day.month - 1]
        numbers = {"day": str(self.day.day), "number": str(self.day.month), "year": str(self.day.year)}
        return {"month": name, "short": name[:3], **numbers}

    def _place(self, name: str) -> list[int]:
        """The positions of a part of the date in the source."""
        style = STYLES[self.style]
        field = next(f"{{{kind}}}" for kind in _SPELLINGS[name] if f"{{{kind}}}" in style)
        before, _, _ = style.partition(field)
        start = len(before.format(**self._parts))
        return list(range(start, start + len(field.format(**self._parts))))


_SPELLINGS = {"year": ("year",), "month": ("month", "short", "number"), "day": ("day",)}


@dataclass(frozen=True)
class Dates:
    """Days of the years 1000 to 2999 in any style. One day in ten, by its number, is held out of all styles.

    Raises:
        LabError: a batch without rows.
    """

    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise LabError(f"batch_size={self.batch_size}; expected at least 1.")

    def batch(self, step: int) -> SourceBatch:
        """The dates of one step."""
        return as_batch(self.draw(self.batch_size, step_generator(self.seed, step)))

    def draw(self, n: int, generator: torch.Generator, held_out: bool = False) -> list[Written]:
        """Some dates, none of them held out, or all of them."""
        first, last = date(YEARS[0], 1, 1).toordinal(), date(YEARS[-1], 12, 31).toordinal()
        days = torch.randint(first // 10, last // 10, (n,), generator=generator) * 10 + 10
        if not held_out:
            days = days + torch.randint(1, 10, (n,), generator=generator)
        styles = torch.randint(len(STYLES), (n,), generator=generator)
        pairs = zip(days.tolist(), styles.tolist(), strict=True)
        return [Written(date.fromordinal(min(day, last)), style) for day, style in pairs]


def is_held_out(day: date) -> bool:
    """Whether no batch has this day."""
    return day.toordinal() % 10 == 0


def held_out(n: int = 256) -> list[Written]:
    """Dates for measuring, which no recipe trains on."""
    return Dates().draw(n, torch.Generator().manual_seed(2**40), held_out=True)


def sources_of(dates: Sequence[Written]) -> tuple[Int[Tensor, "batch source_pos"], Bool[Tensor, "batch source_pos"]]:
    """The ids of the sources, and which are real."""
    return pad([_TOKENIZER.encode(each.source) for each in dates], _END, "right")


def as_batch(dates: Sequence[Written]) -> SourceBatch:
    """Sources with what the decoder reads, from the start token on, and what it is to write, up to the end token."""
    source, real = sources_of(dates)
    targets = torch.tensor([[*_TOKENIZER.encode(each.target), _END] for each in dates])
    start = torch.full((len(dates), 1), _END)
    return SourceBatch(tokens=torch.cat([start, targets[:, :-1]], 1), targets=targets, source=source, source_mask=real)


def tokenizer() -> Tokenizer:
    """One token per character, and one that starts and ends a target."""
    return characters(ALPHABET)


_TOKENIZER = tokenizer()
_END = len(ALPHABET)


def lesson(options: Mapping[str, Any], seed: int) -> Lesson:
    """The lesson of a recipe whose data are of the kind "dates"; options are the fields of `Dates`."""
    return Lesson(Dates(**{"seed": seed} | checked(Dates, options, "data")), measure, tokenizer())


@torch.no_grad()
def measure(model: Any, n: int = 256) -> dict[str, float]:
    """On held-out dates: the loss in nats, the share translated without a mistake, the share of digits for which
    cross-attention looks at an aligned position (`looks_aligned`), and the best head's attention there."""
    dates = held_out(n)
    batch: Any = as_batch(dates).to(model.device)
    written = model.generate(batch.source, N_TARGET + 1, attention_mask=batch.source_mask)[:, 1:]
    pattern = cross_pattern(model, dates)
    return {
        "loss": float(batch_loss(model, batch)),
        "exact": float((written == batch.targets).all(1).float().mean()),
        "aligned": float(looks_aligned(pattern, dates).mean()),
        "best_head": float(attention_on_aligned(pattern, dates).max()),
    }


def aligned(dates: Sequence[Written], n_source: int) -> Bool[Tensor, "batch target_pos source_pos"]:
    """Where the decoder's query that writes each character should look; nowhere for hyphens."""
    where = torch.zeros(len(dates), N_TARGET, n_source, dtype=torch.bool)
    for row, each in enumerate(dates):
        for pos, places in enumerate(each.alignment):
            where[row, pos, places] = True
    return where


@torch.no_grad()
def cross_pattern(model: Any, dates: Sequence[Written]) -> Float[Tensor, "layer batch head target_pos source_pos"]:
    """Where each head of the decoder looks in the source when it writes each character of the right target."""
    batch: Any = as_batch(dates).to(model.device)
    names = [f"decoder.{layer}.cross_attn.hook_pattern" for layer in range(len(model.decoder))]
    _, cache = model.run_with_cache(batch.source, batch.tokens, attention_mask=batch.source_mask, names_filter=names)
    return torch.stack([cache[name][:, :, :N_TARGET] for name in names])


def attention_on_aligned(
    pattern: Float[Tensor, "layer batch head target_pos source_pos"], dates: Sequence[Written]
) -> Float[Tensor, "layer head"]:
    """Each head's attention on the aligned positions, averaged over the digits of the targets."""
    where = aligned(dates, pattern.shape[-1]).to(pattern.device)
    shares = einsum(pattern, where.to(pattern.dtype), "layer b head q k, b q k -> layer head b q")
    return shares[..., where.any(-1)].mean(-1)


def looks_aligned(
    pattern: Float[Tensor, "layer batch head target_pos source_pos"], dates: Sequence[Written]
) -> Float[Tensor, "digit"]:
    """For each of the eight digits, in how many dates attention, averaged over heads, is highest on an aligned one."""
    where = aligned(dates, pattern.shape[-1]).to(pattern.device)
    looked_at = reduce(pattern, "layer b head q k -> b q k", "mean").argmax(-1, keepdim=True)
    right = where.gather(-1, looked_at)[..., 0]
    return right[:, where[0].any(-1)].float().mean(0)
