"""Runs of circuits against a run put together edge by edge; their two ends; what they refuse.

Everything is float64; TOLERANCE is for the rounding of different kernels, relative to the largest number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from analyses import edge_patching
from analyses.circuit_runs import VALUES, CircuitRuns
from interp import LabError, PromptPairs, metrics
from interp.graph import Graph
from models import GPT, TransformerConfig, load
from tests.checkpoints import VOCAB, saved
from tests.pairs import pairs, random_pairs
from tests.strategies import SUMMED, models, random_model

TOLERANCE = 1e-10
SIZES: dict[str, Any] = {"n_layers": 2, "n_heads": 2, "d_model": 12, "d_head": 4, "d_vocab": 11, "n_ctx": 10}
MODEL = random_model(TransformerConfig(**SIZES), seed=3)


def close(found: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1.0, float(np.abs(expected).max())))


def some_circuits(graph: Graph, n: int, seed: int) -> np.ndarray:
    """Circuits with half of the edges each."""
    return np.random.default_rng(seed).random((n, *graph.shape)) < 0.5


def written_by(model: GPT, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """What every sender computes in a run: z of heads, outputs of MLPs, the first stream."""
    _, cache = model.run_with_cache(tokens, attention_mask=mask, names_filter=lambda name: True)
    found = {"input": cache["resid_pre", 0]}
    for layer in range(model.cfg.n_layers):
        found |= {f"a{layer}.h{head}": cache["z", layer][:, :, head] for head in range(model.cfg.n_heads)}
        found |= {} if model.cfg.attn_only else {f"m{layer}": cache["mlp_out", layer]}
    return found


def plain_run(model: GPT, prompts: PromptPairs, kept: set[str], ablated: dict[str, Tensor]) -> Tensor:
    """The logits of a circuit's run, one receiver and one edge at a time, from the model's own modules."""
    cfg, own = model.cfg, {"input": model.run_with_cache(prompts.clean, attention_mask=prompts.mask)[1]["resid_pre", 0]}

    def sent(sender: str, receiver: str) -> Tensor:
        return own[sender] if f"{sender}->{receiver}" in kept else ablated[sender]

    def stream(receiver: str, attention: int, mlps: int) -> Tensor:
        """The input, and what the first attention layers and MLPs write, as one receiver reads it."""
        total = sent("input", receiver)
        for layer in range(max(attention, mlps)):
            block = model.blocks[layer]
            if layer < attention:
                heads = [sent(f"a{layer}.h{head}", receiver) for head in range(cfg.n_heads)]
                written = sum(z @ w for z, w in zip(heads, block.attn.W_O, strict=True)) + block.attn.b_O
                total = total + block.ln1_post(written)
            if layer < mlps and not cfg.attn_only:
                total = total + sent(f"m{layer}", receiver)
        return total

    for layer, block in enumerate(model.blocks):
        inputs = []
        for kind, heads in (("q", cfg.n_heads), ("k", cfg.n_kv_heads), ("v", cfg.n_kv_heads)):
            read = [stream(f"a{layer}.h{head}<{kind}>", layer, layer) for head in range(heads)]
            inputs.append(torch.stack(read, 2))
        layer_of: dict[str, Tensor] = {}

        def replaced(name: str, value: Tensor) -> tuple[str, Callable[..., Tensor]]:
            return name, lambda activation, hook: value

        hooks = [
            replaced(f"blocks.{layer}.hook_{kind}_input", value)
            for kind, value in zip(("q", "k", "v"), inputs, strict=True)
        ]
        hooks.append((f"blocks.{layer}.attn.hook_z", lambda z, hook, at=layer_of: at.update(z=z)))
        with model.hooks(hooks):
            model(prompts.clean, attention_mask=prompts.mask)
        own |= {f"a{layer}.h{head}": layer_of["z"][:, :, head] for head in range(cfg.n_heads)}
        if not cfg.attn_only:
            read_attention = layer if cfg.parallel_attn_mlp else layer + 1
            own[f"m{layer}"] = block.ln2_post(block.mlp(block.ln2(stream(f"m{layer}", read_attention, layer))))
    final = stream("logits", cfg.n_layers, cfg.n_layers)
    return model.logits_at(final)


@pytest.mark.usefixtures("unchecked")  # for speed: many tiny forwards; other tests check annotations
@settings(max_examples=10)
@given(models(**SUMMED), pairs(max_pos=4, max_prompts=2), st.sampled_from(VALUES), st.integers(0, 99))
def test_a_circuits_run_is_that_of_its_edges_one_by_one(model: GPT, pairs: PromptPairs, value: str, seed: int) -> None:
    """On any architecture, padding on either side."""
    graph = Graph.of(model)
    kept = some_circuits(graph, 2, seed)
    runs = CircuitRuns.of(model, pairs, "log_prob", value)
    ablated = reference(model, pairs, value)
    with torch.no_grad():
        expected = [
            metrics.log_prob(plain_run(model, pairs, {graph.names[i] for i in np.flatnonzero(each)}, ablated), pairs)
            for each in kept
        ]
    close(runs.scores(kept), torch.stack(expected))


def reference(model: GPT, pairs: PromptPairs, value: str) -> dict[str, Tensor]:
    """What ablated senders do, by the definition."""
    with torch.no_grad():
        written, mask = written_by(model, pairs.corrupted, pairs.mask), pairs.mask
    if value == "resample":
        return written
    if value == "zero":
        return {name: torch.zeros_like(each) for name, each in written.items()}
    if value == "mean" and bool((mask == mask[0]).all()):
        return {name: each.mean(0, keepdim=True).expand_as(each) for name, each in written.items()}
    return {name: each[mask].mean(0).expand_as(each) for name, each in written.items()}


@pytest.mark.usefixtures("unchecked")
@given(models(**SUMMED), pairs(), st.sampled_from(VALUES))
def test_every_edge_is_the_clean_run_and_none_the_ablated_one(model: GPT, pairs: PromptPairs, value: str) -> None:
    runs = CircuitRuns.of(model, pairs, value=value)
    every, none = runs.scores(np.stack([np.ones(runs.graph.shape, bool), np.zeros(runs.graph.shape, bool)]))
    mask = pairs.mask if pairs.padded else None
    with torch.no_grad():
        close(every, metrics.logit_diff(model(pairs.clean, attention_mask=mask), pairs))
        if value == "resample":
            close(none, metrics.logit_diff(model(pairs.corrupted, attention_mask=mask), pairs))
    close(none, runs.ablation)


@pytest.mark.usefixtures("unchecked")
@settings(max_examples=8)
@given(models(n_layers=2, **SUMMED), pairs(max_pos=4, max_prompts=2))
def test_all_but_one_edge_is_that_edge_patched(model: GPT, pairs: PromptPairs) -> None:
    graph = Graph.of(model)
    chosen = np.arange(0, len(graph), 7)
    kept = np.ones((len(chosen), len(graph)), dtype=bool)
    kept[np.arange(len(chosen)), chosen] = False
    patched = edge_patching(model, pairs, normalize=False).raw[chosen]
    close(CircuitRuns.of(model, pairs).scores(kept), patched, 1e-9)  # two ways to a few thousand roundings


@pytest.mark.parametrize("neurons", [False, True])
def test_edges_at_positions_and_of_neurons(neurons: bool) -> None:
    prompts = random_pairs(2, (4, 4))
    whole, apart = Graph.of(MODEL), Graph.of(MODEL, neurons, None if neurons else 4)
    kept = some_circuits(whole, 3, seed=1)
    finer = np.zeros((3, *apart.shape), dtype=bool)
    for number, name in enumerate(apart.names):
        coarse = name.split("->")[0].split(".n")[0] + "->" + name.split("->")[1]
        finer[:, number] = kept[:, whole.index(coarse)[0]].reshape(3, *[1] * (finer.ndim - 2))
    close(CircuitRuns.of(MODEL, prompts, graph=apart).scores(finer), CircuitRuns.of(MODEL, prompts).scores(kept))


def test_an_edge_at_one_position_acts_there_alone() -> None:
    """With an edge to the logits kept before the last position only, the answer is that of no edge at all."""
    prompts, graph = random_pairs(2, (4, 4)), Graph.of(MODEL, n_pos=4)
    runs = CircuitRuns.of(MODEL, prompts, graph=graph)
    kept = np.zeros((2, *graph.shape), dtype=bool)
    edges = graph.of_receiver(len(graph.receivers) - 1)
    kept[0, edges, :3] = True
    kept[1, edges, 3] = True
    early, late = runs.scores(kept)
    close(early, runs.ablation)
    assert (np.abs(late - runs.ablation) > 1e-3).all()


def test_the_budget_changes_nothing() -> None:
    prompts = random_pairs(8, (6, 4, 5))
    kept = some_circuits(Graph.of(MODEL), 5, seed=0)
    whole = CircuitRuns.of(MODEL, prompts)
    small = CircuitRuns.of(MODEL, prompts, budget=40_000)
    assert small.size < len(prompts) < whole.size
    close(small.scores(kept), whole.scores(kept))


def test_metrics_of_every_position_and_the_divergence_from_the_clean_run() -> None:
    prompts = random_pairs(8, (6, 4))
    every = np.ones((1, len(Graph.of(MODEL))), dtype=bool)
    runs = CircuitRuns.of(MODEL, prompts, "kl")
    close(runs.scores(every)[0], [0, 0])
    assert (runs.ablation > 0).all()
    runs = CircuitRuns.of(MODEL, prompts, "cross_entropy")
    close(runs.scores(every)[0], runs.clean)


def test_a_model_that_cannot_resume_gives_the_same(tmp_path: Any) -> None:
    """float32: activations agree to 2e-6 and the metric sums some hundred of them."""
    directory = str(saved("gpt2", tmp_path))
    prompts = random_pairs(3, (5, 4), d_vocab=VOCAB)
    ours, bridge = (
        CircuitRuns.of(load(directory, backend=backend), prompts) for backend in ("native", "transformer-lens")
    )
    kept = some_circuits(ours.graph, 3, seed=2)
    np.testing.assert_allclose(bridge.scores(kept), ours.scores(kept), atol=1e-4)


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"value": "median"}, "unknown ablation value 'median'"),
    ({"metric": "logit_dif"}, "closest: 'logit_diff'"),
    ({"graph": Graph(3, 2, 2)}, r"the graph is not one of 'gpt' \(n_layers 3 for 2\)"),
    ({"graph": Graph.of(MODEL, n_pos=6)}, r"have \[3, 5, 6\] tokens"),
    ({"budget": 1000}, r"too small for one run of a circuit.* at least \d+ bytes"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSALS)
def test_what_cannot_be_run_is_refused_in_words(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        CircuitRuns.of(MODEL, random_pairs(9), **arguments)


def test_circuits_of_another_graph_are_refused() -> None:
    with pytest.raises(LabError, match="expected the graph's"):
        CircuitRuns.of(MODEL, random_pairs(9)).scores(np.ones((1, 7), dtype=bool))


def test_hooks_that_edit_are_refused() -> None:
    model = random_model(TransformerConfig(**SIZES), seed=3)
    with model.hooks([("blocks.0.attn.hook_z", lambda z, hook: z * 2)]), pytest.raises(LabError, match="leave the"):
        CircuitRuns.of(model, random_pairs(9))
