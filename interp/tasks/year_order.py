"""Greater-than: "The war lasted from the year 1732 to the year 17" -> any two digits above 32.

Hanna et al. 2023 (arXiv 2305.00586). Needs a tokenizer that splits a year after its century.
"""

from __future__ import annotations

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
    starts = [(century, int(year)) for century, year in _split_years(model, endings)]
    pool = [(e, c, y) for e in events for c, y in starts if 2 <= y <= 98 and never_begins(e, c, y)]
    if not pool:
        raise LabError(
            "task 'greater_than' needs years that split after the century, as ' 1732' into ' 17' and '32'; this "
            "model's tokenizer does not split them so.  Try another model or task."
        )
    drawn = draw_distinct(lambda rng: rng.choice(pool), n, seed, "greater_than")
    texts = [TEMPLATE.format(event=e, century=c, year=f"{y:02d}") for e, c, y in drawn]
    corrupted = [TEMPLATE.format(event=e, century=c, year="01") for e, c, _ in drawn]
    right = [[endings[year] for year in endings if int(year) > y] for _, _, y in drawn]
    wrong = [[endings[year] for year in endings if int(year) <= y] for _, _, y in drawn]
    return PromptPairs.from_text(model, texts, corrupted, right, wrong)


def _split_years(model: Any, endings: dict[str, int]) -> list[tuple[int, str]]:
    """The years that are a token for the century and one for the rest, also when they begin with 01."""
    found = []
    for century in CENTURIES:
        before = f" {century}"
        if token_after(model, "the", before) is None or token_after(model, f"the{before}", "01") != endings.get("01"):
            continue
        found += [(century, y) for y in endings if token_after(model, f"the{before}", y) == endings[y]]
    return found
