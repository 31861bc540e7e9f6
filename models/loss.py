"""The loss of a language model."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import LabError


class LogitsAndLoss(NamedTuple):
    """What a forward gives with return_type="both"."""

    logits: Float[Tensor, "batch pos d_vocab"]
    loss: Float[Tensor, "*batch_pos"]


def next_token_loss(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"] | None = None,
    per_token: bool = False,
) -> Float[Tensor, ""] | Float[Tensor, "batch pos_minus_1"]:
    """Mean cross-entropy, in nats, of each token given those before it; computed in float32 at least.

    mask: predictions of padding, or from padding, count for nothing. per_token: the losses of tokens 1..pos-1
    (0 where the mask hides them) instead of their mean.

    Raises:
        LabError: a single position, which predicts nothing.
    """
    if tokens.shape[1] < 2:
        raise LabError("a next-token loss needs at least 2 positions, given 1; try a longer prompt.")
    wide = logits[:, :-1].float() if logits.itemsize < 4 else logits[:, :-1]
    losses = F.cross_entropy(
        rearrange(wide, "batch pos vocab -> batch vocab pos"), tokens[:, 1:].long(), reduction="none"
    )
    if mask is None:
        return losses if per_token else losses.mean()
    counted = (mask[:, 1:] & mask[:, :-1]).to(losses.dtype)
    return losses * counted if per_token else (losses * counted).sum() / counted.sum().clamp(min=1)
