"""Names of a package that are imported when they are first asked for, so that importing the package is cheap."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from interp.errors import did_you_mean


def attributes(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A module `__getattr__` for `package`. homes: name -> the module that defines it (or is it)."""

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}{did_you_mean(name, homes)}")
        module = importlib.import_module(homes[name])
        return module if homes[name].endswith(f".{name}") else getattr(module, name)

    return __getattr__
