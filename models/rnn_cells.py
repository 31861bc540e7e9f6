"""A recurrent layer of torch (`nn.RNN`, `nn.LSTM`, `nn.GRU`) whose states are on hook points.

Nothing hooked, or only looked at: the layer's own kernel runs the whole sequence. Otherwise the same layer runs a
step at a time, and what hooks make of a state is what the next step starts from (see `interp.step_hooks`). The two
agree.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.hook_point import HookPoint
from interp.step_hooks import Steps, may_edit
from models.rnn_config import RNNConfig

State = tuple[Float[Tensor, "batch d_hidden"], ...]
"""What one step hands to the next: the hidden state and, for an LSTM, the cell state."""


class Recurrent(nn.Module):
    """Embedded tokens through a recurrent layer. `d_more`: width of what stands beside each embedding in its input."""

    def __init__(self, cfg: RNNConfig, d_more: int = 0) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_E = nn.Parameter(torch.empty(cfg.d_vocab, cfg.d_model))
        self.rnn = getattr(nn, cfg.cell)(cfg.d_model + d_more, cfg.d_hidden, batch_first=True)
        self.hook_embed, self.hook_hidden = HookPoint(), HookPoint()
        if cfg.cell == "LSTM":
            self.hook_cell = HookPoint()

    @property
    def state_points(self) -> list[HookPoint]:
        """The hook points of the parts of a state."""
        return [self.hook_hidden] + ([self.hook_cell] if self.cfg.cell == "LSTM" else [])

    def embedded(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """The tokens' vectors."""
        return self.hook_embed(nn.functional.embedding(tokens, self.W_E))

    def start(self, batch: int) -> State:
        """The state before the first step: zeros."""
        return tuple(self.W_E.new_zeros(batch, self.cfg.d_hidden) for _ in self.state_points)

    def run(
        self,
        x: Float[Tensor, "batch pos d_input"],
        state: State,
        mask: Bool[Tensor, "batch pos"] | None = None,
    ) -> tuple[Float[Tensor, "batch pos d_hidden"], State]:
        """The hidden state after each position, and the last state; padding leaves the state as it was."""
        cell_hooked = any(point.has_hooks() for point in self.state_points[1:])  # the kernel keeps it to itself
        if mask is not None or cell_hooked or may_edit(self.hook_hidden):
            return self.run_by_steps(x.shape[1], lambda step, _: x[:, step], state, mask)
        hidden, last = self._kernel(x, state)
        return self.hook_hidden(hidden), last

    def run_by_steps(
        self,
        n_steps: int,
        read: Callable[[int, State], Float[Tensor, "batch d_input"]],
        state: State,
        mask: Bool[Tensor, "batch pos"] | None = None,
    ) -> tuple[Float[Tensor, "batch pos d_hidden"], State]:
        """The same, a step at a time. read: the input of a step, which may depend on the state before it."""
        hooked = [Steps(point, n_steps) for point in self.state_points]
        for step in range(n_steps):
            new = self._stepped(read(step, state), state)
            if mask is None:
                state = tuple(point(part) for point, part in zip(hooked, new, strict=True))
                continue
            real = rearrange(mask[:, step], "batch -> batch 1")
            kept = (torch.where(real, part, old) for part, old in zip(new, state, strict=True))
            edited = (point(part) for point, part in zip(hooked, kept, strict=True))
            state = tuple(torch.where(real, part, old) for part, old in zip(edited, state, strict=True))
        hidden, *_ = [point.stacked() for point in hooked]
        return hidden, state

    def _stepped(self, x: Float[Tensor, "batch d_input"], state: State) -> State:
        return self._kernel(rearrange(x, "batch d -> batch 1 d"), state)[1]

    def _kernel(self, x: Float[Tensor, "batch pos d_input"], state: State) -> tuple[Tensor, State]:
        """Torch's own layer; cuDNN's has no gradient in evaluation mode, so there it makes way for the plain one."""
        frozen = x.is_cuda and not self.training and torch.is_grad_enabled()
        with torch.backends.cudnn.flags(enabled=False) if frozen else nullcontext():
            hidden, last = self.rnn(x, _as_torch(state))
        return hidden, _as_state(last)


def _as_torch(state: State) -> Tensor | tuple[Tensor, ...]:
    """With the axis of layers that torch's modules have; an LSTM's as a pair."""
    parts = tuple(rearrange(part, "batch d -> 1 batch d") for part in state)
    return parts if len(parts) > 1 else parts[0]


def _as_state(given: Tensor | tuple[Tensor, ...]) -> State:
    parts = given if isinstance(given, tuple) else (given,)
    return tuple(rearrange(part, "1 batch d -> batch d") for part in parts)
