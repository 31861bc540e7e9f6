"""Where a model that reads sources gives its answer: beside the source, not after it."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor


def at_last(
    logits: Float[Tensor, "batch 1 d_vocab"], tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"] | None
) -> Float[Tensor, "batch pos d_vocab"]:
    """The logits at the last real position of each row of source tokens, NaN at the others."""
    positions = torch.arange(tokens.shape[1], device=logits.device)
    last = positions[-1:] if mask is None else (positions * mask.to(logits.device)).amax(1, keepdim=True)
    here = rearrange((positions == last).expand(tokens.shape), "batch pos -> batch pos 1")
    return torch.where(here, logits, torch.nan)
