"""Attention's pure functions against the definition written as loops, and the fused kernel against both."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from interp.kv_cache import LayerCache
from models import GPT, TransformerConfig
from models.attention import attention_scores, causal_mask, fused_attention, mix_values, padding_mask
from models.mlp import gelu_new
from models.norm import make_norm
from models.positions import RotaryPositions, sinusoids
from tests.strategies import SEEDS, configs, padding_masks, random_model, token_batches

EXACT: Any = {"atol": 1e-12, "rtol": 1e-12}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Pattern and z of one prompt, one query and one head at a time; visible [q_pos k_pos]."""
    n_queries, n_heads, d_head = q.shape
    group = n_heads // k.shape[1]
    pattern, z = q.new_zeros(n_heads, n_queries, k.shape[0]), torch.zeros_like(q)
    for head in range(n_heads):
        for query in range(n_queries):
            keys = visible[query].nonzero()[:, 0]
            scores = k[keys, head // group] @ q[query, head] / math.sqrt(d_head)
            weights = scores.exp() / scores.exp().sum()
            pattern[head, query, keys] = weights
            z[query, head] = weights @ v[keys, head // group]
    return pattern, z


@given(SEEDS, st.sampled_from([(1, 1), (4, 4), (4, 2), (4, 1)]), st.integers(1, 4), st.integers(0, 3), st.booleans())
def test_scores_pattern_and_values_follow_the_definition(
    seed: int, heads: tuple[int, int], n_queries: int, before: int, causal: bool
) -> None:
    n_heads, n_kv = heads
    n_keys = n_queries + before
    q, k, v = (
        draw(2, n_queries, n_heads, 6, seed=seed),
        draw(2, n_keys, n_kv, 6, seed=seed + 1),
        draw(2, n_keys, n_kv, 6),
    )
    mask = causal_mask(n_queries, n_keys, q.device) if causal else None
    pattern = attention_scores(q, k, mask).softmax(-1)
    z = mix_values(pattern, v)
    fused = fused_attention(q, k, v, mask, causal=False)
    for row in range(2):
        visible = torch.ones(n_queries, n_keys).bool() if mask is None else mask[0, 0]
        expected_pattern, expected_z = by_definition(q[row], k[row], v[row], visible)
        torch.testing.assert_close(pattern[row], expected_pattern, **EXACT)
        torch.testing.assert_close(z[row], expected_z, **EXACT)
        torch.testing.assert_close(fused[row], expected_z, **EXACT)


@given(SEEDS, st.integers(1, 4), st.integers(0, 3), st.booleans(), st.sampled_from([1, 4]))
def test_a_bias_is_added_to_the_scores_before_the_softmax(
    seed: int, n_queries: int, before: int, causal: bool, own: int
) -> None:
    n_keys = n_queries + before
    q, k, v = (draw(2, n, 4, 6, seed=seed + i) for i, n in enumerate((n_queries, n_keys, n_keys)))
    bias = draw(1, own, n_queries, n_keys, seed=seed + 3)
    mask = causal_mask(n_queries, n_keys, q.device) if causal else None
    pattern = attention_scores(q, k, mask, bias=bias).softmax(-1)
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(6) + bias
    weights = weights if mask is None else weights.masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(pattern, weights.softmax(-1), **EXACT)
    z = torch.einsum("bhqk,bkhd->bqhd", weights.softmax(-1), v)
    torch.testing.assert_close(fused_attention(q, k, v, mask, False, bias=bias), z, **EXACT)
    torch.testing.assert_close(mix_values(pattern, v), z, **EXACT)


@given(SEEDS, st.sampled_from(["causal", "bidirectional"]), st.integers(0, 2), st.booleans(), st.data())
def test_a_bias_goes_through_the_module_fused_explicit_and_for_some_queries(
    seed: int, direction: str, before: int, padded: bool, data: Any
) -> None:
    cfg = TransformerConfig(
        n_layers=1, n_heads=2, d_model=8, d_vocab=5, n_ctx=8, attention_dir=direction, dtype=torch.float64
    )
    attention, n_new = GPT(cfg).blocks[0].attn, 4
    q, k, v = (draw(2, n_new, 2, 4, seed=seed + i) for i in range(3))
    past = (draw(2, before, 2, 4, seed=seed + 3), draw(2, before, 2, 4, seed=seed + 4))
    n_keys = n_new + before
    bias = draw(1, 2, n_new, n_keys, seed=seed + 5)
    real = data.draw(padding_masks(2, n_keys)) if padded else torch.ones(2, n_keys).bool()
    mask = padding_mask(real, n_new, cfg.causal)
    given_mask = mask if padded else None
    keys, values = torch.cat([past[0], k], 1), torch.cat([past[1], v], 1)
    expected = attention.write(mix_values(attention_scores(q, keys, mask, bias=bias).softmax(-1), values))

    def run(**rows: Any) -> Tensor:
        queries = q if not rows else q[torch.arange(2)[:, None], rows["finish"]]
        return attention.mix(queries, k, v, given_mask, past=LayerCache(*past), bias=bias, **rows)

    torch.testing.assert_close(run(), expected, **EXACT)
    finish = torch.tensor([[3, 0], [1, 2]])
    torch.testing.assert_close(run(finish=finish), expected[torch.arange(2)[:, None], finish], **EXACT)
    attention.hook_pattern.add_hook(lambda pattern, hook: None)
    torch.testing.assert_close(run(), expected, **EXACT)


@given(configs(), token_batches(), st.data())
def test_fused_and_explicit_softmax_agree_in_the_model(cfg: TransformerConfig, tokens: Tensor, data: Any) -> None:
    model = random_model(cfg, 1)
    mask = data.draw(st.none() | padding_masks(*tokens.shape))
    _, fused = model.run_with_cache(tokens, attention_mask=mask, names_filter="blocks.*.attn.hook_z")
    everything = [f"blocks.*.attn.hook_{name}" for name in ("z", "pattern", "attn_scores")]
    _, explicit = model.run_with_cache(tokens, attention_mask=mask, names_filter=everything)
    for name in fused:
        torch.testing.assert_close(fused[name], explicit[name], atol=1e-10, rtol=1e-10)


@given(configs(), token_batches(), st.data())
def test_norms_on_the_fast_path_and_past_their_hooks_agree(cfg: TransformerConfig, tokens: Tensor, data: Any) -> None:
    del tokens
    norm = make_norm(cfg).double()
    x = 3 * draw(2, 5, cfg.d_model, seed=data.draw(SEEDS)) + 1
    fast = norm(x)
    if cfg.normalization_type is None:
        assert fast is x
        return
    seen: dict[str, Tensor] = {}
    for point in (norm.hook_scale, norm.hook_normalized):
        point.add_hook(lambda tensor, hook: seen.update({"scale" if tensor.shape[-1] == 1 else "normalized": tensor}))
    torch.testing.assert_close(norm(x), fast, atol=1e-10, rtol=1e-10)
    centred = x - x.mean(-1, keepdim=True) if cfg.normalization_type == "LN" else x
    torch.testing.assert_close(seen["scale"], (centred.pow(2).mean(-1, keepdim=True) + cfg.eps).sqrt(), **EXACT)
    torch.testing.assert_close(seen["normalized"], centred / seen["scale"], **EXACT)


@given(st.integers(1, 5), st.integers(0, 4))
def test_causal_queries_are_the_last_of_the_positions(n_queries: int, before: int) -> None:
    mask = causal_mask(n_queries, n_queries + before, torch.device("cpu"))[0, 0]
    for query in range(n_queries):
        assert mask[query].tolist() == [key <= before + query for key in range(n_queries + before)]


def test_masked_scores_are_finite() -> None:
    mask = padding_mask(torch.tensor([[False, True, True]]), 3, causal=True)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        scores = attention_scores(draw(1, 3, 2, 4).to(dtype), draw(1, 3, 2, 4).to(dtype), mask)
        assert torch.isfinite(scores).all()
        assert scores.dtype == torch.promote_types(dtype, torch.float32)
        assert (scores.softmax(-1)[~mask.expand_as(scores)] == 0).all()


class TestRotary:
    cfg = TransformerConfig(
        n_layers=1, n_heads=2, d_model=16, d_vocab=5, n_ctx=32, positional_embedding_type="rotary", rotary_dim=4
    )

    @given(SEEDS, st.integers(0, 20), st.integers(0, 10))
    def test_scores_depend_on_the_distance_alone(self, seed: int, start: int, shift: int) -> None:
        rotary = RotaryPositions(self.cfg)
        q, k = draw(1, 1, 2, 8, seed=seed), draw(1, 1, 2, 8, seed=seed + 1)

        def score(at: int) -> Tensor:
            turns = [rotary.rotation(torch.tensor([[position]]), torch.float32) for position in (at + 3, at)]
            return (rotary(q, turns[0]) * rotary(k, turns[1])).sum(-1)

        # Angles are float32 numbers up to 33, so they are known to about 33 * 6e-8.
        torch.testing.assert_close(score(start), score(start + shift), atol=5e-5, rtol=0)

    @given(SEEDS)
    def test_a_rotation_keeps_lengths_and_what_lies_beyond_rotary_dim(self, seed: int) -> None:
        rotary = RotaryPositions(self.cfg)
        x = draw(1, 5, 2, 8, seed=seed)
        turned = rotary(x, rotary.rotation(torch.arange(5)[None], torch.float32))
        torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-6, rtol=0)
        assert torch.equal(turned[..., 4:], x[..., 4:])
        assert torch.equal(turned[:, 0], x[:, 0])

    def test_pairs_are_halves(self) -> None:
        rotary = RotaryPositions(self.cfg)
        x = torch.zeros(1, 1, 1, 8, dtype=torch.float64)
        x[..., 0] = 1.0
        turned = rotary(x, rotary.rotation(torch.tensor([[2]]), torch.float32))[0, 0, 0]
        torch.testing.assert_close(
            turned[[0, 2]],
            torch.tensor([2.0, 2.0]).double().cos() * torch.tensor([1.0, 0.0])
            + torch.tensor([2.0, 2.0]).double().sin() * torch.tensor([0.0, 1.0]),
            atol=1e-6,
            rtol=0,
        )


@pytest.mark.parametrize("d_model", [6, 7])
def test_sinusoids_are_those_of_the_paper(d_model: int) -> None:
    table = sinusoids(torch.arange(5), d_model)
    assert table.shape == (5, d_model)
    for pos in range(5):
        for i in range(d_model):
            angle = pos / 10000 ** (2 * (i // 2) / d_model)
            expected = math.sin(angle) if i % 2 == 0 else math.cos(angle)
            assert table[pos, i].item() == pytest.approx(expected, abs=1e-5)  # float32 angles


def test_gelu_new_is_its_formula() -> None:
    x = torch.linspace(-4, 4, 41, dtype=torch.float64)
    formula = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    torch.testing.assert_close(gelu_new(x), formula, **EXACT)
