"""T5's relative positions: a trained number for each head and distance, added to the scores (arXiv:1910.10683, §2.1).

Near distances have a bucket each, far ones share buckets that widen with the logarithm of the distance.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.hook_point import HookPoint


def distance_buckets(
    distances: Int[Tensor, "*axes"], n_buckets: int, max_distance: int, bidirectional: bool
) -> Int[Tensor, "*axes"]:
    """The bucket of each distance, key position minus query position: 0 to n_buckets - 1.

    bidirectional: half of the buckets are for keys that come later; otherwise all later keys count as distance 0. Of
    the buckets of one direction the first half hold one distance each, the others grow up to max_distance, from which
    on all distances share the last.
    """
    later = torch.zeros_like(distances)
    if bidirectional:
        n_buckets //= 2
        later = (distances > 0).to(distances.dtype) * n_buckets
        steps = distances.abs()
    else:
        steps = (-distances).clamp(min=0)
    n_exact = n_buckets // 2
    # In float32 whatever the model's dtype: a boundary between buckets must not move with it.
    growth = (steps.clamp(min=1).to(torch.float32) / n_exact).log() / math.log(max_distance / n_exact)
    far = n_exact + (growth * (n_buckets - n_exact)).to(distances.dtype)
    return later + torch.where(steps < n_exact, steps, far.clamp(max=n_buckets - 1))


class RelativePositionBias(nn.Module):
    """`weight` [n_buckets head]: what is added to a head's scores at each distance.

    hook_bias: [1 head q_pos k_pos], the same for every prompt and every layer.
    """

    def __init__(self, n_buckets: int, max_distance: int, n_heads: int, bidirectional: bool) -> None:
        super().__init__()
        self.n_buckets, self.max_distance, self.bidirectional = n_buckets, max_distance, bidirectional
        self.weight = nn.Parameter(torch.zeros(n_buckets, n_heads))
        self.hook_bias = HookPoint()

    def forward(self, n_queries: int, n_keys: int) -> Float[Tensor, "1 head q_pos k_pos"]:
        """The queries are the last `n_queries` of the positions."""
        positions = torch.arange(n_keys, device=self.weight.device)
        queries = rearrange(positions[n_keys - n_queries :], "q_pos -> q_pos 1")
        buckets = distance_buckets(positions - queries, self.n_buckets, self.max_distance, self.bidirectional)
        return self.hook_bias(rearrange(self.weight[buckets], "q_pos k_pos head -> 1 head q_pos k_pos"))
