"""What a hook function promises about the tensor it is given.

`@pure`: it never writes into the tensor, so it may be handed the tensor itself instead of a copy.
`@reads_only`: it is pure and returns None, so the activation is certain to be unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def pure(fn: F) -> F:
    fn.pure = True  # type: ignore[attr-defined]
    return fn


def reads_only(fn: F) -> F:
    fn.reads_only = True  # type: ignore[attr-defined]
    return pure(fn)


def is_pure(fn: Callable[..., Any]) -> bool:
    return getattr(fn, "pure", False)


def is_reads_only(fn: Callable[..., Any]) -> bool:
    return getattr(fn, "reads_only", False)
