"""Every analysis gives the same numbers on TransformerLens's bridge and on our GPT of the same weights.

Tolerance: 1e-4 absolute and relative, in float32. Activations agree to 2e-6 (tests/models/test_bridge.py); an
analysis sums some hundred of them, and a normalised effect divides by a difference of two logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import analyses
from analyses.patching import patching_plan
from interp.contract import ResumableModel
from interp.prompts import PromptPairs
from models import GPT, load
from models.bridge import Bridge
from tests.checkpoints import FAMILIES, VOCAB, saved
from tests.pairs import random_pairs

Pair = tuple[GPT, Bridge]
SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern", "mlp_post")


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    directory = str(saved(request.param, tmp_path_factory.mktemp(request.param)))
    return load(directory), load(directory, backend="transformer-lens")


@pytest.fixture(scope="module")
def prompts() -> PromptPairs:
    return random_pairs(3, lengths=(5, 4), side="left", d_vocab=VOCAB)


def _assert_same(pair: Pair, analysis: Callable[[Any], Any], *names: str) -> None:
    ours, theirs = (analysis(model) for model in pair)
    for name in names:
        expected, got = getattr(ours, name), getattr(theirs, name)
        assert np.abs(expected).max() > 1e-3, f"{name} is nothing to compare"
        np.testing.assert_allclose(got, expected, atol=1e-4, rtol=1e-4, err_msg=name)
    assert ours.labels == theirs.labels


@pytest.mark.parametrize(("site", "direction"), [*((site, "denoise") for site in SITES), ("z", "noise")])
def test_activation_patching(pair: Pair, prompts: PromptPairs, site: str, direction: str) -> None:
    _assert_same(
        pair,
        lambda model: analyses.activation_patching(model, prompts, site=site, direction=direction, normalize=False),
        *("values", "raw", "clean", "corrupted"),
    )


def test_the_bridge_does_not_resume_and_says_so(pair: Pair, prompts: PromptPairs) -> None:
    ways = ["resumed", "batched hooks"]
    assert [isinstance(model, ResumableModel) for model in pair] == [True, False]
    assert [analyses.activation_patching(model, prompts, by="layer").way for model in pair] == ways
    ahead = [patching_plan(model, prompts, by="layer") for model in pair]
    assert [plan.way for plan in ahead] == ways
    assert "cannot resume a run" in str(ahead[1])


def test_logit_lens(pair: Pair) -> None:
    tokens = torch.randint(VOCAB, (9,), generator=torch.Generator().manual_seed(4))
    _assert_same(pair, lambda model: analyses.logit_lens(model, tokens), "logits", "entropy", "kl")


@pytest.mark.parametrize("component", ["attn_out", "mlp_out", "result"])
def test_component_lens(pair: Pair, component: str) -> None:
    tokens = torch.randint(VOCAB, (9,), generator=torch.Generator().manual_seed(4))
    _assert_same(pair, lambda model: analyses.component_lens(model, tokens, component), "logits")


def test_head_attribution(pair: Pair, prompts: PromptPairs) -> None:
    _assert_same(
        pair,
        lambda model: analyses.head_attribution(model, prompts),
        *("values", "mlp", "other", "by_prompt", "logit_diff"),
    )


def test_neuron_and_source_attribution(pair: Pair, prompts: PromptPairs) -> None:
    _assert_same(pair, lambda model: analyses.neuron_attribution(model, prompts), "values")
    _assert_same(pair, lambda model: analyses.source_attribution(model, prompts), "values")


def test_head_scores(pair: Pair) -> None:
    _assert_same(pair, lambda model: analyses.head_scores(model, n=4), "previous", "duplicate", "induction")


def test_weights_alone(pair: Pair) -> None:
    _assert_same(pair, analyses.circuit_eigenvalues, "values")
    _assert_same(pair, lambda model: analyses.singular_directions(model, "OV", 0, 1, n=3), "values")
    _assert_same(pair, lambda model: analyses.singular_directions(model, "mlp_out", 1, n=3), "values")
    ours, theirs = (analyses.head_composition(model).raw for model in pair)
    np.testing.assert_allclose(theirs, ours, atol=1e-4, rtol=1e-4)  # NaN where the receiver is not later


def test_copying_scores_and_roles(pair: Pair, prompts: PromptPairs) -> None:
    """Shares of tokens count logits, so that one near-tie may fall the other way: at most one of the tokens."""
    ours, theirs = (analyses.copying_scores(model) for model in pair)
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    assert np.abs(ours.values - theirs.values).max() <= 1 / len(ours.tokens) + 1e-9
    roles = [analyses.head_roles(model, prompts) for model in pair]
    for name in ("looks", "to right", "to wrong", "attribution", "directs"):
        np.testing.assert_allclose(roles[1].evidence(name), roles[0].evidence(name), atol=1e-3, err_msg=name)


@pytest.mark.parametrize("corruption", ["replacement", "noise"])
def test_causal_tracing(pair: Pair, prompts: PromptPairs, corruption: str) -> None:
    noise = 0.1 if corruption == "noise" else None
    _assert_same(
        pair,
        lambda model: analyses.causal_trace(
            model, prompts, corruption=corruption, noise=noise, draws=2, normalize=False
        ),
        *("values", "raw", "clean", "corrupted"),
    )


def test_steering(pair: Pair, prompts: PromptPairs) -> None:
    _assert_same(pair, lambda model: analyses.steering_vectors(model, prompts), "values", "length")
    vector = analyses.steering_vectors(pair[0], prompts).vector(0)
    _assert_same(pair, lambda model: analyses.steering_effect(model, prompts, vector, 0), "values", "length", "loss")
    _assert_same(pair, lambda model: analyses.direction_ablation(model, prompts, vector[None]), "raw", "loss")


def test_the_comparison_of_the_two_finds_no_difference(pair: Pair) -> None:
    tokens = torch.randint(VOCAB, (9,), generator=torch.Generator().manual_seed(4))
    difference = analyses.compare(*pair, tokens)
    assert difference.first_difference(1e-4) is None


def test_attention_patterns(pair: Pair) -> None:
    tokens = torch.randint(VOCAB, (9,), generator=torch.Generator().manual_seed(5))
    _assert_same(pair, lambda model: analyses.attention_patterns(model, tokens), "values")
