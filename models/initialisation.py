"""Fresh weights."""

from __future__ import annotations

import math

import torch
from torch import nn

from models.config import TransformerConfig


@torch.no_grad()
def initialise(model: nn.Module, cfg: TransformerConfig) -> None:
    """Draw the weights of a model anew, as GPT-2's (Radford et al. 2019, §2.3), from `cfg.seed` when it is set.

    normal(0, init_range), narrower by sqrt(2 n_layers) where they write to the stream; biases are zero.
    """
    generator = None if cfg.seed is None else torch.Generator().manual_seed(cfg.seed)
    for name, parameter in model.named_parameters():
        writes = name.endswith((".attn.o.weight", ".mlp.out.weight"))
        std = cfg.init_range / math.sqrt(2 * cfg.n_layers) if writes else cfg.init_range
        if parameter.ndim >= 2 and not parameter.is_meta:
            parameter.normal_(0.0, std, generator=generator)
        elif name.endswith(".bias"):
            parameter.zero_()
