"""Errors that say what was given, what was expected and what to try.

Everything the lab refuses derives from `LabError`; the command line prints its message without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LabError(Exception):
    """The lab cannot do what was asked; the message says why and what to try."""


class UnknownModelError(LabError):
    """A name under which there is no model."""


class UnknownHookError(LabError, KeyError):
    """A hook name that the model does not have."""

    __str__ = Exception.__str__  # KeyError would show the repr of the message

    @classmethod
    def near(cls, name: str, names: Iterable[str], model_name: str | None = None) -> UnknownHookError:
        """The error for `name`, with the closest of `names`."""
        names = list(names)
        listing = f"interp hooks --model {model_name}" if model_name else "model.hook_dict"
        return cls(
            f"no hook named {name!r} (this model has {len(names)}).{did_you_mean(name, names)}  list them: {listing}"
        )


class NotDefinedError(LabError, AttributeError):
    """What is asked of a model that, by its nature, does not have it; `hasattr` answers False."""


def did_you_mean(name: str, candidates: Iterable[str], n: int = 3) -> str:
    """`"  closest: 'a', 'b'."` for the candidates most like `name`, or an empty string when none is near."""
    close = difflib.get_close_matches(name, list(candidates), n=n, cutoff=0.6)
    return f"  closest: {', '.join(repr(c) for c in close)}." if close else ""


def choose(kind: str, name: str, candidates: Iterable[str]) -> str:
    """Return `name` if it is one of `candidates`.

    Raises:
        LabError: otherwise, naming the near misses and every candidate.
    """
    candidates = list(candidates)
    if name in candidates:
        return name
    raise LabError(f"unknown {kind} {name!r}.{did_you_mean(str(name), candidates)}  known: {', '.join(candidates)}.")
