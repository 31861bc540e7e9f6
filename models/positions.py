"""Where a token stands: learned and sinusoidal embeddings, and rotary rotations of queries and keys."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from models.config import TransformerConfig


def position_ids(mask: Bool[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """Positions counted over real tokens, so that padding on either side moves nothing; padding gets 0."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


class LearnedPositions(nn.Module):
    """One trained vector per position: `W_pos` [n_ctx d_model]."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.W_pos = nn.Parameter(torch.empty(cfg.n_ctx, cfg.d_model))

    def forward(self, positions: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        return self.W_pos[positions]


class SinusoidalPositions(nn.Module):
    """Sines and cosines of the position (Vaswani et al. 2017, arXiv:1706.03762, §3.5); nothing is trained."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.n_ctx, self.d_model = cfg.n_ctx, cfg.d_model

    def forward(self, positions: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        return sinusoids(positions, self.d_model)

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        return sinusoids(torch.arange(self.n_ctx), self.d_model)


def sinusoids(positions: Int[Tensor, "*axes"], d_model: int) -> Float[Tensor, "*axes d_model"]:
    """sin and cos of position / 10000^(2i / d_model), interleaved: wavelengths from 2π to 10000 · 2π.

    In float64 where the device has it, whatever the model's dtype.
    """
    wide = torch.float32 if positions.device.type == "mps" else torch.float64
    pairs = torch.arange(0, d_model, 2, device=positions.device, dtype=wide)
    angles = positions[..., None] / 10000.0 ** (pairs / d_model)
    return rearrange([angles.sin(), angles.cos()], "two ... pair -> ... (pair two)")[..., :d_model]


class RotaryPositions(nn.Module):
    """Rotates pairs of coordinates of queries and keys by position (Su et al. 2021, arXiv:2104.09864).

    Coordinate i is paired with i + rotary_dim / 2 (the half-split convention of Llama and GPT-NeoX checkpoints), or
    2i with 2i + 1 (GPT-J's). Everything is computed in float32 at least. Beyond `rotary_dim` the head is left alone.
    local: with the base of local layers, where they have one of their own.
    """

    def __init__(self, cfg: TransformerConfig, local: bool = False) -> None:
        super().__init__()
        assert cfg.rotary_dim is not None
        own = local and cfg.rotary_base_local is not None
        self.dim, self.adjacent = cfg.rotary_dim, cfg.rotary_adjacent_pairs
        self.base = cfg.rotary_base_local if own and cfg.rotary_base_local is not None else cfg.rotary_base
        self.scaling = None if own else cfg.rotary_scaling

    def rotation(self, positions: Int[Tensor, "batch pos"], dtype: torch.dtype) -> Float[Tensor, "batch pos 2 half"]:
        """Cosine and sine of the angle of every pair at every position: the same in all layers, so made once.

        dtype: of the model, for angles in float64 where it is."""
        wide = torch.promote_types(dtype, torch.float32)
        halves = torch.arange(0, self.dim, 2, dtype=wide, device=positions.device)
        frequencies = 1.0 / self.base ** (halves / self.dim)
        if self.scaling is not None:
            frequencies = self.scaling.scaled(frequencies, self.base)
        angles = positions[..., None] * frequencies
        return torch.stack([angles.cos(), angles.sin()], 2) * (1.0 if self.scaling is None else self.scaling.length)

    def forward(
        self, x: Float[Tensor, "batch pos head d_head"], rotation: Float[Tensor, "#batch pos 2 half"]
    ) -> Float[Tensor, "batch pos head d_head"]:
        cos, sin = rotation[:, :, :, None].unbind(2)
        turning = x[..., : self.dim]
        if self.adjacent:
            first, second = rearrange(turning, "batch pos head (half two) -> two batch pos head half", two=2)
        else:
            first, second = turning.chunk(2, -1)
        turned = [first * cos - second * sin, second * cos + first * sin]
        if self.adjacent:
            turned = [rearrange(turned, "two batch pos head half -> batch pos head (half two)")]
        rest = [x[..., self.dim :]] if self.dim < x.shape[-1] else []
        return torch.cat([*turned, *rest], -1).to(x.dtype)
