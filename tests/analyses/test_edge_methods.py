"""RelP and AtP at edges against their definitions, written plainly; what they make of the town; what they refuse.

Everything but the town is float64; TOLERANCE is for the rounding of different kernels, relative to the largest number.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from analyses import edge_attribution, edge_patching
from interp import LabError, PromptPairs, Site, metrics, tasks
from interp.graph import Graph
from models import GPT, TransformerConfig, load
from tests.hooked_edges import Hooked, only
from tests.pairs import pairs, random_pairs
from tests.strategies import SUMMED, halve_matrices, models, random_model

TOLERANCE = 1e-9
SIZES: dict[str, Any] = {"n_layers": 2, "n_heads": 2, "d_model": 12, "d_head": 4, "d_vocab": 11, "n_ctx": 10}


class HeldNorm(nn.Module):
    """A norm of ours, written out, with its scale held: x̂ = (x - mean) / scale, the scale without a gradient."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.norm, self.axes = norm, (-2, -1) if type(norm).__name__ == "WidthNorm" else (-1,)

    def forward(self, x: Tensor) -> Tensor:
        if type(self.norm).__name__ == "NoNorm":
            return x
        x = x - x.mean(-1, keepdim=True) if type(self.norm).__name__ == "LayerNorm" else x
        scale = (x**2).mean(self.axes, keepdim=True).add(self.norm.eps).sqrt().detach()
        gain = 1.0 if self.norm.gain is None else self.norm.gain.reshape(x.shape[-len(self.axes) :])
        bias = getattr(self.norm, "b", None)
        return x / scale * gain + (0.0 if bias is None else bias)

    unhooked = forward


class SharingMLP(nn.Module):
    """An MLP of ours, written out: f(x) as x times a constant, and half of a gated product as a constant."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        mlp, gated = self.mlp, hasattr(self.mlp, "gate")
        pre = mlp.gate(x) if gated else mlp.in_(x)
        post = pre * (mlp.act(pre) / pre).detach()
        if gated:
            product = post * mlp.in_(x)
            post = product / 2 + (product / 2).detach()
        return mlp.out(post)


def relevant(model: GPT) -> GPT:
    """The same model with a backward by the rules."""
    twin = copy.deepcopy(model)
    for block in twin.blocks:
        for parent in (block, block.attn):
            for name in ("ln1", "ln2", "ln1_post", "ln2_post", "q_norm", "k_norm"):
                if hasattr(parent, name):
                    setattr(parent, name, HeldNorm(getattr(parent, name)))
        if hasattr(block, "mlp"):
            block.mlp = SharingMLP(block.mlp)
    twin.ln_final = HeldNorm(twin.ln_final)
    return twin


def slopes_times_changes(hooked: Hooked, twin: GPT, graph: Graph) -> Tensor:
    """[edge prompt], or [edge pos prompt]: what every sender changes times the twin's gradient at every receiver."""
    changes = [hooked.written(sender) for sender in graph.senders]
    backward = Hooked(twin, hooked.runs, hooked.metric, hooked.own, hooked.other)
    slopes = [backward.slope(receiver, []) for receiver in graph.receivers]
    products = [(changes[one] * slopes[other]).sum(-1) for one, other in graph.ends.tolist()]
    return torch.stack([each.sum(1) if graph.n_pos is None else each.T for each in products])


def patched_patterns_times_slopes(hooked: Hooked, graph: Graph) -> Tensor:
    """[edge prompt], or [edge pos prompt], of edges into queries and keys; the others' are 0."""
    model, runs = hooked.model, hooked.runs
    names = [Site("pattern", layer).hook_name for layer in range(graph.n_layers)]
    kept: dict[str, Tensor] = {}

    def keep(pattern: Tensor, hook: Any) -> Tensor:
        kept[hook.name] = pattern if pattern.requires_grad else pattern.detach().requires_grad_()
        return kept[hook.name]

    with torch.enable_grad(), model.hooks([(name, keep) for name in names]):
        score = hooked.metric(model(runs.clean, attention_mask=runs.mask), runs)
    slopes = dict(zip(names, torch.autograd.grad(score.sum(), [kept[name] for name in names]), strict=True))

    def effect(delta: Tensor, receiver: Site) -> Tensor:
        name, seen = Site("pattern", receiver.layer).hook_name, []

        def look(pattern: Tensor, hook: Any) -> None:
            seen.append(pattern.clone())

        with torch.no_grad(), model.hooks([(name, look)]):
            hooked.effect(delta, receiver)
        return ((seen[0] - hooked.own[name]) * slopes[name]).sum((1, 2, 3))

    found = []
    for one, other in graph.ends.tolist():
        receiver, delta = graph.receivers[other], hooked.written(graph.senders[one])
        deltas = [delta] if graph.n_pos is None else [only(delta, pos) for pos in range(graph.n_pos)]
        if receiver is None or receiver.kind not in ("q", "k"):
            found.append(torch.zeros(len(deltas), len(delta)))
        else:
            found.append(torch.stack([effect(each, receiver) for each in deltas]))
    return torch.stack(found) if graph.n_pos is not None else torch.stack(found)[:, 0]


def softmaxed(graph: Graph) -> np.ndarray:
    """True for edges into queries and keys."""
    kinds = [getattr(graph.receivers[other], "kind", None) for _, other in graph.ends.tolist()]
    return np.isin(kinds, ["q", "k"])


def scores(model: GPT, runs: PromptPairs, method: str, graph: Graph | None = None, **settings: Any) -> np.ndarray:
    result = edge_attribution(model, runs, graph=graph, method=method, checks=1, normalize=False, **settings)
    return result.raw - (result.clean if result.direction == "noise" else result.corrupted)


def assert_same(found: np.ndarray, expected: Any) -> None:
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * max(1.0, float(np.abs(expected).max())))


@pytest.mark.usefixtures("unchecked")  # for speed; other tests check annotations
@given(models(**SUMMED), pairs(max_pos=4, max_prompts=2), st.sampled_from(["noise", "denoise"]))
def test_relevance_is_the_derivative_with_parts_held_constant(model: GPT, runs: PromptPairs, direction: str) -> None:
    """On any architecture, padding on either side."""
    halve_matrices(model)
    hooked = Hooked.of(model, runs, direction, metrics.logit_diff)
    expected = slopes_times_changes(hooked, relevant(model), Graph.of(model))
    assert_same(scores(model, runs, "RelP", direction=direction), expected)


@pytest.mark.usefixtures("unchecked")
@settings(max_examples=6)
@given(models(n_layers=2, d_mlp=3, attn_only=False, **SUMMED), st.integers(0, 99), st.booleans())
def test_relevance_at_one_position_or_of_one_neuron_is_that_too(model: GPT, seed: int, neurons: bool) -> None:
    runs = random_pairs(seed, (3, 3))
    graph = Graph.of(model, neurons=neurons, n_pos=3)
    hooked = Hooked.of(model, runs, "noise", metrics.logit_diff)
    assert_same(scores(model, runs, "RelP", graph), slopes_times_changes(hooked, relevant(model), graph))


PLAIN: dict[str, Any] = {"attn_scale": None, "attn_scores_soft_cap": None, "qk_norm": None}
"""Scores that are q . k / sqrt(d_head), rotated or not."""


@pytest.mark.usefixtures("unchecked")
@settings(max_examples=12)
@given(models(**PLAIN, **SUMMED), pairs(max_pos=4, max_prompts=2), st.booleans())
def test_edges_into_queries_and_keys_have_the_pattern_that_they_give_times_its_slope(
    model: GPT, runs: PromptPairs, by_position: bool
) -> None:
    """Exactly as the model itself gives it, whichever way it turns its queries; all other edges are those of EAP."""
    by_position = by_position and not runs.padded
    graph = Graph.of(model, n_pos=runs.clean.shape[1] if by_position else None)
    hooked, found = Hooked.of(model, runs, "noise", metrics.logit_diff), scores(model, runs, "AtP", graph)
    mine = softmaxed(graph)
    assert_same(found[mine], patched_patterns_times_slopes(hooked, graph)[torch.from_numpy(mine)])
    assert_same(found[~mine], scores(model, runs, "EAP", graph)[~mine])


def test_rows_of_the_fix_by_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few senders and prompts are taken at a time."""
    model, runs = random_model(TransformerConfig(**SIZES, n_key_value_heads=1), seed=3), random_pairs(6, (6, 3, 5))
    whole = scores(model, runs, "AtP")
    for part in (1, 800):  # a sender and a prompt; a sender and two prompts
        monkeypatch.setattr("analyses.edge_softmax.PART", part)
        assert_same(scores(model, runs, "AtP"), whole)


@pytest.mark.parametrize("kind", [{"attn_scale": 1.5}, {"attn_scores_soft_cap": 2.0}])
def test_the_fix_refuses_scores_of_another_formula(kind: dict[str, Any]) -> None:
    model = random_model(TransformerConfig(**SIZES, **kind), seed=3)
    with pytest.raises(LabError, match=r"another formula.*method='EAP'"):
        edge_attribution(model, random_pairs(3), method="AtP")


@pytest.mark.parametrize("norm", ["head", "width"])
def test_the_fix_refuses_queries_that_are_normalised_on_the_way(norm: str) -> None:
    model = random_model(TransformerConfig(**SIZES, positional_embedding_type="rotary", qk_norm=norm), seed=3)
    with pytest.raises(LabError, match=r"a norm lies in between.*method='EAP'"):
        edge_attribution(model, random_pairs(3), method="AtP")


def test_both_come_nearer_to_exact_effects_in_the_town_than_gradients_do() -> None:
    """Correlation with exact patching of all edges; seen: EAP 0.80, RelP 0.97; into queries and keys EAP 0.25, 0.42,
    AtP 0.93, 0.99."""
    town = load("town")
    runs = tasks.ioi(town, n=8, seed=0)
    exact = edge_patching(town, runs, progress=False).values
    found = {name: edge_attribution(town, runs, method=name, checks=1) for name in ("EAP", "AtP", "RelP")}
    mine = softmaxed(found["EAP"].graph)

    def agreement(name: str, edges: Any = slice(None)) -> float:
        return float(np.corrcoef(found[name].values[edges], exact[edges])[0, 1])

    assert agreement("RelP") > 0.9 > agreement("EAP")
    assert agreement("AtP", mine) > 0.9 > 0.6 > agreement("EAP", mine)


def test_relevance_leaves_the_run_as_it_is() -> None:
    runs = random_pairs(4)
    for kind in ({}, {"gated_mlp": True, "normalization_type": "RMS"}):
        model = random_model(TransformerConfig(**SIZES, **kind), seed=5)
        one, other = (edge_attribution(model, runs, method=name, checks=1) for name in ("EAP", "RelP"))
        np.testing.assert_allclose(one.clean, other.clean, rtol=1e-12)
        assert not [point for point in model.hook_dict.values() if point.has_hooks()]
