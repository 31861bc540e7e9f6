"""Hook points and the modules that own them.

A `HookPoint` is an identity module on an activation: a place to look at a tensor or to replace it. A
`HookedModule` names its hook points and looks after the hooks on them:

    def silence(z, hook):
        return z.index_fill(2, torch.tensor([3], device=z.device), 0.0)

    with model.hooks([("blocks.1.attn.hook_z", silence)]):
        logits = model(tokens)
    logits, cache = model.run_with_cache(tokens, names_filter="blocks.*.hook_resid_pre")

The calling conventions are those of TransformerLens's HookedTransformer. A hook is called as
`fn(tensor, hook=point)`; returning None keeps the value. Three things hold that are easy to get wrong:

- A hook may write into its tensor in place. It is given a copy, so nothing cached earlier and nothing that
  autograd saved is ever touched; hooks that promise not to write (`markers.pure`) are given the tensor itself.
- A backward hook sees the gradient with respect to what the forward hooks on the same point returned.
- A context removes exactly the hooks that it added, also when an exception leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp.cache import ActivationCache
from interp.collector import Collector
from interp.errors import LabError, UnknownHookError
from interp.markers import is_pure, is_reads_only

HookFn = Callable[..., Any]
Direction = str  # "fwd" or "bwd"
NameFilter = str | Sequence[str] | Callable[[str], bool] | None
NamedHook = tuple[str | Callable[[str], bool], HookFn]


@dataclass(eq=False)
class HookHandle:
    """One hook on one point; `remove()` takes it off again."""

    user_hook: HookFn
    is_permanent: bool
    context_level: int | None
    owner: list[HookHandle] = field(repr=False)
    removed: bool = False

    def remove(self) -> None:
        if not self.removed:
            self.owner.remove(self)
            self.removed = True


class HookPoint(nn.Module):
    """An identity module on an activation, where hooks attach.

    name: the dotted path in the model, set by `HookedModule.setup`. ctx: a dict for the user's hooks.
    on_demand: the activation is computed only when something is attached here (`hook_result`, ...), so
    `run_with_cache` without a filter leaves it out.
    """

    def __init__(self, on_demand: bool = False) -> None:
        super().__init__()
        self.name: str | None = None
        self.ctx: dict[Any, Any] = {}
        self.on_demand = on_demand
        self.fwd_hooks: list[HookHandle] = []
        self.bwd_hooks: list[HookHandle] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.fwd_hooks and not self.bwd_hooks:
            return x
        for handle in tuple(self.fwd_hooks):
            given = x if is_pure(handle.user_hook) else x.clone()
            returned = handle.user_hook(given, hook=self)
            x = given if returned is None else returned
        if self.bwd_hooks and torch.is_grad_enabled():
            x = self._watch_gradient(x)
        return x

    def _watch_gradient(self, x: Tensor) -> Tensor:
        """A tensor equal to `x`, consumed by nothing but what comes after this point, with the hooks on it."""
        watched = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        handles = tuple(self.bwd_hooks)

        def on_gradient(grad: Tensor) -> Tensor:
            for handle in handles:
                if handle.removed:
                    continue
                given = grad if is_pure(handle.user_hook) else grad.clone()
                returned = handle.user_hook(given, hook=self)
                returned = returned[0] if isinstance(returned, tuple) else returned
                grad = given if returned is None else returned
            return grad

        watched.register_hook(on_gradient)
        return watched

    def has_hooks(self) -> bool:
        """True when anything is attached, torch's own module hooks included."""
        return bool(self.fwd_hooks or self.bwd_hooks or self._has_torch_hooks())

    def is_only_read(self) -> bool:
        """True when what is attached cannot change the activation and asks for no gradient (a cache, say)."""
        quiet = not (self.bwd_hooks or self._has_torch_hooks())
        return quiet and all(is_reads_only(handle.user_hook) for handle in self.fwd_hooks)

    def _has_torch_hooks(self) -> bool:
        kinds = (self._forward_pre_hooks, self._forward_hooks, self._backward_pre_hooks, self._backward_hooks)
        return any(kinds)

    def add_hook(
        self,
        hook: HookFn,
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> HookHandle:
        """Attach `hook`; `dir` is "fwd" (the activation) or "bwd" (its gradient).

        Raises:
            LabError: `dir` is neither.
        """
        if dir not in ("fwd", "bwd"):
            raise LabError(f"unknown hook direction {dir!r}; expected 'fwd' or 'bwd'.")
        owner = self.fwd_hooks if dir == "fwd" else self.bwd_hooks
        handle = HookHandle(hook, is_permanent, level, owner)
        owner.insert(0 if prepend else len(owner), handle)
        return handle

    def add_perma_hook(self, hook: HookFn, dir: Direction = "fwd") -> HookHandle:
        return self.add_hook(hook, dir, is_permanent=True)

    def remove_hooks(
        self,
        dir: Literal["fwd", "bwd", "both"] = "fwd",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Remove the hooks of a direction; permanent ones stay unless asked, other levels stay if one is given."""
        handles = [h for d, hs in (("fwd", self.fwd_hooks), ("bwd", self.bwd_hooks)) if dir in (d, "both") for h in hs]
        for handle in handles:
            if handle.is_permanent and not including_permanent:
                continue
            if level is None or handle.context_level == level:
                handle.remove()

    def clear_context(self) -> None:
        self.ctx = {}

    def layer(self) -> int:
        """The layer of a point inside a block: 3 for "blocks.3.attn.hook_z".

        Raises:
            LabError: the point is not inside a block.
        """
        parts = (self.name or "").split(".")
        number = next((part for part in parts if part.isdigit()), None)
        if number is None:
            raise LabError(f"hook point {self.name!r} is not inside a block, so it has no layer.")
        return int(number)

    def extra_repr(self) -> str:
        return self.name or ""


class HookedModule(nn.Module):
    """A module whose `HookPoint`s have names. Call `setup()` at the end of the constructor."""

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
            matches = [name for name in self.hook_dict if name == pattern or fnmatchcase(name, pattern)]
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
        for point in self.hook_dict.values():
            point.remove_hooks(direction, including_permanent, level)
            if clear_contexts:
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
                    for point in self.hook_dict.values():
                        point.clear_context()

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
        return output, ActivationCache(tensors, self, has_batch_dim=not remove_batch_dim)

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
