"""Hooks on an activation that a run computes step by step, each step reading the one before.

Hooks see all steps in one tensor [batch pos *axes], as they would in a model that computes them at once, and what they
change at a step is what the run goes on with. So a hook that may write is called at every step: with the activations
up to this step, as computed, and zeros for the steps to come; the run takes its answer for this step. A hook that
edits positions by themselves (every `interp.edits` edit does) need not know. The last call sees every step, so a
cache beside such a hook ends up whole; where all hooks only read there is one call, at the end.

Backward hooks are called alike: at every step from the last, with the gradients from this step on and zeros before it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interp.hook_point import HookPoint, watched


class Steps:
    """One hook point during one run: call it with the activation of each step, then take them `stacked`."""

    def __init__(self, point: HookPoint, n_steps: int) -> None:
        self.point, self.n_steps = point, n_steps
        self.editing = may_edit(point)
        self.handles = tuple(point.bwd_hooks) if torch.is_grad_enabled() else ()
        self.computed: list[Tensor] = []
        self.taken: list[Tensor] = []
        self.gradients: dict[int, Tensor] = {}  # of the steps that the backward pass has come to

    def __call__(self, value: Float[Tensor, "batch *axes"]) -> Float[Tensor, "batch *axes"]:
        """What the run goes on with."""
        step = len(self.computed)
        self.computed.append(value)
        if self.editing:
            to_come = [torch.zeros_like(value)] * (self.n_steps - step - 1)
            value = self.point.edited(torch.stack([*self.computed, *to_come], 1))[:, step]
            if self.handles:
                value = watched(value, lambda grad: self._gradient(grad, step))
        self.taken.append(value)
        return value

    def stacked(self) -> Float[Tensor, "batch pos *axes"]:
        """All steps as the run took them; hooks that only read see them now."""
        whole = torch.stack(self.taken, 1)
        return whole if self.editing else self.point(whole)

    def _gradient(self, grad: Tensor, step: int) -> Tensor:
        if step >= min(self.gradients, default=self.n_steps):
            self.gradients.clear()  # another backward pass through the same run
        self.gradients[step] = grad
        whole = [self.gradients.get(each, torch.zeros_like(grad)) for each in range(self.n_steps)]
        return self.point.edited_gradient(torch.stack(whole, 1), self.handles)[:, step]


def may_edit(point: HookPoint) -> bool:
    """Whether what is attached needs the run to go step by step."""
    return point.has_hooks() and not point.is_only_read()
