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
    """

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.eps = cfg.eps
        self.w = nn.Parameter(torch.ones(cfg.d_model))
        self.b = nn.Parameter(torch.zeros(cfg.d_model))
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    @property
    def gain(self) -> Float[Tensor, "d_model"]:
        """What the normalised stream is multiplied with, in float32 at least."""
        return _at_least_float32(self.w)

    def forward(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_model"]:
        if not (self.hook_scale.has_hooks() or self.hook_normalized.has_hooks()):
            return self.unhooked(x)
        wide = _at_least_float32(x)
        centred = wide - wide.mean(-1, keepdim=True)
        scale = self.hook_scale((centred.pow(2).mean(-1, keepdim=True) + self.eps).sqrt())
        return (self.hook_normalized(centred / scale) * self.w + self.b).to(x.dtype)

    def unhooked(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_model"]:
        """The same function in one kernel, past the hook points."""
        wide = _at_least_float32(x)
        return F.layer_norm(wide, self.w.shape, self.w.to(wide.dtype), self.b.to(wide.dtype), self.eps).to(x.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) * (w + offset) over the last axis (Zhang & Sennrich 2019, arXiv:1910.07467).

    offset: 0, or 1 where gains are kept as their distance from 1 (Gemma).
    Runs in float32 at least. hook_scale: sqrt(mean(x²) + eps) [batch pos 1]; hook_normalized: x / scale,
    before the gain [batch pos d_model].
    """

    def __init__(self, cfg: TransformerConfig, width: int | None = None) -> None:
        super().__init__()
        self.eps, self.offset = cfg.eps, cfg.norm_gain_offset
        self.w = nn.Parameter(torch.full((width or cfg.d_model,), 1.0 - self.offset))
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    @property
    def gain(self) -> Float[Tensor, "d_model"]:
        """What the normalised stream is multiplied with, in float32 at least."""
        wide = _at_least_float32(self.w)
        return wide + self.offset if self.offset else wide

    def forward(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_model"]:
        if not (self.hook_scale.has_hooks() or self.hook_normalized.has_hooks()):
            return self.unhooked(x)
        wide = _at_least_float32(x)
        scale = self.hook_scale((wide.pow(2).mean(-1, keepdim=True) + self.eps).sqrt())
        return (self.hook_normalized(wide / scale) * self.gain).to(x.dtype)

    def unhooked(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_model"]:
        """The same function in one kernel, past the hook points."""
        wide = _at_least_float32(x)
        return F.rms_norm(wide, self.w.shape, self.gain.to(wide.dtype), self.eps).to(x.dtype)


class WidthNorm(RMSNorm):
    """RMS norm of queries or keys over all heads as one vector (OLMo 2, arXiv:2501.00656).

    hook_scale: [batch pos 1 1]; hook_normalized: [batch pos head d_head].
    """

    def forward(self, x: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos head d_head"]:
        if not (self.hook_scale.has_hooks() or self.hook_normalized.has_hooks()):
            whole = self.unhooked(rearrange(x, "batch pos head d -> batch pos (head d)"))
            return rearrange(whole, "batch pos (head d) -> batch pos head d", head=x.shape[2])
        wide = _at_least_float32(x)
        scale = self.hook_scale((wide.pow(2).mean((-2, -1), keepdim=True) + self.eps).sqrt())
        gain = rearrange(self.gain, "(head d) -> head d", head=x.shape[2])
        return (self.hook_normalized(wide / scale) * gain).to(x.dtype)


class NoNorm(nn.Module):
    """The identity, for models without normalisation; it has no hook points."""

    def forward(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_model"]:
        return x

    unhooked = forward


Norm = LayerNorm | RMSNorm | NoNorm


def make_norm(cfg: TransformerConfig) -> Norm:
    """The norm that `cfg.normalization_type` names."""
    if cfg.normalization_type is None:
        return NoNorm()
    return LayerNorm(cfg) if cfg.normalization_type == "LN" else RMSNorm(cfg)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
