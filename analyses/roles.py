"""Head scores: what each head attends to, on random tokens repeated once.

    previous token   mean over queries i of A[i, i-1], without the first two (the first position is a sink)
    duplicate token  mean over queries i with an earlier equal token of the sum of A[i, j], t_j = t_i, j < i
    induction        the same, of the sum of A[i, j+1]: the token after the earlier equal one

Olsson et al. 2022 (arXiv:2209.11895). On a block of different tokens repeated with period P the last two are
A[i, i-P] and A[i, i-P+1] in the second copy.

Cost: one forward.
It does not show: what a head does with what it attends to, or what it attends to on other text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp import provenance
from interp.contract import HookedModel
from interp.errors import LabError
from interp.results import Result, to_numpy
from interp.style import SHARE
from interp.tasks import repeated_tokens

ROLES = ("previous", "duplicate", "induction")


@dataclass(frozen=True, eq=False, repr=False)
class HeadScores(Result):
    """Each head's share of attention by role, [role layer head]; the roles are also attributes."""

    title = "Head scores"
    shows = "how much of its attention each head gives to the previous token, an equal one, and the one after it"
    caveat = "Where a head looks is not what it does."
    unit = "share of attention"
    scale = SHARE

    values: Float[np.ndarray, "role layer head"]

    @property
    def previous(self) -> Float[np.ndarray, "layer head"]:
        return self.values[0]

    @property
    def duplicate(self) -> Float[np.ndarray, "layer head"]:
        return self.values[1]

    @property
    def induction(self) -> Float[np.ndarray, "layer head"]:
        return self.values[2]


def head_scores(
    model: HookedModel | Any,
    tokens: Int[Tensor, "batch pos"] | None = None,
    n: int = 16,
    length: int | None = None,
    seed: int = 0,
) -> HeadScores:
    """Previous-token, duplicate-token and induction scores: `.previous[layer, head]`, `.induction[layer, head]`.

    tokens: what to score on; by default `n` rows of `length` random tokens repeated once (as many as fit, up to
    40). Scores that no query of the tokens defines are NaN.

    Raises:
        LabError: tokens that are no batch of rows, or a context window too short for a repeat.
    """
    drawn = seed if tokens is None else None
    if tokens is None:
        tokens = repeated_tokens(model, n, length or longest_block(model), seed)
    if tokens.ndim != 2 or tokens.shape[1] < 3:
        raise LabError(f"head scores need rows of at least 3 tokens; given shape {list(tokens.shape)}.")
    tokens = tokens.to(model.device)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    equal = _earlier_equal(tokens)
    after = torch.zeros_like(equal)
    after[:, :, 1:] = equal[:, :, :-1]
    with torch.inference_mode():
        _, cache = model.run_with_cache(tokens, names_filter=names)
        scores = [
            torch.stack([_previous(cache[name]), _mean_weight(cache[name], equal), _mean_weight(cache[name], after)])
            for name in names
        ]
    return HeadScores(
        to_numpy(rearrange(scores, "layer role head -> role layer head")),
        labels={"role": list(ROLES)},
        provenance=provenance.of(model, prompts=tokens, site="pattern", seed=drawn),
    )


def longest_block(model: HookedModel | Any) -> int:
    """Tokens in a block that is repeated once: as many as fit, up to 40."""
    return max(2, min(40, (model.cfg.n_ctx - 1) // 2, model.cfg.d_vocab // 2))


def _earlier_equal(tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch q_pos k_pos"]:
    """For each query, the earlier positions that hold the same token."""
    same = rearrange(tokens, "batch q_pos -> batch q_pos 1") == rearrange(tokens, "batch k_pos -> batch 1 k_pos")
    return same.tril(-1)


def _previous(pattern: Float[Tensor, "batch head q_pos k_pos"]) -> Float[Tensor, "head"]:
    return pattern.float().diagonal(-1, dim1=-2, dim2=-1)[..., 1:].mean((0, -1))


def _mean_weight(
    pattern: Float[Tensor, "batch head q_pos k_pos"], keys: Bool[Tensor, "batch q_pos k_pos"]
) -> Float[Tensor, "head"]:
    """The attention that goes to `keys`, averaged over the queries that have any."""
    weight = einsum(pattern.float(), keys.float(), "b head q k, b q k -> b head q")
    queries = keys.any(-1).float()
    return einsum(weight, queries, "b head q, b q -> head") / queries.sum()
