"""transformers in float64 throughout.

Its norms, softmaxes and rotary angles are computed in float32 whatever the model's dtype: they cast by `.float()`,
`.to(torch.float32)` or `dtype=torch.float32`. A float64 model of it is then exact to 1e-7 only, which would hide a
wrong epsilon or a wrong frequency. Inside `in_float64()` every float32 that torch is asked for is float64 instead.
The model must be built inside too, because the frequencies are computed there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map


class _Widened(TorchFunctionMode):
    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        wide = torch.Tensor.double if func is torch.Tensor.float else func
        args, kwargs = tree_map(lambda x: torch.float64 if x is torch.float32 else x, (args, kwargs or {}))
        return wide(*args, **kwargs)


@contextmanager
def in_float64() -> Iterator[None]:
    """What torch computes inside is float64 wherever the code asks for float32 or for nothing in particular."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Widened():
            yield
    finally:
        torch.set_default_dtype(default)
