"""What circuits refuse, and in which words: through the functions, and through the command where it gets that far.

A circuit of another model, an empty circuit, prompts of unequal lengths for positions, a metric that is stationary at
the run that is patched, more memory than there is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analyses import (
    acdc,
    auroc,
    completeness,
    edge_attribution,
    edge_patching,
    edge_pruning,
    evaluate_circuits,
    faithfulness_curve,
    find_circuit,
    minimality,
)
from analyses.known_circuits import KnownCircuit
from interp import LabError, metrics
from interp.circuit import Circuit
from interp.graph import Graph
from models import TransformerConfig, load
from tests.analyses.tiny_models import interp
from tests.pairs import random_pairs
from tests.strategies import random_model

SIZES: dict[str, Any] = {"n_layers": 2, "n_heads": 2, "d_model": 12, "d_head": 4, "d_vocab": 11, "n_ctx": 10}
MODEL = random_model(TransformerConfig(**SIZES), seed=3)
PAIRS = random_pairs(4, (5, 5))
UNEQUAL = random_pairs(4, (5, 4))
GRAPH = Graph.of(MODEL)
WHOLE = Circuit.whole(GRAPH, MODEL)
JUDGES = (evaluate_circuits, completeness, minimality)
ESTIMATES = ("EAP", "AtP", "RelP")

Ask = Callable[[], Any]


def refused(ask: Ask, *words: str) -> None:
    """The message says what was given, what was expected, and what to try."""
    with pytest.raises(LabError) as problem:
        ask()
    for each in words:
        assert each in str(problem.value)


def ends_badly(code: int, words: str, *arguments: object) -> None:
    """The command says so too, in one message, and leaves with this code."""
    result = interp("circuit", *arguments)
    assert result.exit_code == code, result.output
    assert words in result.output, result.output
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


# a circuit of another model


@pytest.mark.parametrize("judge", JUDGES)
def test_a_circuit_of_another_model_is_not_judged_on_this_one(judge: Any) -> None:
    shaped_otherwise = Circuit.whole(Graph(n_layers=3, n_heads=2, n_kv_heads=2))
    refused(lambda: judge(MODEL, PAIRS, shaped_otherwise), "n_layers 3", "2")
    of_other_weights = Circuit.whole(GRAPH, random_model(TransformerConfig(**SIZES), seed=4))
    refused(lambda: judge(MODEL, PAIRS, of_other_weights), "with other weights")


def test_nor_are_scores_or_a_graph_of_another_model_used() -> None:
    other = Graph(n_layers=3, n_heads=2, n_kv_heads=2)
    for ask in (edge_patching, edge_attribution):
        refused(lambda ask=ask: ask(MODEL, PAIRS, graph=other), "not one of 'gpt'", "try Graph.of(model)")
    refused(lambda: acdc(MODEL, PAIRS, 0.1, graph=other), "try Graph.of(model)")
    refused(lambda: edge_pruning(MODEL, PAIRS, graph=other), "try Graph.of(model)")
    deeper = random_model(TransformerConfig(**SIZES | {"n_layers": 3}), seed=3)
    scores = edge_patching(deeper, PAIRS)
    refused(lambda: faithfulness_curve(MODEL, PAIRS, scores), "not one of 'gpt'")
    refused(lambda: auroc(scores, KnownCircuit(WHOLE, "resample"), PAIRS), "of another graph")


def test_the_command_refuses_a_circuit_of_another_model(town: Path, bare: Path, tmp_path: Path) -> None:
    saved = tmp_path / "circuit.json"
    model = load(town)
    Circuit.whole(Graph.of(model), model).save(saved)
    ends_badly(1, "the circuit is not one of 'bare'", "--model", bare, "--circuit", saved)


# an empty circuit


@pytest.mark.parametrize("judge", JUDGES)
def test_an_empty_circuit_is_not_judged(judge: Any) -> None:
    refused(lambda: judge(MODEL, PAIRS, Circuit.of(GRAPH, [], MODEL)), "has no edges", "at least one edge")


def test_no_circuits_at_all_and_a_search_that_keeps_nothing_are_refused() -> None:
    refused(lambda: evaluate_circuits(MODEL, PAIRS, []), "no circuit; expected at least one")
    refused(lambda: find_circuit(MODEL, PAIRS, share=1e-9), "has no edges", "try a larger one")
    refused(lambda: find_circuit(MODEL, PAIRS, method="eap", select="acdc", threshold=1e9), "has no edges")
    nothing = KnownCircuit(Circuit.of(GRAPH, []), "resample")
    refused(lambda: auroc(edge_patching(MODEL, PAIRS), nothing, PAIRS), "0 of", "nothing to tell apart")


def test_the_command_refuses_an_empty_circuit(town: Path, tmp_path: Path) -> None:
    saved = tmp_path / "circuit.json"
    Circuit.of(Graph.of(load(town)), []).save(saved)
    ends_badly(1, "has no edges", "--model", town, "--task", "ioi", "-n", 2, "--circuit", saved)
    ends_badly(1, "has no edges", "--model", town, "--task", "ioi", "-n", 2, "--method", "eap", "--edges", 1e-6)


# prompts of unequal lengths where positions are told apart


def test_a_graph_at_positions_refuses_prompts_of_unequal_lengths() -> None:
    graph = Graph.of(MODEL, n_pos=5)
    asks: list[Ask] = [
        lambda: edge_patching(MODEL, UNEQUAL, graph=graph),
        *(lambda name=name: edge_attribution(MODEL, UNEQUAL, graph=graph, method=name) for name in ESTIMATES),
        lambda: acdc(MODEL, UNEQUAL, 0.1, graph=graph),
        lambda: edge_pruning(MODEL, UNEQUAL, graph=graph),
        *(lambda judge=judge: judge(MODEL, UNEQUAL, Circuit.whole(graph, MODEL)) for judge in JUDGES),
    ]
    for ask in asks:
        refused(ask, "edges at each of 5 positions", "have [4, 5] tokens", "a graph without positions")


def test_so_does_the_command(town: Path, tmp_path: Path) -> None:
    model, saved = load(town), tmp_path / "circuit.json"
    Circuit.whole(Graph.of(model, n_pos=4), model).save(saved)
    texts = {"--prompt": ("While Mary and John", " Mary"), "--corrupted": ("While John and Mary", " John")}
    answers = {"--right": (" Mary", " Mary"), "--wrong": (" John", " John")}
    prompts = [word for option, words in (texts | answers).items() for each in words for word in (option, each)]
    ends_badly(1, "edges at each of 4 positions", "--model", town, *prompts, "--circuit", saved)


# a metric that is stationary at the run that is patched


@pytest.mark.parametrize("method", ESTIMATES)
def test_gradients_refuse_a_metric_that_is_stationary_at_the_run(method: str) -> None:
    words = ("the gradient is zero there", "Try direction='denoise', 'logit_diff'")
    refused(lambda: edge_attribution(MODEL, PAIRS, "kl", method=method), *words)
    distance = metrics.logit_diff(MODEL(PAIRS.clean), PAIRS).detach()

    def squared_distance(logits: Any, asked: Any) -> Any:
        return (metrics.logit_diff(logits, asked) - distance[: len(logits)]) ** 2

    refused(
        lambda: edge_attribution(MODEL, PAIRS, squared_distance, method=method), "vanishes at the run", "try 'logit"
    )


def test_along_a_way_and_by_exact_patching_it_has_scores() -> None:
    assert abs(edge_attribution(MODEL, PAIRS, "kl", method="EAP-IG-inputs", checks=1).values).max() > 0
    assert abs(edge_patching(MODEL, PAIRS, "kl").values).max() > 0


@pytest.mark.parametrize("method", ["eap", "atp", "relp"])
def test_the_command_refuses_a_stationary_metric(town: Path, method: str) -> None:
    asked = ("--model", town, "--task", "ioi", "-n", 2, "--metric", "kl", "--method", method)
    ends_badly(1, "the gradient is zero there", *asked)


# more memory than there is


def test_a_budget_that_is_too_small_says_what_would_do() -> None:
    asks: list[Ask] = [
        lambda: evaluate_circuits(MODEL, PAIRS, WHOLE, budget=100),
        lambda: acdc(MODEL, PAIRS, 0.1, budget=100),
        lambda: edge_pruning(MODEL, PAIRS, budget=100),
    ]
    for ask in asks:
        refused(ask, "a budget of", "is too small", "at least", "shorter prompts")
    refused(lambda: edge_patching(MODEL, PAIRS, budget=100), "budget", "at least")


def test_a_prompt_whose_graph_does_not_fit_the_memory_is_refused_before_it_is_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A budget of one's own tries it all the same: what a graph needs is an estimate."""
    monkeypatch.setattr("analyses.first_order.free_memory", lambda device: 1000)
    refused(lambda: edge_attribution(MODEL, PAIRS), "one prompt of 5 tokens", "are free", "try shorter prompts")
    assert edge_attribution(MODEL, PAIRS, checks=1, budget=1_000_000).values.any()


def test_the_command_says_what_to_reduce(town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "circuit.json"
    asked = ("--model", town, "--task", "ioi", "-n", 2, "--out", out)
    ends_badly(1, "budget", *asked, "--budget", 100)
    for name, problem in (
        ("torch", RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")),
        ("numpy", MemoryError("Unable to allocate 9. TiB for an array")),
    ):

        def fails(*_: Any, problem: Exception = problem, **__: Any) -> None:
            raise problem

        monkeypatch.setattr("analyses.circuit_finding.edge_patching", fails)
        ends_badly(1, "not enough memory. Try fewer prompts (-n), shorter ones", *asked)
        assert not list(tmp_path.iterdir()), name
