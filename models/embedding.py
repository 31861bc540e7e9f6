"""From token ids to vectors and back: the embedding and the unembedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.hook_point import HookPoint
from models.config import TransformerConfig


class Embed(nn.Module):
    """One vector per token: `W_E` [d_vocab d_model], times `embed_scale` where there is one."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.W_E = nn.Parameter(torch.empty(cfg.d_vocab, cfg.d_model))
        self.scale = cfg.embed_scale

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        vectors = F.embedding(tokens, self.W_E)
        # The factor is rounded to the model's dtype, as in the checkpoints that have one.
        return vectors if self.scale is None else vectors * torch.tensor(self.scale, dtype=vectors.dtype)


def soft_capped(x: Float[Tensor, "*axes"], cap: float | None) -> Float[Tensor, "*axes"]:
    """cap · tanh(x / cap), which keeps x below the cap; x without one."""
    return x if cap is None else cap * torch.tanh(x / cap)


class Unembed(nn.Module):
    """Logits from the normalised stream: x @ W_U + b_U. `weight` [d_vocab d_model] may be the embedding's.

    Where the config has an output_logits_soft_cap, the logits are capped after `hook_out`.
    """

    def __init__(self, cfg: TransformerConfig, weight: nn.Parameter | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(cfg.n_outputs, cfg.d_model)) if weight is None else weight
        self.bias = nn.Parameter(torch.zeros(cfg.n_outputs)) if cfg.unembed_bias else None
        self.cap = cfg.output_logits_soft_cap
        self.hook_in = HookPoint(on_demand=True)
        self.hook_out = HookPoint(on_demand=True)

    def forward(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_vocab"]:
        return soft_capped(self.hook_out(F.linear(self.hook_in(x), self.weight, self.bias)), self.cap)

    def at(self, x: Float[Tensor, "batch pos d_model"], tokens: Int[Tensor, "batch n"]) -> Float[Tensor, "batch pos n"]:
        """The logits of some tokens, each row its own, reading only their columns of W_U."""
        if self.hook_in.has_hooks() or self.hook_out.has_hooks():
            index = repeat(tokens, "batch n -> batch pos n", pos=x.shape[1])
            return self(x).gather(-1, index)
        logits = einsum(x, self.weight[tokens], "batch pos model, batch n model -> batch pos n")
        if self.bias is not None:
            logits = logits + rearrange(self.bias[tokens], "batch n -> batch 1 n")
        return soft_capped(logits, self.cap)

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        return self.weight.T

    @property
    def b_U(self) -> Float[Tensor, "d_vocab"]:
        return self.weight.new_zeros(self.weight.shape[0]) if self.bias is None else self.bias
