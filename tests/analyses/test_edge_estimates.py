"""Edge attribution against automatic differentiation of its definition, edge by edge; its sums; what it refuses.

Everything is float64; TOLERANCE is for the rounding of different kernels, relative to the largest number.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from analyses import edge_attribution, edge_patching, edge_products
from analyses.edge_estimates import EdgeAttributionResult, edge_scores_of
from interp import LabError, PromptPairs, Site, metrics
from interp.graph import Graph
from interp.results import Result
from models import GPT, TransformerConfig, load
from tests.hooked_edges import Hooked
from tests.pairs import pairs, random_pairs
from tests.strategies import SUMMED, halve_matrices, models, random_model

TOLERANCE = 1e-9
SIZES: dict[str, Any] = {"n_layers": 2, "n_heads": 2, "d_model": 12, "d_head": 4, "d_vocab": 11, "n_ctx": 10}
MODEL = random_model(TransformerConfig(**SIZES), seed=3)
STEPS = 2
DERIVATIVES = ("EAP", "EAP-IG-inputs", "EAP-IG-activations")


def toward(own: Tensor, other: Tensor, share: float) -> Any:
    return lambda activation, hook: other + share * (own - other)


def runs_of(hooked: Hooked, method: str, sender: Site) -> list[list[Any]]:
    """The edits of the runs that the gradients of an edge from this sender are a mean over."""
    if method == "EAP":
        return [[]]
    steps = range(STEPS) if method == "EAP-IG-inputs" else range(1, STEPS + 1)
    name = Site("resid_pre", 0).hook_name if method == "EAP-IG-inputs" else sender.hook_name
    return [[(name, toward(hooked.own[name], hooked.other[name], k / STEPS))] for k in steps]


def by_definition(hooked: Hooked, graph: Graph, method: str) -> Tensor:
    """[edge prompt], or [edge pos prompt]."""
    slopes: dict[Any, Tensor] = {}
    changes, found = [hooked.written(sender) for sender in graph.senders], []
    for one, other in graph.ends.tolist():
        sender, receiver = graph.senders[one], graph.receivers[other]
        group = sender.hook_name if method == "EAP-IG-activations" else ""
        if (group, receiver) not in slopes:
            runs = runs_of(hooked, method, sender)
            slopes[group, receiver] = torch.stack([hooked.slope(receiver, edits) for edits in runs]).mean(0)
        products = (changes[one] * slopes[group, receiver]).sum(-1)
        found.append(products.sum(1) if graph.n_pos is None else products.T)
    return torch.stack(found)


def assert_same(found: np.ndarray, expected: Any) -> None:
    expected = np.asarray(expected)
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=TOLERANCE * max(1.0, float(np.nan_to_num(np.abs(expected)).max()))
    )


def scores(result: EdgeAttributionResult) -> np.ndarray:
    return result.raw - (result.clean if result.direction == "noise" else result.corrupted)


@pytest.mark.usefixtures("unchecked")  # for speed; other tests check annotations
@given(
    models(**SUMMED),
    pairs(max_pos=4, max_prompts=2),
    st.sampled_from(["noise", "denoise"]),
    st.sampled_from(["logit_diff", "log_prob", "cross_entropy"]),
    st.sampled_from(DERIVATIVES),
)
def test_scores_are_the_derivatives_of_the_definition(
    model: GPT, pairs: PromptPairs, direction: str, name: str, method: str
) -> None:
    """On any architecture, padding on either side."""
    assume(int(pairs.mask.sum(1).min()) > 1)  # one token has no cross-entropy, and no logit of the last one is in it
    assume(name != "cross_entropy" or bool((pairs.first_difference < pairs.last).any()))
    halve_matrices(model)  # without norms, order-one weights give derivatives of 1e11, and rounding grows with them
    settings = {"method": method, "steps": STEPS, "checks": 1, "normalize": False}
    result = edge_attribution(model, pairs, name, direction, **settings)
    hooked = Hooked.of(model, pairs, direction, metrics.get(name))
    assert_same(scores(result), by_definition(hooked, result.graph, method))


@pytest.mark.usefixtures("unchecked")
@settings(max_examples=6)
@given(models(n_layers=2, d_mlp=3, **SUMMED), st.integers(0, 99), st.booleans())
def test_scores_at_one_position_or_of_one_neuron_are_the_derivatives(model: GPT, seed: int, neurons: bool) -> None:
    pairs = random_pairs(seed, (3, 3))
    graph = Graph.of(model, neurons=neurons and not model.cfg.attn_only, n_pos=3)
    result = edge_attribution(model, pairs, graph=graph, checks=1, normalize=False)
    assert_same(scores(result), by_definition(Hooked.of(model, pairs, "noise", metrics.logit_diff), graph, "EAP"))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"normalization_type": "RMS", "n_key_value_heads": 1, "gated_mlp": True},
        {"parallel_attn_mlp": True, "positional_embedding_type": "rotary"},
        {"norm_places": "both"},
    ],
)
def test_as_steps_grow_the_edges_from_the_input_add_up_to_the_whole_difference(kind: dict[str, Any]) -> None:
    """The error of a sum of m rectangles is of the order 1 / m: with eight times as many it is about an eighth."""
    model, pairs = random_model(TransformerConfig(**SIZES, **kind), seed=3), random_pairs(3, (4, 5))
    errors = []
    for steps in (16, 128):
        result = edge_attribution(model, pairs, method="EAP-IG-inputs", steps=steps, checks=1, normalize=False)
        from_input = result.graph.ends[:, 0] == 0
        whole = result.corrupted - result.clean
        errors.append(np.abs(scores(result)[from_input].sum(0) - whole).max())
    assert errors[1] < 0.2 * errors[0]
    assert errors[1] < 0.04 * np.abs(whole).max()


@pytest.mark.usefixtures("unchecked")
def test_as_steps_grow_the_edges_from_a_layers_heads_add_up_to_what_replacing_them_does() -> None:
    pairs = random_pairs(4, (4, 5))
    result = edge_attribution(MODEL, pairs, method="EAP-IG-activations", steps=64, checks=1, normalize=False)
    graph = result.graph
    _, cache = MODEL.run_with_cache(pairs.corrupted, attention_mask=pairs.mask, names_filter=lambda name: True)
    for point in (Site("z", 0).hook_name, Site("mlp_out", 0).hook_name):
        with torch.no_grad(), MODEL.hooks([(point, lambda activation, hook: cache[hook.name])]):
            patched = metrics.logit_diff(MODEL(pairs.clean, attention_mask=pairs.mask), pairs)
        mine = np.array([graph.senders[sender].hook_name == point for sender in graph.ends[:, 0]])
        change = patched.numpy() - result.clean
        # A sum of m rectangles is off by half of (slope at one end - slope at the other) / m, here by 7 % for m = 64.
        np.testing.assert_allclose(scores(result)[mine].sum(0), change, atol=0.1 * np.abs(change).max())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("method", ["EAP-IG-inputs", "EAP-IG-activations"])
def test_runs_along_a_way_leave_out_the_positions_that_they_do_not_change(
    method: str, positions: str, side: Any
) -> None:
    model = random_model(TransformerConfig(**SIZES, positional_embedding_type=positions), seed=4)
    pairs = random_pairs(8, (7, 5, 7), side)
    pairs = replace(pairs, corrupted=torch.cat([pairs.clean[:, :4], pairs.corrupted[:, 4:]], 1))
    start, seen = int(pairs.first_difference.min()), []
    forward, graph, metric = model.forward, Graph.of(model), metrics.get("logit_diff")
    with patch.object(model, "forward", lambda tokens, **rest: seen.append(tokens.shape[1]) or forward(tokens, **rest)):
        found = edge_scores_of(model, pairs, metric, graph, method, STEPS)
    assert start >= 4
    assert seen[2:] == [7 - start] * len(seen[2:])  # after the two runs that are compared
    assert_same(found.effects, by_definition(Hooked.of(model, pairs, "noise", metric), graph, method))


@pytest.mark.parametrize("value", ["mean", "zero"])
@pytest.mark.filterwarnings("ignore:zero ablation")
def test_estimates_are_of_what_edge_patching_with_the_same_value_gives(value: str) -> None:
    """Edges into the logits of a model without norms are linear, so there both agree."""
    model = random_model(TransformerConfig(**SIZES, normalization_type=None), seed=6)
    pairs = random_pairs(3, (4, 4))
    estimated = edge_attribution(model, pairs, value=value)
    exact = edge_patching(model, pairs, value=value)
    into = estimated.graph.of_receiver(len(estimated.graph.receivers) - 1)
    np.testing.assert_allclose(estimated.values[into], exact.values[into], atol=TOLERANCE)
    assert not estimated.normalized


def test_the_largest_estimates_are_checked_exactly() -> None:
    pairs = random_pairs(5)
    result, exact = edge_attribution(MODEL, pairs, checks=7), edge_patching(MODEL, pairs)
    checked = ~np.isnan(result.exact)
    assert checked.sum() == result.agreement.n == 7
    assert set(np.flatnonzero(checked)) == {entry.index[0] for entry in result.top(7)}
    np.testing.assert_allclose(result.exact[checked], exact.values[checked], atol=TOLERANCE)
    assert str(result.agreement) in result.caveat
    assert result.to_dict()["agreement"]["n"] == 7


def test_batches_and_parts_change_nothing() -> None:
    pairs = random_pairs(6, (6, 3, 5))
    whole = edge_attribution(MODEL, pairs, checks=1)
    with patch.object(edge_products, "PART", 2000):  # about three positions
        parts = edge_attribution(MODEL, pairs, checks=1)
    np.testing.assert_allclose(parts.raw, whole.raw, atol=TOLERANCE)
    split = edge_attribution(MODEL, pairs, checks=1, budget=100_000)
    np.testing.assert_allclose(split.raw, whole.raw, atol=TOLERANCE)


def test_the_result_is_the_same_after_saving(tmp_path: Path) -> None:
    result = edge_attribution(MODEL, random_pairs(7), method="EAP-IG-inputs", steps=2)
    result.save(tmp_path / "scores.safetensors")
    assert Result.load(tmp_path / "scores.safetensors") == result
    assert result.provenance.settings == {"method": "EAP-IG-inputs", "steps": 2, "checks": 10}
    assert len(result.plot().data[0].x) == 30


def test_in_bfloat16_scores_are_those_of_float32_to_its_rounding() -> None:
    """bfloat16 keeps 8 bits, and a score is a sum over positions of products of such numbers."""
    from interp import tasks

    wide, narrow = load("town"), load("town", dtype=torch.bfloat16)
    pairs = tasks.ioi(wide, n=4)
    one, other = (edge_attribution(model, pairs, checks=1, normalize=False).values for model in (wide, narrow))
    assert np.corrcoef(one, other)[0, 1] > 0.99
    np.testing.assert_allclose(other, one, atol=0.05 * np.abs(one).max())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "kl"}, "the gradient is zero there"),
        ({"metric": "rank"}, "has no gradient"),
        ({"method": "EAP-IG"}, "unknown method 'EAP-IG'"),
        ({"method": "EAP-IG-inputs", "steps": 0}, "expected at least 1 of each"),
        ({"checks": 0}, "expected at least 1 of each"),
        ({"value": "mean", "direction": "denoise"}, "senders take their outputs of the clean run"),
        ({"metric": lambda logits: logits[:, -1].argmax(-1).double()}, "no gradient"),
        ({"metric": lambda logits: (logits[:, -1, 0] - logits[:, -1, 0].detach()) ** 2}, "vanishes at the run"),
    ],
)
def test_what_gradients_cannot_answer_is_refused_in_words(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        edge_attribution(MODEL, random_pairs(9), **arguments)


def test_kl_has_scores_where_its_gradient_is_not_zero() -> None:
    pairs = random_pairs(9)
    assert np.abs(edge_attribution(MODEL, pairs, "kl", "denoise", checks=1).values).max() > 1e-3
    assert np.abs(edge_attribution(MODEL, pairs, "kl", method="EAP-IG-inputs", checks=1).values).max() > 1e-3
