"""Agreement: "The keys near the cabinet" -> " are", though the nearest noun is singular.

Linzen et al. 2016 (arXiv 1611.01368).
"""

from __future__ import annotations

import random
from typing import Any

from interp.prompts import PromptPairs
from interp.tasks.held_out import held_out
from interp.tasks.words import draw_distinct, single_tokens, too_few

# singular: plural
NOUNS = dict(
    zip(
        "key cabinet table car chair window door dog cat tree child woman man teacher doctor student worker farmer "
        "king queen boy girl horse bird boat ship clock cup plate stone toy shirt".split(),
        "keys cabinets tables cars chairs windows doors dogs cats trees children women men teachers doctors students "
        "workers farmers kings queens boys girls horses birds boats ships clocks cups plates stones toys "
        "shirts".split(),
        strict=True,
    )
)
BESIDE = ("near", "behind", "beside", "by", "under", "above")
TEMPLATE = "The {subject} {beside} the {other}"


def never_beside(subject: str, other: str) -> bool:
    """Whether the town's corpus never has the second noun (in either number) stand between the first and its verb."""
    return held_out("nouns", subject, other)


def agreement(model: Any, n: int = 32, seed: int = 0) -> PromptPairs:
    """`n` different prompts; right and wrong are " is" and " are", as the first noun demands.

    The corrupted prompt puts the first noun into its other number. The noun in between agrees with it half the time.
    Only pairs of nouns that the town's corpus lacks are used.

    Raises:
        LabError: too few nouns are single tokens in both numbers, or n exceeds what there is.
    """
    known = single_tokens(model, [w for pair in NOUNS.items() for w in pair], "agreement")
    beside = list(single_tokens(model, BESIDE, "agreement", at_least=1))
    single_tokens(model, ("is", "are"), "agreement")
    nouns = [noun for noun in NOUNS if noun in known and NOUNS[noun] in known]
    pairs = [(a, b) for a in nouns for b in nouns if a != b and never_beside(a, b)]
    if not pairs:
        raise too_few("agreement", len(NOUNS), [noun for noun in NOUNS if noun not in nouns])

    def draw(rng: random.Random) -> tuple[str, str, str, str]:
        noun, other = rng.choice(pairs)
        place, plural = rng.choice(beside), rng.random() < 0.5
        between = rng.choice((other, NOUNS[other]))
        one, many = (TEMPLATE.format(subject=s, beside=place, other=between) for s in (noun, NOUNS[noun]))
        return (many, one, " are", " is") if plural else (one, many, " is", " are")

    clean, corrupted, right, wrong = zip(*draw_distinct(draw, n, seed, "agreement"), strict=True)
    return PromptPairs.from_text(model, clean, corrupted, right, wrong)
