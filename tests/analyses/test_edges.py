"""Edge patching against the definition, edge by edge through hooks; its identities; what it refuses.

Everything is float64; TOLERANCE is for the rounding of different kernels, relative to the largest number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses import activation_patching, edge_patching, path_patching
from analyses.edges import EdgePatchingResult, edge_patching_plan
from interp import LabError, PromptPairs, Site, metrics
from interp.circuit import Circuit
from interp.graph import Graph
from interp.results import Result
from models import GPT, TransformerConfig, load
from tests.checkpoints import VOCAB, saved
from tests.hooked_edges import Hooked
from tests.pairs import pairs, random_pairs
from tests.strategies import ADDITIVE, SUMMED, models, random_model

TOLERANCE = 1e-9
SIZES: dict[str, Any] = {"n_layers": 2, "n_heads": 2, "d_model": 12, "d_head": 4, "d_vocab": 11, "n_ctx": 10}
MODEL = random_model(TransformerConfig(**SIZES), seed=3)


def assert_same(found: np.ndarray, expected: Any) -> None:
    expected = np.asarray(expected)
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=TOLERANCE * max(1.0, float(np.nan_to_num(np.abs(expected)).max()))
    )


@contextmanager
def zeros_are_warned_of() -> Iterator[None]:
    with pytest.warns(UserWarning, match="zero ablation"):
        yield


@pytest.mark.usefixtures("unchecked")  # for speed: hundreds of tiny forwards; other tests check annotations
@given(
    models(**SUMMED),
    pairs(max_pos=4, max_prompts=2),
    st.sampled_from(["noise", "denoise"]),
    st.sampled_from(["logit_diff", "log_prob", "cross_entropy"]),
)
def test_every_edges_effect_is_the_definitions(model: GPT, pairs: PromptPairs, direction: str, name: str) -> None:
    """On any architecture, padding on either side."""
    result = edge_patching(model, pairs, name, direction, normalize=False)
    expected = Hooked.of(model, pairs, direction, metrics.get(name)).every_edge(result.graph)
    assert_same(result.raw, expected)


@pytest.mark.usefixtures("unchecked")
@settings(max_examples=6)
@given(models(n_layers=1, d_mlp=4, **SUMMED), st.integers(0, 99), st.booleans())
def test_every_edges_effect_at_one_position_or_of_one_neuron_is_the_definitions(
    model: GPT, seed: int, neurons: bool
) -> None:
    pairs = random_pairs(seed, (3, 3))
    graph = Graph.of(model, neurons=neurons and not model.cfg.attn_only, n_pos=3)
    result = edge_patching(model, pairs, graph=graph, normalize=False)
    assert result.values.shape == graph.shape
    assert_same(result.raw, Hooked.of(model, pairs, "noise", metrics.logit_diff).every_edge(graph))


@pytest.mark.parametrize("pos", [0, 2, 4])
def test_prompts_that_differ_at_one_position_give_the_definitions_effects(pos: int) -> None:
    """Before it, nothing is computed; the third prompt's two sides are the same."""
    pairs = random_pairs(4, (5, 5, 5))
    corrupted = pairs.clean.clone()
    corrupted[:2, pos] = (corrupted[:2, pos] + 1) % SIZES["d_vocab"]
    pairs = PromptPairs(pairs.clean, corrupted, pairs.mask, pairs.right, pairs.wrong)
    result = edge_patching(MODEL, pairs, normalize=False)
    assert_same(result.raw, Hooked.of(MODEL, pairs, "noise", metrics.logit_diff).every_edge(result.graph))
    assert (result.raw[:, 2] == result.clean[2]).all()


@pytest.mark.parametrize("value", ["mean", "zero"])
def test_senders_are_replaced_by_their_mean_or_by_nothing(value: str) -> None:
    pairs = random_pairs(4, (5, 5, 5))
    hooked = Hooked.of(MODEL, pairs, "noise", metrics.logit_diff)
    for name, activation in list(hooked.other.items()):
        mean = activation.mean(0, keepdim=True).expand_as(activation)
        hooked.other.cache_dict[name] = mean if value == "mean" else torch.zeros_like(activation)
    with zeros_are_warned_of() if value == "zero" else nothing():
        result = edge_patching(MODEL, pairs, value=value)
    assert not result.normalized
    assert_same(result.raw, hooked.every_edge(result.graph))


@contextmanager
def nothing() -> Iterator[None]:
    yield


def test_edges_are_paths_with_nothing_in_between() -> None:
    pairs = random_pairs(5)
    result = edge_patching(MODEL, pairs)
    paths = path_patching(MODEL, pairs, [Site("k", 1, head=1), "logits"], [Site("z", 0, head=1)])
    ours = [result.values[result.graph.index(name)] for name in ("a0.h1->a1.h1<k>", "a0.h1->logits")]
    np.testing.assert_allclose(ours, paths.values[0], atol=TOLERANCE)


@given(models(normalization_type=None, attn_only=True, n_layers=1, **ADDITIVE), pairs())
def test_without_norms_edges_into_the_logits_add_up_to_the_whole_difference(model: GPT, pairs: PromptPairs) -> None:
    result = edge_patching(model, pairs, normalize=False)
    into = result.graph.of_receiver(len(result.graph.receivers) - 1)
    change = (result.raw[into] - result.clean).sum(0)
    assert_same(change, result.corrupted - result.clean)


def test_only_the_edges_that_are_asked_for_are_run() -> None:
    pairs, graph = random_pairs(6), Graph.of(MODEL)
    whole = edge_patching(MODEL, pairs)
    few = Circuit.of(graph, ["input->a1.h0<q>", "m0->m1", "a1.h1->logits"])
    some = edge_patching(MODEL, pairs, among=few)
    np.testing.assert_array_equal(np.isnan(some.values), ~few.kept)
    np.testing.assert_allclose(some.values[few.kept], whole.values[few.kept], atol=TOLERANCE)
    assert {entry.at[0][1][1] for entry in some.top(10)} == set(few)


def test_the_plan_counts_every_edge_but_those_to_the_logits() -> None:
    pairs, graph = random_pairs(6, (4, 4)), Graph.of(MODEL)
    plan = edge_patching_plan(MODEL, pairs)
    assert plan.rows == len(graph) - len(graph.senders)
    assert plan.prompts == 2
    assert plan.operations < plan.naive


def test_a_sweep_of_edges_goes_on_from_its_file(tmp_path: Path) -> None:
    pairs, out = random_pairs(7), tmp_path / "edges.safetensors"
    first = edge_patching(MODEL, pairs, out=out)
    assert edge_patching(MODEL, pairs, out=out) == first
    with pytest.raises(LabError, match="holds another sweep: it differs in its edits"):
        edge_patching(MODEL, pairs, value="mean", out=out)


def test_the_budget_changes_nothing() -> None:
    pairs = random_pairs(8, (6, 4, 5))
    whole = edge_patching(MODEL, pairs)
    np.testing.assert_allclose(edge_patching(MODEL, pairs, budget=60_000).values, whole.values, atol=TOLERANCE)
    with pytest.raises(LabError, match=r"give a budget of at least \d+ bytes"):
        edge_patching(MODEL, pairs, budget=64)


def test_a_prompt_that_is_its_own_corruption_has_exactly_no_effect() -> None:
    pairs = random_pairs(9, (4, 4))
    corrupted = torch.stack([pairs.corrupted[0], pairs.clean[1]])
    result = edge_patching(MODEL, PromptPairs(pairs.clean, corrupted, pairs.mask, pairs.right, pairs.wrong))
    assert (result.raw[:, 1] == result.clean[1]).all()
    assert (result.raw[:, 0] != result.clean[0]).any()


def test_a_model_that_cannot_resume_gives_the_same(tmp_path: Path) -> None:
    """float32: activations agree to 2e-6 and the metric sums some hundred of them."""
    directory = str(saved("gpt2", tmp_path))
    pairs = random_pairs(3, (5, 4), d_vocab=VOCAB)
    ours, bridge = (
        edge_patching(load(directory, backend=backend), pairs, normalize=False)
        for backend in ("native", "transformer-lens")
    )
    assert bridge.way == "batched hooks"
    np.testing.assert_allclose(bridge.raw, ours.raw, atol=1e-4)


def test_the_result_is_the_same_after_saving_and_has_pictures(tmp_path: Path) -> None:
    result = edge_patching(MODEL, random_pairs(7))
    result.save(tmp_path / "edges.safetensors")
    read = Result.load(tmp_path / "edges.safetensors")
    assert read == result
    assert isinstance(read, EdgePatchingResult)
    assert read.graph == Graph.of(MODEL)
    table = result.to_dataframe()
    assert table.edge_label[0] == "input->a0.h0<q>"
    assert len(result.plot().data[0].x) == 30
    assert result.top(1)[0].place.startswith("edge ")


def test_patching_every_edge_into_a_head_is_more_than_one_of_them() -> None:
    """An edge into one head's value, when the sender is all that head can read, is the head's whole patch by values."""
    cfg = TransformerConfig(**SIZES | {"n_layers": 1}, attn_only=True)
    model, pairs = random_model(cfg, seed=5), random_pairs(2, (4, 4))
    edges = edge_patching(model, pairs, direction="denoise")
    patched = activation_patching(model, pairs, "v")
    ours = [edges.values[edges.graph.index(f"input->a0.h{head}<v>")] for head in range(2)]
    np.testing.assert_allclose(ours, patched.values[0], atol=TOLERANCE)


REFUSALS: list[tuple[Callable[[], dict[str, Any]], str]] = [
    (lambda: {"direction": "noisy"}, "closest: 'noise'"),
    (lambda: {"value": "median"}, "unknown value 'median'"),
    (lambda: {"value": "mean", "direction": "denoise"}, "senders take their outputs of the clean run"),
    (lambda: {"metric": "logit_dif"}, "closest: 'logit_diff'"),
    (lambda: {"graph": Graph(3, 2, 2)}, r"the graph is not one of 'gpt' \(n_layers 3 for 2\)"),
    (lambda: {"graph": Graph.of(MODEL, n_pos=6)}, r"have \[3, 5, 6\] tokens"),
    (lambda: {"among": Circuit.whole(Graph(3, 2, 2))}, "not of this graph"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSALS)
def test_what_cannot_be_patched_is_refused_in_words(arguments: Callable[[], Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        edge_patching(MODEL, random_pairs(9), **arguments())
