"""Caching hooks for those who attach them by hand; `run_with_cache` is the short way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.collector import Collector
from interp.markers import reads_only

if TYPE_CHECKING:
    from interp.hook_point import HookHandle

NamedHooks = list[tuple[str, Callable[..., None]]]


class CachingHooks:
    """`get_caching_hooks` and `add_caching_hooks`; names and arguments are HookedTransformer's."""

    if TYPE_CHECKING:

        def select_hooks(self, names: Any) -> list[str]: ...
        def add_hook(self, name: Any, hook: Any, dir: str = "fwd") -> list[HookHandle]: ...

    def get_caching_hooks(
        self,
        names_filter: Any = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: slice | int | Sequence[int] | None = None,
    ) -> tuple[dict[str, Tensor], NamedHooks, NamedHooks]:
        """(the dict that will be filled, forward hooks, backward hooks), for `hooks(fwd_hooks=.., bwd_hooks=..)`.

        Gradients are kept as `name + "_grad"`. Arguments as for `run_with_cache`; every copy to another device is
        complete when its hook returns.

        Raises:
            UnknownHookError: a name that the model does not have.
        """
        collector = Collector(device, remove_batch_dim, pos_slice, cache)
        names = self.select_hooks(names_filter)
        forward = [(name, _at_once(collector, collector.keep(name))) for name in names]
        backward = [(name, _at_once(collector, collector.keep(f"{name}_grad", name))) for name in names]
        return collector.tensors, forward, backward if incl_bwd else []

    def add_caching_hooks(
        self,
        names_filter: Any = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Attach caching hooks until `reset_hooks`; the dict that every run then fills anew.

        Raises:
            UnknownHookError: a name that the model does not have.
        """
        tensors, forward, backward = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        for direction, hooks in (("fwd", forward), ("bwd", backward)):
            for name, hook in hooks:
                self.add_hook(name, hook, direction)
        return tensors


def _at_once(collector: Collector, keep: Callable[..., None]) -> Callable[..., None]:
    @reads_only
    def hook(tensor: Tensor, hook: Any = None) -> None:
        keep(tensor, hook)
        collector.finish()

    return hook
