"""A comparison finds where a copy of a model goes wrong: at the first hook point that sees the planted error."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analyses import compare
from interp import LabError
from models import GPT, TransformerConfig
from tests.strategies import SEEDS, models, random_model, token_batches

ONE = token_batches(max_batch=1)


def somewhere(model: GPT, data: st.DataObject) -> int:
    return data.draw(st.integers(0, model.cfg.n_layers - 1), label="layer")


@given(models(), ONE)
def test_a_model_and_its_copy_do_not_differ(model: GPT, tokens: torch.Tensor) -> None:
    found = compare(model, deepcopy(model), tokens[0])
    assert found.first_difference() is None
    assert not found.difference.any()
    assert found.agreement == 1.0


@given(models(), ONE, st.data())
def test_another_heads_value_weights_show_first_at_its_layers_values(
    model: GPT, tokens: torch.Tensor, data: st.DataObject
) -> None:
    other, layer = deepcopy(model), somewhere(model, data)
    head = data.draw(st.integers(0, model.cfg.n_kv_heads - 1), label="head")
    with torch.no_grad():
        other.blocks[layer].attn.W_V[head] *= 1.5
    assert compare(model, other, tokens[0]).first_difference() == f"blocks.{layer}.attn.hook_v"


@given(models(normalization_type="LN", norm_places="pre"), ONE, st.data())
def test_another_epsilon_of_a_norm_shows_first_at_its_scale(
    model: GPT, tokens: torch.Tensor, data: st.DataObject
) -> None:
    other, layer = deepcopy(model), somewhere(model, data)
    other.blocks[layer].ln1.eps += 0.5
    assert compare(model, other, tokens[0]).first_difference() == f"blocks.{layer}.ln1.hook_scale"


@given(SEEDS, ONE)
def test_another_rotary_base_shows_first_at_the_rotated_queries(seed: int, tokens: torch.Tensor) -> None:
    sizes = {"n_layers": 2, "n_heads": 2, "d_model": 12, "d_head": 6, "d_vocab": 11, "n_ctx": 10}
    cfg = TransformerConfig(**sizes, positional_embedding_type="rotary", rotary_base=10000.0)
    wrong = random_model(replace(cfg, rotary_base=500.0), seed)
    assert compare(random_model(cfg, seed), wrong, tokens[0]).first_difference() == "blocks.0.attn.hook_rot_q"


def test_models_of_different_vocabularies_are_refused() -> None:
    sizes = {"n_layers": 1, "n_heads": 2, "d_model": 8, "n_ctx": 8}
    a, b = (random_model(TransformerConfig(**sizes, d_vocab=size)) for size in (11, 12))
    with pytest.raises(LabError, match="vocabularies of 11 and 12 tokens"):
        compare(a, b, torch.tensor([1, 2]))
