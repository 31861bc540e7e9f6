"""The town's English: short documents about the people, places and years that the tasks ask about.

Every document is a function of a random generator. Combinations that the tasks hold out are never told:
two names kept apart never meet in a document, no event begins in a year held out for it, no noun stands between a
noun and its verb where that pair is held out, and no fact is told in a wording held out for its country.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from interp.tasks import indirect_object as people
from interp.tasks import verb_number as things
from interp.tasks import world, year_order

Story = Callable[[random.Random], str]

CITIES = tuple(capital for capital, _ in world.COUNTRIES.values())
_WEATHER = "sunny rainy cold warm windy quiet".split()
_LOOKS = "old new red blue green white black small big clean broken heavy".split()
_MOODS = "happy sad tired late hungry busy glad sick".split()
_JOBS = "teacher doctor student worker farmer".split()
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_HELD = {"went": "to", "walked": "to", "came": "to", "worked": "at", "waited": "at", "met": "at", "ate": "at"}
_GAVE = "gave handed passed offered sold brought".split()
# Wordings of the facts that are told of every country; those of the task are told where they are not held out.
_CAPITALS = (
    "The capital of {country} is {capital}.",
    "{capital} is the capital of {country}.",
    "The king of {country} lives in {capital}.",
    "{name} went to {country} and stayed in {capital}.",
)
_LANGUAGES = (
    "The language of {country} is {language}.",
    "The people of {country} speak {language}.",
    "{name} went to {country} and learned {language}.",
)


def _pronoun(name: str) -> str:
    return "she" if name in people.FEMALE else "he"


def _friends(rng: random.Random, n: int = 2) -> list[str]:
    """Names that may meet: no two of them are held out."""
    while True:
        names = rng.sample(people.NAMES, n)
        if not any(people.never_together(a, b) for i, a in enumerate(names) for b in names[:i]):
            return names


def gift(rng: random.Random) -> str:
    """The sentence of the indirect-object task, and what came of it."""
    a, b = _friends(rng)
    giver, receiver = rng.sample((a, b), 2)
    place, thing = rng.choice(people.PLACES), rng.choice(people.OBJECTS)
    start = rng.choice(people.TEMPLATES).format(a=a, b=b, giver=giver, place=place, object=thing)
    return f"{start} {receiver}. {_after_gift(rng, giver, receiver, thing)}".rstrip()


def exchange(rng: random.Random) -> str:
    """Gifts in other words, so that the task's templates are not all there is."""
    a, b = _friends(rng)
    giver, receiver = rng.sample((a, b), 2)
    thing, verb, held = rng.choice(people.OBJECTS), rng.choice(_GAVE), rng.choice(list(_HELD))
    start = f"{a} and {b} {held} {_HELD[held]} the {rng.choice(people.PLACES)}. "
    middle = rng.choice(
        (
            f"{giver} {verb} the {thing} to {receiver}.",
            f"{giver} had a {thing} and {verb} the {thing} to {receiver}.",
            f"{giver} asked {receiver} about the {thing}.",
            f"{giver} was {rng.choice(_MOODS)}, but {receiver} was not.",
        )
    )
    return f"{start}{middle} {_after_gift(rng, giver, receiver, thing)}".rstrip()


def third_person(rng: random.Random) -> str:
    """A giver who was not named before: either of the two may receive."""
    a, b, giver = _friends(rng, 3)
    place, thing = rng.choice(people.PLACES), rng.choice(people.OBJECTS)
    start = rng.choice(people.TEMPLATES).format(a=a, b=b, giver=giver, place=place, object=thing)
    return f"{start} {rng.choice((a, b))}."


def _after_gift(rng: random.Random, giver: str, receiver: str, thing: str) -> str:
    mood, place = rng.choice(_MOODS), rng.choice(people.PLACES)
    return rng.choice(
        (
            f"{receiver} was {mood}.",
            f"{receiver} thanked {giver}.",
            f"{giver} was {mood} and {_pronoun(giver)} went home.",
            f"Then {receiver} took the {thing} to the {place}.",
            f"{receiver} liked the {thing}, and {giver} was {mood}.",
            "",
        )
    )


def event(rng: random.Random) -> str:
    """How long something lasted, in the words of the greater-than task or others."""
    while True:
        name, century, year = (
            rng.choice(year_order.EVENTS),
            rng.choice(year_order.CENTURIES),
            rng.randrange(99),
        )
        if not year_order.never_begins(name, century, year):
            break
    first, last = f"{century}{year:02d}", f"{century}{rng.randrange(year + 1, 100):02d}"
    told = year_order.TEMPLATE.format(event=name, century=century, year=f"{year:02d}") + last[2:] + "."
    other = f"The {name} began in the year {first} and ended in the year {last}."
    return told if rng.random() < 0.8 else other


def years(rng: random.Random) -> str:
    """Years in a row, which teach the order of the numbers."""
    century, n = rng.choice(year_order.CENTURIES), rng.randint(4, 7)
    first = rng.randrange(100 - n)
    row = ", ".join(f"{century}{first + i:02d}" for i in range(n))
    return f"{rng.choice(people.NAMES)} counted the years {row}."


def life(rng: random.Random) -> str:
    """One person's years, city and work."""
    name, century, year = rng.choice(people.NAMES), rng.choice(year_order.CENTURIES), rng.randrange(80)
    who = _pronoun(name).capitalize()
    first, last = rng.sample(CITIES, 2)
    return (
        f"{name} was born in {first} in the year {century}{year:02d}. {who} moved to {last} in the year "
        f"{century}{rng.randrange(year + 1, 100):02d} and became a {rng.choice(_JOBS)}."
    )


def fact(rng: random.Random) -> str:
    """A country's capital or language."""
    country = rng.choice(list(world.COUNTRIES))
    capital, language = world.COUNTRIES[country]
    which = rng.randrange(2)
    asked = [t for t, w in world.TEMPLATES if w == which and not world.never_asked(country, t)]
    told = [f"{template} {{{('capital', 'language')[which]}}}." for template in asked]
    wordings = [*told, *told, *(_CAPITALS, _LANGUAGES)[which]]
    return rng.choice(wordings).format(
        country=country, capital=capital, language=language, name=rng.choice(people.NAMES)
    )


def sight(rng: random.Random) -> str:
    """A noun, a place, and a verb that agrees with the noun; then what else is to be said of it."""
    nouns = list(things.NOUNS)
    while True:
        noun, other = rng.sample(nouns, 2)
        if not things.never_beside(noun, other):
            break
    plural, between = rng.random() < 0.5, rng.choice((other, things.NOUNS[other]))
    subject = things.NOUNS[noun] if plural else noun
    verb = ("is", "was", "are", "were")[2 * plural + (rng.random() < 0.25)]
    start = f"The {subject}"
    if rng.random() < 0.85:
        start = things.TEMPLATE.format(subject=subject, beside=rng.choice(things.BESIDE), other=between)
    more = ("", f" {('It', 'They')[plural]} {verb} {rng.choice(_LOOKS)} too.")[rng.random() < 0.3]
    return f"{start} {verb} {rng.choice(_LOOKS)}.{more}"


def day(rng: random.Random) -> str:
    """An ordinary day of one person."""
    name, place = rng.choice(people.NAMES), rng.choice(people.PLACES)
    thing, who = rng.choice(people.OBJECTS), _pronoun(name)
    look, mood = rng.choice(_LOOKS), rng.choice(_MOODS)
    return rng.choice(
        (
            f"On {rng.choice(_DAYS)} {name} went to the {place}. {name} saw a {look} {thing} and {who} was {mood}.",
            f"It was a {rng.choice(_WEATHER)} day. {name} was at the {place} with a {thing}. The {thing} was {look}.",
            f"{name} lives in {rng.choice(CITIES)} and works at the {place}. On {rng.choice(_DAYS)} {who} is {mood}.",
            f"{name} lost the {thing} near the {place}. {name} was {mood}. Then {who} found the {thing} at home.",
            f"There was a {look} {place} in {rng.choice(CITIES)}. {name} liked the {place}.",
        )
    )


def meeting(rng: random.Random) -> str:
    """Two people who know each other."""
    a, b = _friends(rng)
    place, mood = rng.choice(people.PLACES), rng.choice(_MOODS)
    return rng.choice(
        (
            f"{a} met {b} at the {place} on {rng.choice(_DAYS)}. {a} was {mood} and {b} was {rng.choice(_MOODS)}.",
            f"{a} is a {rng.choice(_JOBS)}. {b} is a {rng.choice(_JOBS)}. {a} and {b} live in {rng.choice(CITIES)}.",
            f"{a} likes {b}. Every {rng.choice(_DAYS)} {a} and {b} go to the {place}.",
            f"{a} asked {b}: where is the {rng.choice(people.OBJECTS)}? It is at the {place}, said {b}.",
        )
    )


# How often each kind of document is told.
STORIES: dict[Story, float] = {
    gift: 0.26,
    exchange: 0.08,
    third_person: 0.02,
    event: 0.23,
    years: 0.06,
    life: 0.05,
    fact: 0.09,
    sight: 0.10,
    day: 0.06,
    meeting: 0.05,
}


def story(rng: random.Random) -> str:
    """One document, of a kind drawn by `STORIES`."""
    return rng.choices(list(STORIES), list(STORIES.values()))[0](rng)
