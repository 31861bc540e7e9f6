"""Which combinations of words the tasks ask about, and the generated town never contains.

A task draws only combinations for which `held_out` is true; the town's corpus draws only the others. A model
trained on the town therefore meets each name, noun and year in training, but never the combinations that it is
asked about. For a model trained on anything else the predicate is just a fixed way to thin out the prompts.
"""

from __future__ import annotations

import hashlib


def held_out(*parts: str | int, share: float = 0.1) -> bool:
    """Whether this combination is kept out of the town's corpus; true for a fixed `share` of all combinations.

    The decision hashes the parts, so it depends neither on a seed nor on the machine.
    """
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32
