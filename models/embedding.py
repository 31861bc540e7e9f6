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
    """One vector per token: `W_E` [d_vocab d_model]."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.W_E = nn.Parameter(torch.empty(cfg.d_vocab, cfg.d_model))

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        return F.embedding(tokens, self.W_E)


class Unembed(nn.Module):
    """Logits from the normalised stream: x @ W_U + b_U. `weight` [d_vocab d_model] may be the embedding's."""

    def __init__(self, cfg: TransformerConfig, weight: nn.Parameter | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(cfg.n_outputs, cfg.d_model)) if weight is None else weight
        self.bias = nn.Parameter(torch.zeros(cfg.n_outputs)) if cfg.unembed_bias else None
        self.hook_in = HookPoint(on_demand=True)
        self.hook_out = HookPoint(on_demand=True)

    def forward(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_vocab"]:
        return self.hook_out(F.linear(self.hook_in(x), self.weight, self.bias))

    def at(self, x: Float[Tensor, "batch pos d_model"], tokens: Int[Tensor, "batch n"]) -> Float[Tensor, "batch pos n"]:
        """The logits of some tokens, each row its own, reading only their columns of W_U."""
        if self.hook_in.has_hooks() or self.hook_out.has_hooks():
            index = repeat(tokens, "batch n -> batch pos n", pos=x.shape[1])
            return self(x).gather(-1, index)
        logits = einsum(x, self.weight[tokens], "batch pos model, batch n model -> batch pos n")
        return logits if self.bias is None else logits + rearrange(self.bias[tokens], "batch n -> batch 1 n")

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        return self.weight.T

    @property
    def b_U(self) -> Float[Tensor, "d_vocab"]:
        return self.weight.new_zeros(self.weight.shape[0]) if self.bias is None else self.bias
