"""The same model with another context window: for positions that are computed, and so exist at any length."""

from __future__ import annotations

from dataclasses import replace

import torch

from interp.errors import LabError
from models.gpt import GPT


def with_context(model: GPT, n_ctx: int) -> GPT:
    """A copy of the model that takes up to `n_ctx` positions; at those that both take it gives the same numbers.

    Sinusoidal positions have a vector for any place, rotary ones an angle, and a model without positions needs
    neither. That it runs beyond the length of its training does not say that it works there (Press et al. 2021,
    arXiv:2108.12409): measure it, with `analyses.loss_by_position`.

    Raises:
        LabError: learned positions, which end where their vectors do; longrope angles beyond their first context,
            which would need its other set of factors; an n_ctx that is no positive integer.
    """
    cfg = model.cfg
    if cfg.positional_embedding_type == "learned":
        raise LabError(
            f"{cfg.model_name!r} has learned positions, a vector for each of its {cfg.n_ctx} (n_ctx) and none for "
            f"others; n_ctx={n_ctx} would have to invent them.  Train with a wider window, or take sinusoidal, rotary "
            "or no positions."
        )
    scaling = cfg.rotary_scaling
    if scaling is not None and scaling.kind == "longrope" and n_ctx > max(cfg.n_ctx, scaling.original_n_ctx):
        raise LabError(
            f"{cfg.model_name!r} has longrope angles, of which the lab runs those of the first context; expected an "
            f"n_ctx of at most {max(cfg.n_ctx, scaling.original_n_ctx)}, given {n_ctx}."
        )
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are not kept
        twin = GPT(replace(cfg, n_ctx=n_ctx), model.tokenizer)
    twin.load_state_dict(model.state_dict())
    twin.revision = model.revision
    return twin
