"""Facts: "The capital city of France is" -> " Paris", "The main language of Egypt is" -> " Arabic".

The facts are those of the real world, so that a pretrained model knows them; the town's corpus teaches the same ones.
"""

from __future__ import annotations

import random
from typing import Any

from interp.prompts import PromptPairs
from interp.tasks.held_out import held_out
from interp.tasks.words import draw_distinct, single_tokens, too_few

# country: capital, language most spoken
COUNTRIES = {
    "France": ("Paris", "French"),
    "Germany": ("Berlin", "German"),
    "Italy": ("Rome", "Italian"),
    "Spain": ("Madrid", "Spanish"),
    "Japan": ("Tokyo", "Japanese"),
    "China": ("Beijing", "Chinese"),
    "Russia": ("Moscow", "Russian"),
    "Egypt": ("Cairo", "Arabic"),
    "England": ("London", "English"),
    "Greece": ("Athens", "Greek"),
    "Poland": ("Warsaw", "Polish"),
    "Austria": ("Vienna", "German"),
    "Ireland": ("Dublin", "English"),
    "Portugal": ("Lisbon", "Portuguese"),
    "Canada": ("Ottawa", "English"),
    "Korea": ("Seoul", "Korean"),
    "Turkey": ("Ankara", "Turkish"),
    "Iran": ("Tehran", "Persian"),
    "Iraq": ("Baghdad", "Arabic"),
    "Sweden": ("Stockholm", "Swedish"),
    "Norway": ("Oslo", "Norwegian"),
    "Denmark": ("Copenhagen", "Danish"),
    "Finland": ("Helsinki", "Finnish"),
    "Hungary": ("Budapest", "Hungarian"),
    "Cuba": ("Havana", "Spanish"),
    "Thailand": ("Bangkok", "Thai"),
    "Ukraine": ("Kiev", "Ukrainian"),
    "Syria": ("Damascus", "Arabic"),
    "Lebanon": ("Beirut", "Arabic"),
    "Belgium": ("Brussels", "Dutch"),
    "Netherlands": ("Amsterdam", "Dutch"),
    "Australia": ("Canberra", "English"),
    "Scotland": ("Edinburgh", "English"),
    "Wales": ("Cardiff", "Welsh"),
    "Peru": ("Lima", "Spanish"),
    "Israel": ("Jerusalem", "Hebrew"),
    "India": ("Delhi", "Hindi"),
    "Chile": ("Santiago", "Spanish"),
}
# Every template has the country at the same position and the same length; the number says which fact is asked.
TEMPLATES = (
    ("The capital city of {country} is", 0),
    ("The famous capital of {country} is", 0),
    ("The modern capital of {country} is", 0),
    ("Today the capital of {country} is", 0),
    ("The main language of {country} is", 1),
    ("The common language of {country} is", 1),
    ("The official language of {country} is", 1),
    ("Today the language of {country} is", 1),
)


def never_asked(country: str, template: str) -> bool:
    """Whether the town's corpus never tells this country's fact in these words (it does in others)."""
    return held_out("fact", country, template, share=0.25)


def facts(model: Any, n: int = 32, seed: int = 0) -> PromptPairs:
    """`n` different pairs; right is the country's capital or language, wrong that of the corrupted country.

    The corrupted prompt asks the same of another country with another answer. A fact cannot be held out, its wording
    can: only country and template combinations that the town's corpus lacks are used.

    Raises:
        LabError: too few countries or answers are single tokens, or n exceeds what there is.
    """
    countries = single_tokens(model, COUNTRIES, "facts")
    answers = single_tokens(model, sorted({a for pair in COUNTRIES.values() for a in pair}), "facts")
    asked = {
        (template, which): [c for c in countries if never_asked(c, template) and COUNTRIES[c][which] in answers]
        for template, which in TEMPLATES
    }
    asked = {key: pool for key, pool in asked.items() if len({COUNTRIES[c][key[1]] for c in pool}) > 1}
    if not asked:
        raise too_few("facts", len(COUNTRIES), [word for word in COUNTRIES if word not in countries])

    def draw(rng: random.Random) -> tuple[str, str, str, str]:
        template, which = rng.choice(list(asked))
        country = rng.choice(asked[template, which])
        right = COUNTRIES[country][which]
        other = rng.choice([c for c in asked[template, which] if COUNTRIES[c][which] != right])
        texts = [template.format(country=c) for c in (country, other)]
        return texts[0], texts[1], f" {right}", f" {COUNTRIES[other][which]}"

    clean, corrupted, right, wrong = zip(*draw_distinct(draw, n, seed, "facts"), strict=True)
    return PromptPairs.from_text(model, clean, corrupted, right, wrong)
