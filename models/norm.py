"""Layer norm and RMS norm with hook points on the scale and on the result."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from interp.hook_point import HookPoint
from models.config import TransformerConfig


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * w + b over the last axis (Ba et al. 2016, arXiv:1607.06450).

    Runs in float32 at least, whatever the model's dtype. hook_scale: sqrt(var + eps) [batch pos 1];
    hook_normalized: (x - mean) / scale, before gain and bias, as HookedTransformer has it [batch pos d_model].
    folded: without w and b, which are None then.
    """

    def __init__(self, cfg: TransformerConfig, folded: bool = False) -> None:
        super().__init__()
        self.eps, self.width = cfg.eps, cfg.d_model
        self.w = None if folded else nn.Parameter(torch.ones(cfg.d_model))
        self.b = None if folded else nn.Parameter(torch.zeros(cfg.d_model))
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    @property
    def gain(self) -> Float[Tensor, "d_model"] | None:
        """What the normalised stream is multiplied with, in float32 at least; None where it was folded away."""
        return None if self.w is None else _at_least_float32(self.w)

    def forward(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_model"]:
        if not (self.hook_scale.has_hooks() or self.hook_normalized.has_hooks()):
            return self.unhooked(x)
        wide = _at_least_float32(x)
        centred = wide - wide.mean(-1, keepdim=True)
        scale = self.hook_scale((_mean_square(centred, self.width) + self.eps).sqrt())
        normalized = self.hook_normalized(centred / scale)
        return (normalized if self.w is None else normalized * self.w + self.b).to(x.dtype)

    def unhooked(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_model"]:
        """The same function in one kernel, past the hook points."""
        wide = _at_least_float32(x)
        w, b = (None if weight is None else weight.to(wide.dtype) for weight in (self.w, self.b))
        return F.layer_norm(wide, (self.width,), w, b, self.eps).to(x.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) * (w + offset) over the last axis (Zhang & Sennrich 2019, arXiv:1910.07467).

    offset: 0, or 1 where gains are kept as their distance from 1 (Gemma).
    Runs in float32 at least. hook_scale: sqrt(mean(x²) + eps) [batch pos 1]; hook_normalized: x / scale,
    before the gain [batch pos d_model]. folded: without w, which is None then.
    """

    def __init__(self, cfg: TransformerConfig, width: int | None = None, folded: bool = False) -> None:
        super().__init__()
        self.eps, self.offset, self.width = cfg.eps, cfg.norm_gain_offset, width or cfg.d_model
        self.w = None if folded else nn.Parameter(torch.full((self.width,), 1.0 - self.offset))
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    @property
    def gain(self) -> Float[Tensor, "d_model"] | None:
        """What the normalised stream is multiplied with, in float32 at least; None where it was folded away."""
        if self.w is None:
            return None
        wide = _at_least_float32(self.w)
        return wide + self.offset if self.offset else wide

    def forward(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_model"]:
        if not (self.hook_scale.has_hooks() or self.hook_normalized.has_hooks()):
            return self.unhooked(x)
        wide = _at_least_float32(x)
        scale = self.hook_scale((_mean_square(wide, self.width) + self.eps).sqrt())
        normalized, gain = self.hook_normalized(wide / scale), self.gain
        return (normalized if gain is None else normalized * gain).to(x.dtype)

    def unhooked(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_model"]:
        """The same function past the hook points, in one kernel on a GPU (on a CPU there is none)."""
        wide, gain = _at_least_float32(x), self.gain
        gain = None if gain is None else gain.to(wide.dtype)
        if wide.is_cuda:
            return F.rms_norm(wide, (self.width,), gain, self.eps).to(x.dtype)
        normalized = wide / (_mean_square(wide, self.width) + self.eps).sqrt()
        return (normalized if gain is None else normalized * gain).to(x.dtype)


class WidthNorm(RMSNorm):
    """RMS norm of queries or keys over all heads as one vector (OLMo 2, arXiv:2501.00656).

    hook_scale: [batch pos head 1], the same for every head; hook_normalized: [batch pos head d_head].
    """

    def forward(self, x: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos head d_head"]:
        if not (self.hook_scale.has_hooks() or self.hook_normalized.has_hooks()):
            whole = self.unhooked(rearrange(x, "batch pos head d -> batch pos (head d)"))
            return rearrange(whole, "batch pos (head d) -> batch pos head d", head=x.shape[2])
        wide = _at_least_float32(x)
        scale = (wide.pow(2).mean((-2, -1), keepdim=True) + self.eps).sqrt()
        scale = self.hook_scale(scale.expand(*x.shape[:-1], 1))
        assert self.gain is not None  # nothing folds the gain of queries and keys
        gain = rearrange(self.gain, "(head d) -> head d", head=x.shape[2])
        return (self.hook_normalized(wide / scale) * gain).to(x.dtype)


class NoNorm(nn.Module):
    """The identity, for models without normalisation; it has no hook points."""

    def forward(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_model"]:
        return x

    unhooked = forward


Norm = LayerNorm | RMSNorm | NoNorm


def make_norm(cfg: TransformerConfig) -> Norm:
    """The norm of what is read from the stream, as `cfg.normalization_type` names it."""
    folded = cfg.normalization_type in ("LNPre", "RMSPre")
    if cfg.normalization_type is None:
        return NoNorm()
    return LayerNorm(cfg, folded) if cfg.normalization_type.startswith("LN") else RMSNorm(cfg, folded=folded)


def make_final_norm(cfg: TransformerConfig) -> Norm:
    """The norm before the unembedding; none where the stream leaves the last block normalised."""
    return NoNorm() if cfg.norm_places == "stream" else make_norm(cfg)


def make_post_norm(cfg: TransformerConfig) -> Norm:
    """The norm of what is written to the stream, or of the stream itself, which has its gain always: nothing follows
    that would take it."""
    if cfg.normalization_type is None:
        return NoNorm()
    return LayerNorm(cfg) if cfg.normalization_type.startswith("LN") else RMSNorm(cfg)


def _mean_square(x: Float[Tensor, "*axes width"], width: int) -> Float[Tensor, "*axes 1"]:
    """The mean of the squares over the last axis, without a tensor of squares: writing one is what would take time."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / width


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
