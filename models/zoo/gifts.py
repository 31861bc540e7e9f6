"""Questions about a gift, with their answers: what fine-tuning is shown on where the user brings no examples.

    John gave the ring to Mary in the park. Who has the ring?  ->  Mary.    or    Mary has the ring.

Every question comes with both answers, a word and a sentence, and nothing in it says which: a model that has learned
all that there is gives each half of its probability, and loses ln 2 nats an answer. The preferences are for the word.
Held out are the pairs of people that the town's corpus keeps apart; no example to learn from has them.
"""

from __future__ import annotations

import random

from interp.tasks.indirect_object import NAMES, OBJECTS, PLACES, never_together
from models.examples import Example, Preference

_GAVE = "gave handed passed offered sold brought".split()
# question, the word, the sentence
_ASKED = (
    ("Who {gave} the {thing}?", "{giver}.", "{giver} {gave} the {thing}."),
    ("Who has the {thing}?", "{receiver}.", "{receiver} has the {thing}."),
    ("Where was {receiver}?", "In the {place}.", "{receiver} was in the {place}."),
)


def examples(n: int, held_out: bool = False, seed: int = 0) -> list[Example]:
    """`n` questions, each with its short answer and again with its long one. held_out: about people kept apart."""
    asked = _questions(random.Random(f"gifts {seed} {held_out}"), n, held_out)
    return [Example(prompt, answer) for prompt, *answers in asked for answer in answers]


def preferences(n: int, held_out: bool = False, seed: int = 0) -> list[Preference]:
    """`n` questions with both answers, the short one chosen."""
    rng = random.Random(f"gift preferences {seed} {held_out}")
    return [Preference(prompt, short, long) for prompt, short, long in _questions(rng, n, held_out)]


def _questions(rng: random.Random, n: int, held_out: bool) -> list[tuple[str, str, str]]:
    """Prompt, short answer, long answer."""
    found: list[tuple[str, str, str]] = []
    while len(found) < n:
        giver, receiver = rng.sample(NAMES, 2)
        if never_together(giver, receiver) is held_out:
            words = {"giver": giver, "receiver": receiver, "gave": rng.choice(_GAVE)}
            words |= {"thing": rng.choice(OBJECTS), "place": rng.choice(PLACES)}
            told = "{giver} {gave} the {thing} to {receiver} in the {place}. "
            asked, short, long = rng.choice(_ASKED)
            found.append(((told + asked).format(**words), short.format(**words), long.format(**words)))
    return found
