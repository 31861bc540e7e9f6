"""Attention in four steps and across sequences: each against torch's own, and against one another."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models.attention import (
    attention_scores,
    causal_mask,
    causal_self_attention,
    cross_attention,
    multi_head_attention,
    self_attention,
    simple_self_attention,
)
from tests.strategies import SEEDS

# Two ways to sum the same few float64 products.
EXACT: Any = {"atol": 1e-12, "rtol": 1e-12}
LENGTHS = st.integers(1, 6)
D_MODEL, D_HEAD = 8, 4


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def single(seed: int) -> list[Tensor]:
    """W_Q, W_K, W_V of one head."""
    return [draw(seed + i, D_MODEL, D_HEAD) for i in range(3)]


def several(seed: int, heads: int) -> list[Tensor]:
    """W_Q, W_K, W_V, W_O of some heads."""
    return [*(draw(seed + i, heads, D_MODEL, D_HEAD) for i in range(3)), draw(seed + 3, heads, D_HEAD, D_MODEL)]


def torchs(weights: list[Tensor]) -> nn.MultiheadAttention:
    """The same heads in torch's module."""
    W_Q, W_K, W_V, W_O = weights
    module = nn.MultiheadAttention(D_MODEL, len(W_Q), bias=False, batch_first=True, dtype=torch.float64)
    stacked = [rearrange(W, "head model d -> (head d) model") for W in (W_Q, W_K, W_V)]
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.cat(stacked))
        module.out_proj.weight.copy_(rearrange(W_O, "head d model -> model (head d)"))
    return module


@given(SEEDS, LENGTHS)
def test_simple_self_attention_is_torchs_without_weights_and_scale(seed: int, length: int) -> None:
    x = draw(seed, 2, length, D_MODEL)
    torch.testing.assert_close(simple_self_attention(x), F.scaled_dot_product_attention(x, x, x, scale=1.0), **EXACT)


@given(SEEDS, LENGTHS)
def test_self_attention_and_causal_self_attention_are_torchs(seed: int, length: int) -> None:
    x, weights = draw(seed, 2, length, D_MODEL), single(seed + 1)
    q, k, v = (x @ weight for weight in weights)
    torch.testing.assert_close(self_attention(x, *weights), F.scaled_dot_product_attention(q, k, v), **EXACT)
    causal = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(causal_self_attention(x, *weights), causal, **EXACT)


@given(SEEDS, LENGTHS, st.booleans())
def test_multi_head_attention_is_torchs_module(seed: int, length: int, causal: bool) -> None:
    x, weights = draw(seed, 2, length, D_MODEL), several(seed + 1, 2)
    mask = causal_mask(length, length, x.device) if causal else None
    expected, _ = torchs(weights)(x, x, x, attn_mask=None if mask is None else ~mask[0, 0], need_weights=False)
    torch.testing.assert_close(multi_head_attention(x, *weights, mask), expected, **EXACT)


@given(SEEDS, LENGTHS, LENGTHS, st.data())
def test_cross_attention_is_torchs_module_also_where_the_source_is_padded(
    seed: int, asking: int, answering: int, data: Any
) -> None:
    x, source, weights = draw(seed, 2, asking, D_MODEL), draw(seed + 1, 2, answering, D_MODEL), several(seed + 2, 2)
    lengths = torch.tensor([[data.draw(st.integers(1, answering))] for _ in range(2)])
    real = torch.arange(answering) < lengths
    mask = rearrange(real, "batch k_pos -> batch 1 1 k_pos").expand(2, 1, asking, answering)
    expected, _ = torchs(weights)(x, source, source, key_padding_mask=~real, need_weights=False)
    torch.testing.assert_close(cross_attention(x, source, *weights, mask), expected, **EXACT)


@given(SEEDS, LENGTHS)
def test_one_head_is_multi_head_attention_with_one_head(seed: int, length: int) -> None:
    x, weights = draw(seed, 2, length, D_MODEL), several(seed + 1, 1)
    alone = self_attention(x, *(weight[0] for weight in weights[:3])) @ weights[3][0]
    torch.testing.assert_close(multi_head_attention(x, *weights), alone, **EXACT)


@given(SEEDS, LENGTHS, st.sampled_from([1, 2, 3]))
def test_heads_add_up(seed: int, length: int, heads: int) -> None:
    x, weights = draw(seed, 2, length, D_MODEL), several(seed + 1, heads)
    each = [multi_head_attention(x, *(weight[[head]] for weight in weights)) for head in range(heads)]
    torch.testing.assert_close(multi_head_attention(x, *weights), sum(each), **EXACT)


@given(SEEDS, LENGTHS, st.sampled_from([1, 2, 3]))
def test_cross_attention_on_itself_is_self_attention(seed: int, length: int, heads: int) -> None:
    x, weights = draw(seed, 2, length, D_MODEL), several(seed + 1, heads)
    expected = sum(
        self_attention(x, *(weight[head] for weight in weights[:3])) @ weights[3][head] for head in range(heads)
    )
    torch.testing.assert_close(cross_attention(x, x, *weights), expected, **EXACT)


@given(SEEDS, st.integers(2, 6), st.data())
def test_changing_a_later_token_changes_no_earlier_output(seed: int, length: int, data: Any) -> None:
    """To the bit: a weight of 0 leaves nothing of the value behind it."""
    x, weights = draw(seed, 2, length, D_MODEL), single(seed + 1)
    changed = data.draw(st.integers(1, length - 1))
    other = x.clone()
    other[:, changed] = 100 * draw(seed + 9, 2, D_MODEL)
    before, after = causal_self_attention(x, *weights), causal_self_attention(other, *weights)
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.equal(before[:, changed:], after[:, changed:])
    mask = causal_mask(length, length, x.device)
    heads = several(seed + 2, 2)
    before, after = multi_head_attention(x, *heads, mask), multi_head_attention(other, *heads, mask)
    assert torch.equal(before[:, :changed], after[:, :changed])


@given(SEEDS, LENGTHS)
def test_the_weights_of_what_is_masked_are_zero_and_the_others_sum_to_one(seed: int, length: int) -> None:
    q, k = draw(seed, 1, length, 2, D_HEAD), draw(seed + 1, 1, length, 2, D_HEAD)
    pattern = attention_scores(q, k, causal_mask(length, length, q.device)).softmax(-1)
    assert torch.equal(pattern, pattern.tril())
    torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]), **EXACT)
    later = torch.ones(length, length).triu(1).bool()
    infinite = (q[0, :, 0] @ k[0, :, 0].T / D_HEAD**0.5).masked_fill(later, -torch.inf)
    torch.testing.assert_close(pattern[0, 0], infinite.softmax(-1), **EXACT)
