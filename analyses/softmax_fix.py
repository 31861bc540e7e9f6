"""The q/k fix of AtP*: what a patch of queries or keys does to the pattern, exactly, times the gradient there.

A softmax that is saturated has hardly any gradient, so a first-order estimate through it misses what patched queries
and keys do. Recomputed, only what comes after the pattern is linearised (Kramár et al. 2024, arXiv:2403.00745, §3.1.1):

    queries:  sum over k of     [pattern(q'_i, k)_ik - pattern(q, k)_ik] . dm/dpattern_ik
    key t:    sum over i, k of  [pattern(q, k with k_t <- k'_t)_ik - pattern(q, k)_ik] . dm/dpattern_ik

Rotated queries and keys serve as well: a rotation moves each position by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import einsum, reduce, repeat
from jaxtyping import Float
from torch import Tensor

from interp.contract import HookedModel
from interp.errors import LabError
from interp.sites import Site

Queries = Float[Tensor, "batch q_pos head d_head"]
Keys = Float[Tensor, "batch k_pos kv_head d_head"]
Edges = Float[Tensor, "batch head q_pos k_pos"]

QUERIES, KEYS = ("q", "rot_q"), ("k", "rot_k")
INSTEAD = "qk_fix=False, or method='EAP' of edge_attribution, linearises the softmax instead"


@dataclass(frozen=True)
class Layer:
    """The hook names of one layer's attention: queries and keys as the scores read them, scores and pattern."""

    q: str
    k: str
    scores: str
    pattern: str

    @classmethod
    def of(cls, model: HookedModel, layer: int) -> Layer:
        """Raises:
        LabError: the model has no hook point for one of them.
        """
        turned = Site("rot_q", layer).hook_name in model.hook_dict
        kinds = ("rot_q", "rot_k") if turned else ("q", "k")
        names = [Site(kind, layer).hook_name for kind in (*kinds, "attn_scores", "pattern")]
        if missing := [name for name in names if name not in model.hook_dict]:
            raise LabError(
                f"the q/k fix recomputes the softmax, for which this model lacks {', '.join(missing)}; {INSTEAD}."
            )
        return cls(*names)


def check_recomputed(q: Queries, k: Keys, seen: Edges, pattern: Edges) -> None:
    """Raises:
    LabError: softmax(q . k / sqrt(d_head)), recomputed, is not the pattern that the model used.
    """
    error = float((recomputed(q, k, seen).softmax(-1) - pattern).abs().max())
    if not error <= torch.finfo(q.dtype).eps ** 0.5:  # far above rounding, far below another formula; NaN fails
        raise LabError(
            f"the q/k fix recomputes the pattern as softmax(q . k / sqrt(d_head)), but this model's differs by "
            f"{error:.2g}: its scores follow another formula. {INSTEAD}."
        )


def recomputed(q: Queries, k: Keys, seen: Edges) -> Edges:
    """Scores in float32 at least, hidden where `seen`, the model's own of the same prompts, are hidden."""
    wide = torch.promote_types(q.dtype, torch.float32)
    k = repeat(k.to(wide), "batch pos kv d -> batch pos (kv group) d", group=q.shape[2] // k.shape[2])
    scores = einsum(q.to(wide), k, "batch q_pos head d, batch k_pos head d -> batch head q_pos k_pos")
    hidden = seen <= torch.finfo(seen.dtype).min / 2  # the lowest finite number, or -inf
    return torch.where(hidden, torch.finfo(wide).min, scores / math.sqrt(q.shape[-1]))


def query_effects(scores: Edges, patched: Edges, gradient: Edges) -> Float[Tensor, "batch head q_pos"]:
    """The effect of each patched query. patched: the scores with every query patched; a row reads its own alone."""
    return _pattern_effect(scores, patched, gradient)


def key_effects(scores: Edges, patched: Edges, gradient: Edges, kv_heads: int) -> Float[Tensor, "batch kv_head k_pos"]:
    """The effect of each patched key, alone: its column of `patched` in the scores of all queries.

    Takes a softmax over all scores for each key.
    """
    effects = torch.empty_like(scores[:, :, 0])
    for key in range(scores.shape[-1]):
        one = scores.clone()
        one[..., key] = patched[..., key]
        effects[..., key] = _pattern_effect(scores, one, gradient).sum(-1)
    return reduce(effects, "batch (kv group) k_pos -> batch kv k_pos", "sum", kv=kv_heads)


def all_keys_effect(scores: Edges, patched: Edges, gradient: Edges, kv_heads: int) -> Float[Tensor, "batch kv_head"]:
    """The effect of a head's keys patched at all positions together."""
    effects = _pattern_effect(scores, patched, gradient)
    return reduce(effects, "batch (kv group) q_pos -> batch kv", "sum", kv=kv_heads)


def _pattern_effect(scores: Edges, patched: Edges, gradient: Edges) -> Float[Tensor, "batch head q_pos"]:
    return ((patched.softmax(-1) - scores.softmax(-1)) * gradient).sum(-1)
