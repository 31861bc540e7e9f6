"""Hook points and the modules that own them.

A `HookPoint` is an identity module on an activation: a place to look at a tensor or to replace it. A
`HookedModule` names its hook points and looks after the hooks on them:

    def silence(z, hook):
        return z.index_fill(2, torch.tensor([3], device=z.device), 0.0)

    with model.hooks([("blocks.1.attn.hook_z", silence)]):
        logits = model(tokens)
    logits, cache = model.run_with_cache(tokens, names_filter="blocks.*.hook_resid_pre")

The calling conventions are those of TransformerLens's HookedTransformer. A hook is called as
`fn(tensor, hook=point)`; returning None keeps the value. It may write in place: it never corrupts what others hold
(see `interp.hook_point`). A context removes exactly the hooks that it added, also when an exception leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp.cache import ActivationCache
from interp.caching_hooks import CachingHooks
from interp.collector import Collector
from interp.errors import LabError, UnknownHookError
from interp.hook_point import Direction, HookFn, HookHandle, HookPoint

__all__ = ["HookHandle", "HookPoint", "HookedModule"]

NameFilter = str | Sequence[str] | Callable[[str], bool] | None
NamedHook = tuple[str | Callable[[str], bool], HookFn]


class HookedModule(CachingHooks, nn.Module):
    """A module whose `HookPoint`s have names. Call `setup()` at the end of the constructor."""

    cache_class = ActivationCache  # what run_with_cache gives
    hook_dict: dict[str, HookPoint]
    mod_dict: dict[str, nn.Module]

    def setup(self) -> None:
        """Name every hook point after its path; call again after replacing a submodule."""
        self.mod_dict = {name: module for name, module in self.named_modules() if name}
        self.hook_dict = {n: module for n, module in self.mod_dict.items() if isinstance(module, HookPoint)}
        for name, point in self.hook_dict.items():
            point.name = name
        self.context_level = 0

    def hook_points(self) -> list[HookPoint]:
        return list(self.hook_dict.values())

    def select_hooks(self, names: NameFilter) -> list[str]:
        """Names of the points that a filter selects, in model order.

        names: a name, a glob ("blocks.*.hook_resid_pre"), a list of either, or a predicate on names. None
        selects every point that an ordinary forward passes, leaving out those computed on demand.

        Raises:
            UnknownHookError: a name that does not exist or a glob that matches nothing.
        """
        if names is None:
            return [name for name, point in self.hook_dict.items() if not point.on_demand]
        if callable(names):
            return [name for name in self.hook_dict if names(name)]
        patterns = [names] if isinstance(names, str) else list(names)
        chosen: set[str] = set()
        for pattern in patterns:
            if pattern in self.hook_dict:
                chosen.add(pattern)
                continue
            matches = [name for name in self.hook_dict if fnmatchcase(name, pattern)]
            if not matches:
                raise self._unknown_hook(pattern)
            chosen.update(matches)
        return [name for name in self.hook_dict if name in chosen]

    def add_hook(
        self,
        name: str | Callable[[str], bool],
        hook: HookFn,
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> list[HookHandle]:
        """Attach `hook` to the point called `name`, or to every point whose name satisfies the predicate.

        Raises:
            UnknownHookError: no point of that name.
        """
        if isinstance(name, str):
            if name not in self.hook_dict:
                raise self._unknown_hook(name)
            points = [self.hook_dict[name]]
        else:
            points = [point for each, point in self.hook_dict.items() if name(each)]
        return [point.add_hook(hook, dir, is_permanent, level, prepend) for point in points]

    def add_perma_hook(
        self, name: str | Callable[[str], bool], hook: HookFn, dir: Direction = "fwd"
    ) -> list[HookHandle]:
        return self.add_hook(name, hook, dir, is_permanent=True)

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: Literal["fwd", "bwd", "both"] = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Remove every hook; permanent ones stay unless asked, other levels stay if one is given."""
        self.remove_all_hook_fns(direction, including_permanent, level)
        if clear_contexts:
            self.clear_contexts()

    def remove_all_hook_fns(
        self,
        direction: Literal["fwd", "bwd", "both"] = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """`reset_hooks`, leaving the points' contexts."""
        for point in self.hook_dict.values():
            point.remove_hooks(direction, including_permanent, level)

    def clear_contexts(self) -> None:
        for point in self.hook_dict.values():
            point.clear_context()

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Sequence[NamedHook] = (),
        bwd_hooks: Sequence[NamedHook] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[HookedModule]:
        """Attach hooks for the length of a `with` block: lists of (name or predicate, function).

        Raises:
            UnknownHookError: an unknown name; then nothing was attached.
        """
        self._check_names([*fwd_hooks, *bwd_hooks])
        self.context_level += 1
        handles: list[HookHandle] = []
        try:
            for direction, named in (("fwd", fwd_hooks), ("bwd", bwd_hooks)):
                for name, fn in named:
                    handles += self.add_hook(name, fn, direction, level=self.context_level)
            yield self
        finally:
            self.context_level -= 1
            if reset_hooks_end:
                for handle in handles:
                    handle.remove()
                if clear_contexts:
                    self.clear_contexts()

    def run_with_hooks(
        self,
        *model_args: Any,
        fwd_hooks: Sequence[NamedHook] = (),
        bwd_hooks: Sequence[NamedHook] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """One forward with hooks attached; what the model returns.

        Backward hooks are gone when this returns unless `reset_hooks_end=False`: to run the backward pass
        with them, use `with model.hooks(bwd_hooks=...)`.
        """
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self(*model_args, **model_kwargs)

    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: NameFilter = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: slice | int | Sequence[int] | None = None,
        return_cache_object: bool = True,
        **model_kwargs: Any,
    ) -> tuple[Any, Any]:
        """One forward that keeps activations: (what the model returns, cache).

        names_filter: what to keep, as in `select_hooks`. device: where to keep it (copies are asynchronous).
        pos_slice: the positions to keep. incl_bwd: also run the backward pass from the returned loss (call
        with `return_type="loss"`) and keep each gradient as `name + "_grad"`. return_cache_object: False
        gives the bare dict. Everything is detached. Hooks already attached run first and are seen.

        Raises:
            UnknownHookError: before the forward, for a name that the model does not have.
            LabError: `incl_bwd` when the model does not return a scalar that requires a gradient.
        """
        names = self.select_hooks(names_filter)
        collector = Collector(device, remove_batch_dim, pos_slice)
        fwd = [(name, collector.keep(name)) for name in names]
        bwd = [(name, collector.keep(f"{name}_grad", name)) for name in names] if incl_bwd else []
        with self.hooks(fwd, bwd, reset_hooks_end, clear_contexts):
            output = self(*model_args, **model_kwargs)
            if incl_bwd:
                _backward(output)
        tensors = collector.finish()
        if not return_cache_object:
            return output, tensors
        return output, self.cache_class(tensors, self, has_batch_dim=not remove_batch_dim)

    def _check_names(self, named_hooks: Sequence[NamedHook]) -> None:
        for name, _ in named_hooks:
            if isinstance(name, str) and name not in self.hook_dict:
                raise self._unknown_hook(name)

    def _unknown_hook(self, name: str) -> UnknownHookError:
        model_name = getattr(getattr(self, "cfg", None), "model_name", None)
        return UnknownHookError.near(name, self.hook_dict, model_name)


def _backward(output: Any) -> None:
    if not isinstance(output, Tensor) or output.ndim != 0 or not output.requires_grad:
        raise LabError(
            "incl_bwd=True needs a scalar to run backward from, with gradients enabled; "
            'try run_with_cache(tokens, return_type="loss", incl_bwd=True) outside torch.no_grad().'
        )
    output.backward()
