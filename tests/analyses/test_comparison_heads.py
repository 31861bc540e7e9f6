"""Heads are matched by where they look and by their roles, wherever the other model has put them."""

from __future__ import annotations

from copy import deepcopy
from math import sqrt

import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from analyses import head_matching, head_scores
from interp import LabError
from models import GPT, TransformerConfig
from tests.strategies import SEEDS, models, random_model, token_batches

SIZES = {"n_layers": 2, "n_heads": 4, "d_model": 12, "d_vocab": 11, "n_ctx": 16}


def with_heads_permuted(model: GPT, orders: list[list[int]]) -> GPT:
    """The same function, the heads of each layer in another order."""
    other = deepcopy(model)
    with torch.no_grad():
        for block, old, order in zip(other.blocks, model.blocks, orders, strict=True):
            for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V"):
                weights = getattr(old.attn, name)
                if weights is not None:
                    getattr(block.attn, name).copy_(weights[order].clone())
    return other


@given(SEEDS, st.tuples(st.permutations(range(4)), st.permutations(range(4))), token_batches(min_pos=4, max_batch=2))
def test_a_copy_with_its_heads_permuted_is_matched_back(
    seed: int, orders: tuple[list[int], list[int]], tokens: Tensor
) -> None:
    model = random_model(TransformerConfig(**SIZES), seed)
    other = with_heads_permuted(model, list(orders))
    torch.testing.assert_close(model(tokens), other(tokens))
    found = head_matching(model, other, tokens)
    expected = {
        f"L{layer}H{old}": f"L{layer}H{new}" for layer, order in enumerate(orders) for new, old in enumerate(order)
    }
    for by in ("pattern", "role"):
        matches = found.matches(by)
        assert {match.a: match.b for match in matches} == expected
        assert all(match.mutual for match in matches)
        assert min(match.similarity for match in matches) > 1 - 1e-6  # scores are float32


@given(models(), models(), token_batches(min_pos=2))
def test_similarity_is_bhattacharyyas_coefficient_query_by_query(a: GPT, b: GPT, tokens: Tensor) -> None:
    found = head_matching(a, b, tokens)

    def patterns(model: GPT) -> Tensor:
        cache = model.run_with_cache(tokens)[1]
        names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
        return torch.cat([cache[name].detach() for name in names], 1)

    beginnings: set[tuple[int, ...]] = set()
    queries = []
    for row, ids in enumerate(tokens.tolist()):
        for q in range(1, len(ids)):
            if tuple(ids[: q + 1]) not in beginnings:
                queries.append((row, q))
                beginnings.add(tuple(ids[: q + 1]))
    assert found.queries == len(queries)
    all_a, all_b = patterns(a), patterns(b)
    for i in range(all_a.shape[1]):
        for j in range(all_b.shape[1]):
            alike = [
                sum(sqrt(x * y) for x, y in zip(all_a[row, i, q].tolist(), all_b[row, j, q].tolist(), strict=True))
                for row, q in queries
            ]
            assert found.pattern[i, j] == pytest.approx(np.mean(alike), abs=1e-9)
    assert (found.pattern >= -1e-12).all()
    assert (found.pattern <= 1 + 1e-12).all()


def test_roles_are_those_of_head_scores_and_alike_by_their_distance() -> None:
    a, b = (random_model(TransformerConfig(**SIZES), seed) for seed in (0, 1))
    found = head_matching(a, b, torch.tensor([1, 2, 3]), seed=4)
    for model, scores in ((a, found.scores_a), (b, found.scores_b)):
        assert np.array_equal(scores, rearrange(head_scores(model, seed=4).values, "r l h -> r (l h)"))
    x, y = found.scores_a[:, 2].astype(float), found.scores_b[:, 5].astype(float)
    assert found.role[2, 5] == pytest.approx(1 - np.sqrt(((x - y) ** 2).sum() / 3))


def test_only_one_of_two_heads_that_look_alike_has_a_mutual_match() -> None:
    model = random_model(TransformerConfig(**SIZES, attn_only=True))
    other = deepcopy(model)
    with torch.no_grad():
        other.blocks[0].attn.W_Q[1] = model.blocks[0].attn.W_Q[0]
        other.blocks[0].attn.W_K[1] = model.blocks[0].attn.W_K[0]
        for bias in ("b_Q", "b_K"):
            if getattr(other.blocks[0].attn, bias) is not None:
                getattr(other.blocks[0].attn, bias)[1] = getattr(model.blocks[0].attn, bias)[0]
    twins = [m for m in head_matching(other, model, torch.tensor([1, 2, 3, 7, 5, 1, 9])).matches() if m.b == "L0H0"]
    assert [(m.a, m.mutual) for m in twins][:2] == [("L0H0", True), ("L0H1", False)]


def test_heads_of_a_model_too_short_for_a_repeat_are_matched_by_pattern_alone() -> None:
    short = random_model(TransformerConfig(**SIZES | {"n_ctx": 3}))
    found = head_matching(short, short, torch.tensor([1, 2, 3]))
    assert np.isnan(found.role).all()
    assert len(found.matches()) == 8
    with pytest.raises(LabError, match="no role of the heads is known; try by='pattern'"):
        found.matches("role")
    assert len(found.plot().data) == 1


def test_what_cannot_be_matched_is_refused() -> None:
    model = random_model(TransformerConfig(**SIZES))
    with pytest.raises(LabError, match="every head can look at one place only"):
        head_matching(model, model, torch.tensor([1]))
    with pytest.raises(LabError, match="unknown similarity 'weights'"):
        head_matching(model, model, torch.tensor([1, 2])).matches("weights")
