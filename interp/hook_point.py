"""`HookPoint`: an identity module on an activation, a place to look at a tensor or to replace it.

Two things hold here that are easy to get wrong:

- A hook may write into its tensor in place. It is given a copy, so nothing cached earlier and nothing that
  autograd saved is ever touched; hooks that promise not to write (`markers.pure`) are given the tensor itself.
- A backward hook sees the gradient with respect to what the forward hooks on the same point returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp.errors import LabError
from interp.markers import is_pure, is_reads_only

HookFn = Callable[..., Any]
Direction = str  # "fwd" or "bwd"


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
        x = self.edited(x)
        if self.bwd_hooks and torch.is_grad_enabled():
            handles = tuple(self.bwd_hooks)
            x = watched(x, lambda grad: self.edited_gradient(grad, handles))
        return x

    def edited(self, x: Tensor) -> Tensor:
        """What the forward hooks make of an activation."""
        for handle in tuple(self.fwd_hooks):
            given = x if is_pure(handle.user_hook) else x.clone()
            returned = handle.user_hook(given, hook=self)
            x = given if returned is None else returned
        return x

    def edited_gradient(self, grad: Tensor, handles: Sequence[HookHandle]) -> Tensor:
        """What the backward hooks of a forward, those that are still attached, make of a gradient."""
        for handle in handles:
            if handle.removed:
                continue
            given = grad if is_pure(handle.user_hook) else grad.clone()
            returned = handle.user_hook(given, hook=self)
            returned = returned[0] if isinstance(returned, tuple) else returned
            grad = given if returned is None else returned
        return grad

    def has_hooks(
        self,
        dir: Literal["fwd", "bwd", "both"] = "both",
        including_permanent: bool = True,
        level: int | None = None,
    ) -> bool:
        """True when anything is attached, of that direction and level.

        Torch's own module hooks count where no direction or level is asked for.
        """
        if dir == "both" and including_permanent and level is None:
            return bool(self.fwd_hooks or self.bwd_hooks or self._has_torch_hooks())
        handles = [h for d, hs in (("fwd", self.fwd_hooks), ("bwd", self.bwd_hooks)) if dir in (d, "both") for h in hs]
        return any(
            (including_permanent or not handle.is_permanent) and level in (None, handle.context_level)
            for handle in handles
        )

    def is_only_read(self) -> bool:
        """True when what is attached cannot change the activation and asks for no gradient (a cache, say)."""
        quiet = not (self.bwd_hooks or self._has_torch_hooks())
        return quiet and all(is_reads_only(handle.user_hook) for handle in self.fwd_hooks)

    def _has_torch_hooks(self) -> bool:
        before = self._forward_pre_hooks or self._backward_pre_hooks
        return bool(before or self._forward_hooks or self._backward_hooks)

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


def watched(x: Tensor, on_gradient: Callable[[Tensor], Tensor]) -> Tensor:
    """A tensor equal to `x`, consumed by nothing but what comes after it, whose gradient goes through a function."""
    same = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
    same.register_hook(on_gradient)
    return same
