"""Greater-than: "The war lasted from the year 1732 to the year 17" -> any two digits above 32.

Hanna et al. 2023 (arXiv 2305.00586). Needs a tokenizer that splits a year after its century.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from interp.errors import LabError
from interp.prompts import PromptPairs
from interp.tasks.held_out import held_out
from interp.tasks.words import draw_distinct, single_tokens, token_after

EVENTS = tuple(
    "war trip plan project battle meeting marriage contract campaign journey conflict trial program strike tour "
    "reign visit study voyage revolt siege famine expedition festival".split()
)
CENTURIES = tuple(range(11, 19))
YEARS = tuple(f"{year:02d}" for year in range(100))
TEMPLATE = "The {event} lasted from the year {century}{year} to the year {century}"


def never_begins(event: str, century: int, year: int) -> bool:
    """Whether no such event begins in this year in the town's corpus."""
    return held_out("year", event, century, year)


def greater_than(model: Any, n: int = 32, seed: int = 0) -> PromptPairs:
    """`n` different prompts; right are all two-digit tokens above the year, wrong the rest (00 and the year included).

    The corrupted prompt begins in the year 01 of the same century, so that nearly every year is later.
    Only combinations of event and year that the town's corpus lacks are used.

    Raises:
        LabError: too few events or two-digit numbers are single tokens, or n exceeds what there is.
    """
    events = list(single_tokens(model, EVENTS, "greater_than", at_least=1))
    endings = {year: token for year in YEARS if (token := token_after(model, "", year)) is not None}
    centuries = [c for c in CENTURIES if _splits(model, c, "01", endings)]
    splits = cache(lambda century, year: _splits(model, century, f"{year:02d}", endings))

    def draw(rng: random.Random) -> tuple[str, int, int]:
        for _ in range(1000 if centuries else 0):
            event, century, year = rng.choice(events), rng.choice(centuries), rng.randint(2, 98)
            if never_begins(event, century, year) and splits(century, year):
                return event, century, year
        raise LabError(
            "task 'greater_than' needs years that split after the century, as ' 1732' into ' 17' and '32'; this "
            "model's tokenizer does not split them so.  Try another model or task."
        )

    drawn = draw_distinct(draw, n, seed, "greater_than")
    texts = [TEMPLATE.format(event=e, century=c, year=f"{y:02d}") for e, c, y in drawn]
    corrupted = [TEMPLATE.format(event=e, century=c, year="01") for e, c, _ in drawn]
    right = [[endings[year] for year in endings if int(year) > y] for _, _, y in drawn]
    wrong = [[endings[year] for year in endings if int(year) <= y] for _, _, y in drawn]
    return PromptPairs.from_text(model, texts, corrupted, right, wrong)


def _splits(model: Any, century: int, year: str, endings: dict[str, int]) -> bool:
    """Whether the year is one token for the century and, after it, the token of its two digits."""
    before = f"the {century}"
    single = token_after(model, "the", f" {century}") is not None
    return single and year in endings and token_after(model, before, year) == endings[year]
