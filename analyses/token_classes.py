"""Classes of tokens, by what stood before them, by how often they occur, and by what they look like.

Pure functions of one text's tokens, or of all texts': each gives, for every class, which tokens belong to it. The
classes of one function do not overlap and leave no token out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Shaped

Classes = dict[str, Bool[np.ndarray, "token"]]
SPACES = (" ", "▁", "Ġ")
"""What a token that starts a word begins with, as different tokenizers show it."""
LOOKS = ("word start", "word continuation", "number", "punctuation", "space")


def by_context(tokens: Sequence[int]) -> Classes:
    """new: not seen before in this text; repeated: seen."""
    seen: set[int] = set()
    repeated = []
    for token in tokens:
        repeated.append(token in seen)
        seen.add(token)
    again = np.array(repeated, dtype=bool)
    return {"new in its text": ~again, "repeated in its text": again}


def by_frequency(texts: Sequence[Sequence[int]]) -> Classes:
    """How often the token occurs in all the texts together: once, up to ten times, more often. Of the texts joined."""
    counts = Counter(token for text in texts for token in text)
    often = np.array([counts[token] for text in texts for token in text])
    return {"occurs once": often == 1, "occurs 2 to 10 times": (often > 1) & (often <= 10), "more often": often > 10}


def by_look(words: Sequence[str]) -> Classes:
    """What the token's text is, by its first character that is not a space.

    A letter that comes right after a letter, a digit or an apostrophe continues a word; another letter starts one.
    """
    kinds = []
    for i, word in enumerate(words):
        before = words[i - 1][-1:] if i else ""
        continues = before.isalnum() or before in ("'", "\u2019")
        kinds.append(_look(word, word.startswith(SPACES) or not continues))
    found: Shaped[np.ndarray, "token"] = np.array(kinds, dtype=str)
    return {kind: found == kind for kind in LOOKS}


def _look(word: str, opens: bool) -> str:
    bare = word.lstrip("".join(SPACES)).strip()
    if not bare:
        return "space"
    if bare[0].isalpha():
        return "word start" if opens else "word continuation"
    return "number" if bare[0].isnumeric() else "punctuation"
