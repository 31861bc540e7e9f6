"""Attention knockout against a naive loop, what it does to the pattern, and what it refuses.

The loop runs one prompt at a time, without padding. Everything is float64; TOLERANCE is for the rounding of different
kernels, relative to the largest number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from analyses import attention_knockout, head_scores
from analyses.attention_edges import AttentionKnockout, knockout
from interp import LabError, PromptPairs, tasks
from interp.sites import Site
from models import GPT, TransformerConfig, load
from tests.pairs import alone, random_pairs
from tests.strategies import SEEDS, models, random_model

TOLERANCE = 1e-9
SIZES: dict[str, Any] = {"n_layers": 3, "n_heads": 2, "d_model": 8, "d_head": 4, "d_mlp": 5, "d_vocab": 11, "n_ctx": 8}
MODEL = random_model(TransformerConfig(**SIZES), seed=7)
LOWEST = torch.finfo(torch.float64).min


def assert_close(found: Any, expected: Any) -> None:
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * scale)


def cut_scores(edges: Sequence[tuple[int, int]], heads: Sequence[int]) -> Callable[..., Tensor]:
    def hook(scores: Tensor, hook: Any = None) -> Tensor:
        scores = scores.clone()
        for (query, key), head in product(edges, heads):
            scores[:, head, query, key] = LOWEST
        return scores

    return hook


def naive(
    model: GPT, pairs: PromptPairs, edges: list[list[tuple[int, int]]], layers: Sequence[int], heads: Sequence[int]
) -> list[float]:
    """The logit difference of every prompt without its own edges, (query, key) in the padded batch."""
    found = []
    for prompt in range(len(pairs)):
        tokens, _, first = alone(pairs, prompt)
        length = tokens.shape[1]
        own = [(q - first, k - first) for q, k in edges[prompt]]
        own = [(q, k) for q, k in own if 0 <= q < length and 0 <= k < length]
        hook = cut_scores(own, heads)
        hooks = [(f"blocks.{layer}.attn.hook_attn_scores", hook) for layer in layers]
        with torch.no_grad():
            end = model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]
        right, wrong = ([i for i in ids[prompt].tolist() if i >= 0] for ids in (pairs.right, pairs.wrong))
        found.append(float(end[right].mean() - end[wrong].mean()))
    return found


@settings(max_examples=6)  # each is dozens of runs
@pytest.mark.parametrize("by", [("layer",), ("layer", "head")])
@given(models(), SEEDS, st.sampled_from(["left", "right"]), st.sets(st.integers(0, 4), min_size=1, max_size=3))
def test_knockout_equals_a_naive_loop(by: tuple[str, ...], model: GPT, seed: int, side: str, before: set[int]) -> None:
    """From each prompt's last token to some of those before it."""
    pairs = random_pairs(seed, (5, 3, 6), side)
    keys = (pairs.last[:, None] - 1 - torch.tensor(sorted(before))).clamp(min=0)
    result = attention_knockout(model, pairs, pairs.last[:, None], keys, by=by)
    last = pairs.last.tolist()
    edges = [[(last[i], key) for key in keys[i].tolist()] for i in range(3)]
    heads = range(model.cfg.n_heads)
    for layer in range(model.cfg.n_layers):
        if by == ("layer",):
            assert_close(result.raw[layer], naive(model, pairs, edges, [layer], heads))
            continue
        for head in heads:
            assert_close(result.raw[layer, head], naive(model, pairs, edges, [layer], [head]))


@pytest.mark.parametrize(
    ("window", "layers"),
    [(1, [[0], [1], [2]]), (2, [[0], [0, 1], [1, 2]]), (3, [[0, 1], [0, 1, 2], [1, 2]]), (9, [[0, 1, 2]] * 3)],
)
def test_a_window_stands_for_the_layers_around_it(window: int, layers: list[list[int]]) -> None:
    pairs = random_pairs(3, (6, 6))
    result = attention_knockout(MODEL, pairs, [-1, 2], [1, 0], window)
    edges = [[(5, 0), (5, 1), (2, 0), (2, 1)]] * 2
    assert_close(result.raw, [naive(MODEL, pairs, edges, each, range(2)) for each in layers])
    assert result.cut.tolist() == [4, 4]


def test_edges_to_the_future_and_to_padding_are_not_there() -> None:
    pairs = random_pairs(3, (6, 3), "left")
    result = attention_knockout(MODEL, pairs, [2, 4], [1, 3])
    assert result.cut.tolist() == [3, 1]  # 2-1, 4-1, 4-3; the second prompt begins at 3
    assert_close(result.raw[0], naive(MODEL, pairs, [[(2, 1), (4, 1), (4, 3)], [(4, 3)]], [0], range(2)))


def test_a_two_way_model_has_edges_to_the_future() -> None:
    model, pairs = random_model(TransformerConfig(**SIZES, attention_dir="bidirectional"), 5), random_pairs(3, (6, 6))
    result = attention_knockout(model, pairs, 0, [4, 5])
    assert result.cut.tolist() == [2, 2]
    assert_close(result.raw[1], naive(model, pairs, [[(0, 4), (0, 5)]] * 2, [1], range(2)))


@given(models(), SEEDS)
def test_the_padding_side_changes_nothing(model: GPT, seed: int) -> None:
    left, right = (random_pairs(seed, (5, 3, 6), side) for side in ("left", "right"))
    one, other = (attention_knockout(model, p, p.last[:, None], p.last[:, None] - 1, window=2) for p in (left, right))
    assert_close(one.raw, other.raw)


def test_a_model_that_cannot_resume_gives_the_same_numbers() -> None:
    pairs = random_pairs(3, (5, 3, 6))
    resumed = attention_knockout(MODEL, pairs, -1, -2, 2)
    with MODEL.hooks([("hook_embed", lambda old, hook: None)]):
        whole = attention_knockout(MODEL, pairs, -1, -2, 2)
    assert (resumed.way, whole.way) == ("resumed", "batched hooks")
    assert_close(resumed.raw, whole.raw)


def pattern(model: GPT, tokens: Tensor, edges: Tensor, head: int | None) -> Tensor:
    """The pattern of layer 1 without some edges."""
    name = "blocks.1.attn.hook_pattern"
    with torch.no_grad(), model.hooks([knockout(Site("attn_scores", 1, head=head), edges).as_hook()]):
        return model.run_with_cache(tokens, names_filter=[name])[1][name]


@given(models(n_layers=2), SEEDS, st.sampled_from([None, 0]))
def test_what_is_cut_has_no_weight_and_the_rest_takes_it(model: GPT, seed: int, head: int | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(11, (2, 6), generator=generator)
    edges = (torch.rand(2, 6, 6, generator=generator) < 0.5).tril(-1)
    name = "blocks.1.attn.hook_attn_scores"
    scores = model.run_with_cache(tokens, names_filter=[name])[1][name]
    cut = torch.zeros_like(scores, dtype=torch.bool)
    cut[:, slice(None) if head is None else [head]] = edges[:, None]
    found = pattern(model, tokens, edges, head)
    assert (found[cut] == 0).all()
    torch.testing.assert_close(found.sum(-1), torch.ones(2, model.cfg.n_heads, 6, dtype=torch.float64))
    torch.testing.assert_close(found, scores.masked_fill(cut, -torch.inf).softmax(-1), rtol=0, atol=TOLERANCE)


@given(models(n_layers=2), SEEDS)
def test_without_all_other_keys_everything_attends_to_itself(model: GPT, seed: int) -> None:
    tokens = torch.randint(11, (2, 5), generator=torch.Generator().manual_seed(seed))
    found = pattern(model, tokens, ~torch.eye(5, dtype=torch.bool).expand(2, 5, 5), None)
    assert torch.equal(found, torch.eye(5, dtype=torch.float64).expand_as(found))


def test_the_induction_heads_need_the_edge_to_the_token_after_the_first_copy() -> None:
    """The answer stands where the last token's first copy is followed by it; only layer 1 fetches it from there."""
    model = load("induction-2l")
    pairs = tasks.induction(model, n=8)
    source = pairs.clean.shape[1] // 2  # the start token, a block, its last token, and the block again
    assert torch.equal(pairs.clean[:, source], pairs.right[:, 0])
    result = attention_knockout(model, pairs, -1, source)
    assert result.base.mean() + result.values[1] < 0.1 * result.base.mean()
    assert abs(result.values[0]) < 0.05 * result.base.mean()
    heads = attention_knockout(model, pairs, -1, source, by=("layer", "head"))
    best = int(head_scores(model).induction[1].argmax())
    assert heads.values[1].argmin() == best


def test_a_result_says_what_it_shows_and_comes_back_from_its_file(tmp_path: Path) -> None:
    result = attention_knockout(MODEL, random_pairs(3, (6, 6)), -1, [0, 1], window=3)
    assert "cannot attend to the keys in 3 layers around each" in result.shows
    assert "self-repair" in result.to_html()
    assert result.provenance.settings == {"queries": -1, "keys": [0, 1], "window": 3}
    result.save(tmp_path / "result.safetensors")
    assert AttentionKnockout.load(tmp_path / "result.safetensors") == result


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "query": ({"queries": 6}, ["queries has position 6", "0 to 5", "-6 for the end"]),
    "key": ({"keys": [0, -7]}, ["keys has position -7"]),
    "no keys": ({"keys": []}, ["keys of shape [0]"]),
    "positions of other prompts": (
        {"keys": torch.zeros(3, 1, dtype=torch.long)},
        ["[3, 1]", "[batch n] for 2 prompts"],
    ),
    "the future": ({"queries": 1, "keys": [2, 3]}, ["there is no edge", "padding, or lie in the future"]),
    "the only key": ({"queries": [0, 1], "keys": 0}, ["query 0 of prompt 0 has nothing left to attend to"]),
    "everything": ({"queries": 3, "keys": [0, 1, 2, 3]}, ["query 3 of prompt 0 has nothing left"]),
    "window": ({"window": 0}, ["window=0", "at least one layer"]),
    "window of heads": ({"window": 2, "by": ("layer", "head")}, ["window=2 with heads told apart"]),
    "axes": ({"by": ("head",)}, ["by=('head',)", "('layer', 'head')"]),
    "metric": ({"metric": "logit_dif"}, ["unknown metric 'logit_dif'", "closest: 'logit_diff'"]),
}


@pytest.mark.parametrize(("arguments", "fragments"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_knocked_out_is_refused(arguments: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(LabError) as refused:
        attention_knockout(MODEL, random_pairs(3, (6, 6)), **{"queries": -1, "keys": 0} | arguments)
    for fragment in fragments:
        assert fragment in str(refused.value)
