"""Additive attention (Bahdanau, Cho & Bengio 2015, arXiv:1409.0473): how a recurrent decoder looks back at the source.

    score_j   = v_a · tanh(W_a s + U_a h_j)          (appendix A.1.2)
    pattern   = softmax(score)                       (eq. 6)
    context   = Σ_j pattern_j h_j                    (eq. 5)

s is the decoder's state before the step, h_j the encoder's state at source position j.
"""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from models.rnn_config import RNNConfig


def additive_scores(
    query: Float[Tensor, "batch d_attn"],
    keys: Float[Tensor, "batch k_pos d_attn"],
    v: Float[Tensor, "d_attn"],
    mask: Bool[Tensor, "batch k_pos"] | None = None,
) -> Float[Tensor, "batch k_pos"]:
    """v · tanh(query + key), in float32 at least; the lowest finite number where the mask is False."""
    energies = torch.tanh(rearrange(query, "batch d -> batch 1 d") + keys)
    scores = einsum(energies, v, "batch k_pos d, d -> batch k_pos")
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return scores if mask is None else scores.masked_fill(~mask, torch.finfo(scores.dtype).min)


class AdditiveAttention(nn.Module):
    """The alignment model: `W_a` and `U_a` bring states to d_attn, `v_a` scores them."""

    def __init__(self, cfg: RNNConfig) -> None:
        super().__init__()
        assert cfg.d_attn is not None
        self.W_a = nn.Linear(cfg.d_hidden, cfg.d_attn, bias=False)
        self.U_a = nn.Linear(cfg.d_hidden, cfg.d_attn, bias=False)
        self.v_a = nn.Parameter(torch.empty(cfg.d_attn))

    def keys(self, memory: Float[Tensor, "batch k_pos d_hidden"]) -> Float[Tensor, "batch k_pos d_attn"]:
        """U_a h_j, the same at every step of the decoder."""
        return self.U_a(memory)

    def forward(
        self,
        state: Float[Tensor, "batch d_hidden"],
        keys: Float[Tensor, "batch k_pos d_attn"],
        mask: Bool[Tensor, "batch k_pos"] | None = None,
    ) -> Float[Tensor, "batch k_pos"]:
        """The scores of all source positions for the decoder's next step."""
        return additive_scores(self.W_a(state), keys, self.v_a, mask)
