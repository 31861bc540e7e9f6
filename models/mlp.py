"""The MLP of a block, plain and gated."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interp.hook_point import HookPoint
from models.config import TransformerConfig


def gelu_new(x: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """GELU by its tanh approximation, as GPT-2 has it (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""
    return F.gelu(x, approximate="tanh")


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": gelu_new,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


class MLP(nn.Module):
    """out(act(in(x))): neurons read from the stream and write back to it.

    hook_pre, hook_post: before and after the activation function [batch pos d_mlp].
    """

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.act = _FUNCTIONS[cfg.act_fn]
        self.in_ = nn.Linear(cfg.d_model, cfg.mlp_size, bias=cfg.mlp_bias)
        self.out = nn.Linear(cfg.mlp_size, cfg.d_model, bias=cfg.mlp_bias)
        self.hook_pre = HookPoint()
        self.hook_post = HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        return self.out(self.hook_post(self.act(self.hook_pre(self.in_(x)))))

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        return self.in_.weight.T

    @property
    def b_in(self) -> Float[Tensor, "d_mlp"]:
        return _bias(self.in_)

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        return self.out.weight.T

    @property
    def b_out(self) -> Float[Tensor, "d_model"]:
        return _bias(self.out)


class GatedMLP(MLP):
    """out(act(gate(x)) * in(x)) (Shazeer 2020, arXiv:2002.05202).

    hook_pre: the gate; hook_pre_linear: what it multiplies; hook_post: the product [batch pos d_mlp].
    """

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__(cfg)
        self.gate = nn.Linear(cfg.d_model, cfg.mlp_size, bias=cfg.mlp_bias)
        self.hook_pre_linear = HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        gate = self.act(self.hook_pre(self.gate(x)))
        return self.out(self.hook_post(gate * self.hook_pre_linear(self.in_(x))))

    @property
    def W_gate(self) -> Float[Tensor, "d_model d_mlp"]:
        return self.gate.weight.T


def activation_function(name: str) -> Callable[[Tensor], Tensor]:
    """The function that a config calls by this name."""
    return _FUNCTIONS[name]


def make_mlp(cfg: TransformerConfig) -> MLP:
    """The MLP that `cfg.gated_mlp` names."""
    return GatedMLP(cfg) if cfg.gated_mlp else MLP(cfg)


def _bias(linear: nn.Linear) -> Tensor:
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias
