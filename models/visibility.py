"""Where each token stands, what its queries may look at, and how they turn: made once for all layers of a forward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import LabError
from interp.kv_cache import KeyValueCache
from models.attention import causal_mask, padding_mask
from models.positions import RotaryPositions, position_ids

if TYPE_CHECKING:
    from models.gpt import GPT

View = tuple[Bool[Tensor, "#batch 1 pos k_pos"] | None, Float[Tensor, "#batch pos 2 half"] | None]


def mask_and_positions(
    model: Any, shape: tuple[int, ...], mask: Bool[Tensor, "_ _"] | None, past: KeyValueCache | None
) -> tuple[Bool[Tensor, "batch k_pos"] | None, Int[Tensor, "#batch pos"]]:
    """Which of all positions are real (None: all of them), and the positions of the new tokens.

    shape: [batch pos] of the new tokens; mask: which of them are real.

    Raises:
        LabError: a mask of another shape, or more positions than the context window has.
    """
    batch, new = shape
    if mask is not None and tuple(mask.shape) != (batch, new):
        raise LabError(f"attention_mask has shape {tuple(mask.shape)}, expected the input's {(batch, new)}.")
    before, n_ctx = 0 if past is None else len(past), model.cfg.n_ctx
    if before + new > n_ctx:
        raise LabError(
            f"{before + new} positions do not fit the context window of {n_ctx} (n_ctx); "
            "shorten the prompt, or split it."
        )
    if past is not None:
        given = torch.ones(batch, new, dtype=torch.bool, device=model.device) if mask is None else mask
        unpadded = mask is None and past.unpadded
        real = past.append_mask(given, unpadded)
        if not unpadded:
            return real, position_ids(real)[:, before:]
    elif mask is not None:
        return mask, position_ids(mask)
    return None, torch.arange(before, before + new, device=model.device)[None]


def views_of(
    model: GPT,
    real: Bool[Tensor, "batch k_pos"] | None,
    positions: Int[Tensor, "#batch pos"],
    past: KeyValueCache | None,
    layers: range,
) -> dict[str, View]:
    """For each type of layer that is run: what its queries may see, and how its queries and keys turn.

    None for the first stands for causality alone.
    """
    cfg, views = model.cfg, dict[str, View]()
    new = positions.shape[1]
    whole = real.shape[1] if real is not None else new if past is None else len(past)
    for layer in layers:
        kind, rotary = cfg.layer_type(layer), model.blocks[layer].attn.rotary
        if kind in views:
            continue
        window = cfg.window_size if kind == "local" else None
        mask = None
        if real is not None:
            mask = padding_mask(real, new, cfg.causal, window)
        elif window is not None and whole > window:
            mask = causal_mask(new, whole, positions.device, window)
        rotation = rotary.rotation(positions, model.dtype) if isinstance(rotary, RotaryPositions) else None
        views[kind] = mask, rotation
    return views
