"""Attention in four steps, each a pure function of vectors and weights, and then across two sequences.

    simple_self_attention   softmax(x xᵀ) x: nothing is trained, a vector looks at the vectors that resemble it
    self_attention          softmax(q kᵀ / √d_head) v, where q = x W_Q, k = x W_K, v = x W_V
    causal_self_attention   scores of what comes later become minus infinity before the softmax
    multi_head_attention    several heads side by side, each through its part of W_O into the sum
    cross_attention         queries of one sequence, keys and values of another

All of them are `dot_product_attention`: scores, softmax, and values mixed. `models.attention_module` holds weights and
hook points and computes with the same functions. `fused_attention` is the same again in one kernel.

A mask is Bool[Tensor, "batch 1 q_pos k_pos"], True where a query may look, or None for "everywhere".
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from models.embedding import soft_capped

Mask = Bool[Tensor, "#batch 1 q_pos k_pos"]
Bias = Float[Tensor, "#batch #head q_pos k_pos"]


def simple_self_attention(x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
    """softmax(x xᵀ) x: the average of all vectors, weighed by their dot products with one's own. Nothing is trained."""
    return _one_head(x, x, x, scale=1.0)


def self_attention(
    x: Float[Tensor, "batch pos d_model"],
    W_Q: Float[Tensor, "d_model d_head"],
    W_K: Float[Tensor, "d_model d_head"],
    W_V: Float[Tensor, "d_model d_value"],
    mask: Bool[Tensor, "#batch 1 pos pos"] | None = None,
) -> Float[Tensor, "batch pos d_value"]:
    """softmax(q kᵀ / √d_head) v: what one looks for, what one is found by and what one passes on are trained apart.

    Vaswani et al. 2017 (arXiv:1706.03762), §3.2.1. Without the division, products of long vectors drive the softmax to
    where it has no gradient.
    """
    return _one_head(x @ W_Q, x @ W_K, x @ W_V, mask)


def causal_self_attention(
    x: Float[Tensor, "batch pos d_model"],
    W_Q: Float[Tensor, "d_model d_head"],
    W_K: Float[Tensor, "d_model d_head"],
    W_V: Float[Tensor, "d_model d_value"],
) -> Float[Tensor, "batch pos d_value"]:
    """Self-attention that looks back only: scores of later positions are minus infinity, so their weights are 0.

    Masked after the softmax instead, the weights that are left would no longer sum to one (§3.2.3).
    """
    return self_attention(x, W_Q, W_K, W_V, causal_mask(x.shape[1], x.shape[1], x.device))


def multi_head_attention(
    x: Float[Tensor, "batch pos d_model"],
    W_Q: Float[Tensor, "head d_model d_head"],
    W_K: Float[Tensor, "head d_model d_head"],
    W_V: Float[Tensor, "head d_model d_value"],
    W_O: Float[Tensor, "head d_value d_out"],
    mask: Bool[Tensor, "#batch 1 pos pos"] | None = None,
) -> Float[Tensor, "batch pos d_out"]:
    """Self-attention of several heads, each with weights of its own, summed through their parts of W_O (§3.2.2)."""
    return cross_attention(x, x, W_Q, W_K, W_V, W_O, mask)


def cross_attention(
    x: Float[Tensor, "batch q_pos d_model"],
    source: Float[Tensor, "batch k_pos d_source"],
    W_Q: Float[Tensor, "head d_model d_head"],
    W_K: Float[Tensor, "head d_source d_head"],
    W_V: Float[Tensor, "head d_source d_value"],
    W_O: Float[Tensor, "head d_value d_out"],
    mask: Mask | None = None,
) -> Float[Tensor, "batch q_pos d_out"]:
    """Multi-head attention from one sequence to another: `x` asks and `source` answers (§3.2.3).

    Of a sequence on itself it is self-attention.
    """
    q, k, v = _into_heads(x, W_Q), _into_heads(source, W_K), _into_heads(source, W_V)
    z = dot_product_attention(q, k, v, mask)
    return einsum(z, W_O, "batch pos head d, head d out -> batch pos out")


def dot_product_attention(
    q: Float[Tensor, "batch q_pos head d_head"],
    k: Float[Tensor, "batch k_pos kv_head d_head"],
    v: Float[Tensor, "batch k_pos kv_head d_value"],
    mask: Mask | None = None,
    scale: float | None = None,
) -> Float[Tensor, "batch q_pos head d_value"]:
    """softmax(q kᵀ / scale) v, for every head: the pattern, and the values averaged by it."""
    pattern = attention_scores(q, k, mask, scale).softmax(-1)
    return mix_values(pattern, v)


def attention_scores(
    q: Float[Tensor, "batch q_pos head d_head"],
    k: Float[Tensor, "batch k_pos kv_head d_head"],
    mask: Mask | None,
    scale: float | None = None,
    soft_cap: float | None = None,
    bias: Bias | None = None,
) -> Float[Tensor, "batch head q_pos k_pos"]:
    """q · k / scale + bias in float32 at least; where the mask is False, minus infinity.

    The lowest finite number stands for minus infinity: its weight is 0 as well, and a query that sees nothing stays
    finite. With fewer key heads than query heads, head h reads key head h // (n_heads / n_kv_heads).
    scale: sqrt(d_head) by default. soft_cap: cap · tanh(scores / cap) (Gemma 2, arXiv:2408.00118). bias: added after
    it, before the mask (T5's relative positions, arXiv:1910.10683, §2.1).
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    scaled = q.to(wide) / (scale or math.sqrt(q.shape[-1]))  # before the product, where there is less to divide
    grouped = rearrange(scaled, "b q_pos (kv group) d -> b kv (group q_pos) d", kv=k.shape[2])
    products = grouped @ rearrange(k.to(wide), "b k_pos kv d -> b kv d k_pos")
    scores = rearrange(products, "b kv (group q_pos) k_pos -> b (kv group) q_pos k_pos", q_pos=q.shape[1])
    scores = soft_capped(scores, soft_cap)
    scores = scores if bias is None else scores + bias
    return scores if mask is None else scores.masked_fill_(~mask, torch.finfo(wide).min)


def mix_values(
    pattern: Float[Tensor, "batch head q_pos k_pos"], v: Float[Tensor, "batch k_pos kv_head d_value"]
) -> Float[Tensor, "batch q_pos head d_value"]:
    """Average the values with the pattern's weights."""
    grouped = rearrange(pattern, "b (kv group) q_pos k_pos -> b kv (group q_pos) k_pos", kv=v.shape[2])
    z = grouped @ rearrange(v.to(pattern.dtype), "b k_pos kv d -> b kv k_pos d")
    return rearrange(z, "b kv (group q_pos) d -> b q_pos (kv group) d", q_pos=pattern.shape[2]).to(v.dtype)


def fused_attention(
    q: Float[Tensor, "batch q_pos head d_head"],
    k: Float[Tensor, "batch k_pos kv_head d_head"],
    v: Float[Tensor, "batch k_pos kv_head d_head"],
    mask: Mask | None,
    causal: bool,
    scale: float | None = None,
    bias: Bias | None = None,
) -> Float[Tensor, "batch q_pos head d_head"]:
    """`mix_values(softmax(attention_scores(q, k, mask, scale, bias=bias)), v)` in one kernel.

    causal: the kernel's own causal mask, where there are neither mask nor bias.
    """
    added: Tensor | None = mask
    if bias is not None:  # the kernel adds it in the dtype of the queries
        bias = bias.to(q.dtype)
        added = bias if mask is None else bias.masked_fill(~mask, torch.finfo(q.dtype).min)
    q, k, v = (rearrange(x, "batch pos head d -> batch head pos d") for x in (q, k, v))
    z = F.scaled_dot_product_attention(
        q,
        k,
        v,
        added,
        is_causal=causal and added is None,
        enable_gqa=k.shape[1] != q.shape[1],
        scale=None if scale is None else 1 / scale,
    )
    return rearrange(z, "batch head pos d -> batch pos head d")


def causal_mask(
    n_queries: int, n_keys: int, device: torch.device, window: int | None = None
) -> Bool[Tensor, "1 1 q_pos k_pos"]:
    """Each query sees itself and what came before; the queries are the last `n_queries` of the positions.

    window: how many positions it sees at most, itself included (Beltagy et al. 2020, arXiv:2004.05150).
    """
    mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).tril(n_keys - n_queries)
    if window is not None:
        mask = mask.triu(n_keys - n_queries - window + 1)
    return rearrange(mask, "q_pos k_pos -> 1 1 q_pos k_pos")


def padding_mask(
    real: Bool[Tensor, "batch k_pos"], n_queries: int, causal: bool, window: int | None = None
) -> Bool[Tensor, "batch 1 q_pos k_pos"]:
    """Hide padding keys. Every position sees itself, so that a padding query is finite (and read by nobody)."""
    n_keys = real.shape[1]
    allowed = rearrange(real, "batch k_pos -> batch 1 1 k_pos")
    if causal:
        allowed = allowed & causal_mask(n_queries, n_keys, real.device, window)
    itself = torch.eye(n_keys, dtype=torch.bool, device=real.device)[n_keys - n_queries :]
    return allowed | itself


def at_positions(
    x: Shaped[Tensor, "#batch pos *axes"], index: Int[Tensor, "batch n"]
) -> Shaped[Tensor, "batch n *axes"]:
    """Each row's entries at its own positions."""
    rows = torch.arange(len(index), device=index.device)
    return x.expand(len(index), *x.shape[1:])[rearrange(rows, "batch -> batch 1"), index]


def queries_at(
    x: Shaped[Tensor, "#batch #head q_pos k_pos"], index: Int[Tensor, "batch n"]
) -> Shaped[Tensor, "batch #head n k_pos"]:
    """The rows of a mask or a bias that belong to some of the queries, each prompt its own."""
    rows = at_positions(rearrange(x, "batch head q_pos k_pos -> batch q_pos head k_pos"), index)
    return rearrange(rows, "batch n head k_pos -> batch head n k_pos")


def _one_head(
    q: Float[Tensor, "batch q_pos d_head"],
    k: Float[Tensor, "batch k_pos d_head"],
    v: Float[Tensor, "batch k_pos d_value"],
    mask: Mask | None = None,
    scale: float | None = None,
) -> Float[Tensor, "batch q_pos d_value"]:
    q, k, v = (rearrange(x, "batch pos d -> batch pos 1 d") for x in (q, k, v))
    return rearrange(dot_product_attention(q, k, v, mask, scale), "batch pos 1 d -> batch pos d")


def _into_heads(
    x: Float[Tensor, "batch pos d_model"], weight: Float[Tensor, "head d_model d_head"]
) -> Float[Tensor, "batch pos head d_head"]:
    return einsum(x, weight, "batch pos model, head model d -> batch pos head d")
