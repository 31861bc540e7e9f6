"""Indirect object identification: "When Mary and John went to the store, John gave a drink to" -> " Mary".

Wang et al. 2022 (arXiv 2211.00593). Either name may come first, either may be the one who gives.
"""

from __future__ import annotations

import random
from typing import Any

from interp.prompts import PromptPairs
from interp.tasks.held_out import held_out
from interp.tasks.words import draw_distinct, single_tokens, too_few

FEMALE = tuple(
    "Mary Anna Emma Alice Sarah Laura Julia Lucy Helen Jane Kate Rose Ruth Grace Emily Amy Lisa Maria Diana Clara "
    "Rachel Susan Karen Linda Nancy Betty Carol Sophie Hannah Claire".split()
)
MALE = tuple(
    "John James Tom Paul Peter Mark David Daniel Michael Robert George Henry Charles Edward Frank Jack Adam Simon "
    "Martin Andrew Kevin Brian Eric Scott Ryan Thomas William Joseph Steven Richard".split()
)
NAMES = FEMALE + MALE
PLACES = tuple(
    "store garden park school market office house station church library hospital museum farm beach river bridge "
    "hotel kitchen theater castle".split()
)
OBJECTS = tuple(
    "drink book ring ball letter key cake flower coat hat map lamp gift basket box bottle watch picture ticket "
    "computer".split()
)
# Every template has its names at the same positions and the same length, so that prompts line up in one picture.
TEMPLATES = (
    "When {a} and {b} went to the {place}, {giver} gave a {object} to",
    "After {a} and {b} walked to the {place}, {giver} handed the {object} to",
    "While {a} and {b} worked at the {place}, {giver} passed a {object} to",
    "Once {a} and {b} came to the {place}, {giver} offered the {object} to",
    "As {a} and {b} waited at the {place}, {giver} sold a {object} to",
)


def never_together(one: str, other: str) -> bool:
    """Whether the town's corpus keeps these two names apart (in either order)."""
    return held_out("names", *sorted((one, other)))


def ioi(model: Any, n: int = 32, seed: int = 0) -> PromptPairs:
    """`n` different prompts; right is the name mentioned once, wrong the one who gives.

    The corrupted prompt swaps the giver for the other name, which swaps right and wrong and leaves all else.
    Only pairs of names that the town's corpus keeps apart are used.

    Raises:
        LabError: too few of the names, places or objects are single tokens, or n exceeds what there is.
    """
    names = single_tokens(model, NAMES, "ioi")
    places = list(single_tokens(model, PLACES, "ioi", at_least=1))
    objects = list(single_tokens(model, OBJECTS, "ioi", at_least=1))
    pairs = [(a, b) for a in names for b in names if a != b and never_together(a, b)]
    if not pairs:
        raise too_few("ioi", len(NAMES), [name for name in NAMES if name not in names])

    def draw(rng: random.Random) -> tuple[str, str, str, str]:
        a, b = rng.choice(pairs)
        giver, receiver = rng.sample((a, b), 2)
        place, thing, template = rng.choice(places), rng.choice(objects), rng.choice(TEMPLATES)
        texts = [template.format(a=a, b=b, giver=g, place=place, object=thing) for g in (giver, receiver)]
        return texts[0], texts[1], f" {receiver}", f" {giver}"

    clean, corrupted, right, wrong = zip(*draw_distinct(draw, n, seed, "ioi"), strict=True)
    return PromptPairs.from_text(model, clean, corrupted, right, wrong)
