"""Circuits, weights, roles, tracing and steering on TransformerLens's bridge: the numbers of our GPT.

Of the same weights, a GPT-2's and a Llama's with shared keys. Tolerance: 1e-4 absolute and relative, in float32, as in
`tests/parity/test_bridge_analyses.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import analyses
from interp.circuit import Circuit
from interp.errors import LabError
from tests.pairs import random_pairs
from tests.parity.bridge_models import VOCAB, Pair, both, saved

PROMPTS = random_pairs(3, lengths=(5, 4), side="left", d_vocab=VOCAB)

CIRCUIT_ANALYSES = {
    *("acdc", "auroc", "completeness", "edge_attribution", "edge_patching", "edge_pruning", "evaluate_circuits"),
    *("faithfulness_curve", "find_circuit", "greedy_edges", "minimality", "ranking_stability"),
    *("strongest_edges", "strongest_nodes"),
    *("circuit_eigenvalues", "copying_scores", "full_ov_circuit", "full_qk_circuit", "head_composition"),
    *("ov_circuit", "qk_circuit", "singular_directions", "virtual_weights", "head_roles"),
    *("ablate_direction", "add_direction", "causal_trace", "direction_ablation", "generate_with"),
    *("steering_effect", "steering_vectors"),
}
"""Those that are held to the bridge here, in themselves or in what is computed from them."""


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return both(saved(request.param, tmp_path_factory.mktemp(request.param)))


def _assert_same(pair: Pair, analysis: Callable[[Any], Any], *names: str) -> None:
    ours, theirs = (analysis(model) for model in pair)
    for name in names:
        expected, got = getattr(ours, name), getattr(theirs, name)
        assert np.abs(expected).max() > 1e-3, f"{name} is nothing to compare"
        np.testing.assert_allclose(got, expected, atol=1e-4, rtol=1e-4, err_msg=name)
    assert ours.labels == theirs.labels


def test_every_edge(pair: Pair) -> None:
    _assert_same(pair, lambda model: analyses.edge_patching(model, PROMPTS, normalize=False), "raw")


@pytest.mark.parametrize("method", ["EAP", "AtP", "RelP", "EAP-IG-inputs", "EAP-IG-activations"])
def test_estimates_of_every_edge(pair: Pair, method: str) -> None:
    _assert_same(
        pair, lambda model: analyses.edge_attribution(model, PROMPTS, normalize=False, method=method, steps=2), "raw"
    )


def test_runs_of_circuits(pair: Pair) -> None:
    scores = analyses.edge_patching(pair[0], PROMPTS, normalize=False)
    kept = analyses.strongest_edges(scores, 30, signed=True).kept
    _assert_same(
        pair,
        lambda model: analyses.evaluate_circuits(model, PROMPTS, Circuit.from_mask(scores.graph, kept)),
        *("values", "raw"),
    )


def test_weights_alone(pair: Pair) -> None:
    _assert_same(pair, analyses.circuit_eigenvalues, "values")
    _assert_same(pair, lambda model: analyses.singular_directions(model, "OV", 0, 1, n=3), "values")
    _assert_same(pair, lambda model: analyses.singular_directions(model, "mlp_out", 1, n=3), "values")
    ours, theirs = (analyses.head_composition(model).raw for model in pair)
    np.testing.assert_allclose(theirs, ours, atol=1e-4, rtol=1e-4)  # NaN where the receiver is not later


def test_copying_scores_and_roles(pair: Pair) -> None:
    """Shares of tokens count logits, so that one near-tie may fall the other way: at most one of the tokens."""
    ours, theirs = (analyses.copying_scores(model) for model in pair)
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    assert np.abs(ours.values - theirs.values).max() <= 1 / len(ours.tokens) + 1e-9
    roles = [analyses.head_roles(model, PROMPTS) for model in pair]
    for name in ("looks", "to right", "to wrong", "attribution", "directs"):
        np.testing.assert_allclose(roles[1].evidence(name), roles[0].evidence(name), atol=1e-3, err_msg=name)


@pytest.mark.parametrize("corruption", ["replacement", "noise"])
def test_causal_tracing(pair: Pair, corruption: str) -> None:
    noise = 0.1 if corruption == "noise" else None
    _assert_same(
        pair,
        lambda model: analyses.causal_trace(
            model, PROMPTS, corruption=corruption, noise=noise, draws=2, normalize=False
        ),
        *("values", "raw", "clean", "corrupted"),
    )


def test_steering(pair: Pair) -> None:
    _assert_same(pair, lambda model: analyses.steering_vectors(model, PROMPTS), "values", "length")
    vector = analyses.steering_vectors(pair[0], PROMPTS).vector(0)
    _assert_same(pair, lambda model: analyses.steering_effect(model, PROMPTS, vector, 0), "values", "length", "loss")
    _assert_same(pair, lambda model: analyses.direction_ablation(model, PROMPTS, vector[None]), "raw", "loss")


def test_generation_with_an_edit_is_for_the_lab_s_own_models(pair: Pair) -> None:
    edit = analyses.add_direction(analyses.steering_vectors(pair[0], PROMPTS).vector(0), 0)
    with pytest.raises(LabError):
        analyses.generate_with(pair[1], edit, PROMPTS.clean[:1], max_new_tokens=1)
