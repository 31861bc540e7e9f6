"""Where the circuit is known, it is found: in compiled programs, in the shipped induction model, in the town."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import config as jaxtyping_config

from analyses import (
    acdc,
    auroc,
    edge_patching,
    edge_pruning,
    evaluate_circuits,
    find_circuit,
    head_scores,
    strongest_edges,
)
from analyses.circuit_selection import ranked
from analyses.known_circuits import KnownCircuit
from interp import PromptPairs, tasks
from interp.circuit import Circuit
from interp.graph import Graph
from interp.tasks.repetition import ordinary_tokens, repeated_tokens
from models import GPT, load
from tests.compiled import Program, changed_outputs

VALUES = ("resample", "zero")


@pytest.mark.filterwarnings("ignore:zero ablation")
@pytest.mark.parametrize("value", VALUES)
def test_the_circuit_of_a_compiled_program_is_found_edge_by_edge(program: Program, value: str) -> None:
    """By ACDC, whose threshold lies between effects of 0.5 and more and those below 1e-6, and by exact scores."""
    model, pairs, truth = program
    pairs = pairs[:24]
    true, metric = Circuit.of(Graph.of(model), truth[value]["edges"]), changed_outputs(model, pairs)
    assert acdc(model, pairs, 1e-3, metric, value).circuit == true
    scores = edge_patching(model, pairs, metric, value=value, normalize=False)
    assert auroc(scores, KnownCircuit(true, value, length=pairs.clean.shape[1]), pairs).area == 1.0
    assert strongest_edges(scores, len(true)) == true
    alone = evaluate_circuits(model, pairs, true, metric, value)
    assert alone.raw.max() < 1e-5  # the outputs are those of the whole model
    assert alone.ablated.mean() > 0.3


@pytest.mark.filterwarnings("ignore:zero ablation")
def test_mixing_the_truth_of_one_ablation_with_scores_of_another_draws_a_warning(program: Program) -> None:
    model, pairs, truth = program
    pairs = pairs[:8]
    scores = edge_patching(model, pairs, changed_outputs(model, pairs), value="zero", normalize=False)
    true = Circuit.of(Graph.of(model), truth["resample"]["edges"])
    with pytest.warns(UserWarning, match="true for the ablation 'resample', the scores are of 'zero'"):
        auroc(scores, KnownCircuit(true, "resample"), pairs)


# induction-2l


@pytest.fixture(scope="module")
def inducer() -> GPT:
    return load("induction-2l")


def renamed_cue(model: GPT, n: int, seed: int) -> PromptPairs:
    """... A B ... A: the corrupted prompts have another letter for the first A, so that nothing marks B."""
    rng, rows = random.Random(seed), repeated_tokens(model, n, 20, seed)
    clean, right = rows[:, :-1], rows[:, -1]
    cue = rows.shape[1] - 20 - 2
    corrupted, wrong = clean.clone(), []
    for row, tokens in enumerate(rows.tolist()):
        corrupted[row, cue] = rng.choice([token for token in ordinary_tokens(model) if token not in tokens])
        wrong.append(rng.choice(tokens[-20:-2]))
    return PromptPairs.from_tokens(clean, corrupted, right, torch.tensor(wrong), model=model)


def induction_circuit(model: GPT) -> Circuit:
    """The previous-token head marks every token with the one before it; induction heads look for that mark by keys."""
    (before,) = np.flatnonzero(head_scores(model).previous[0] > 0.8)
    edges = [f"input->a0.h{before}<v>"]
    for head in np.flatnonzero(head_scores(model).induction[1] > 0.8):
        edges += [f"a0.h{before}->a1.h{head}<k>", f"a1.h{head}->logits"]
    return Circuit.of(Graph.of(model), edges, model)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_first_edge_between_heads_is_from_the_previous_token_head_to_an_induction_heads_key(
    inducer: GPT, seed: int
) -> None:
    scores, true = edge_patching(inducer, renamed_cue(inducer, 16, seed)), induction_circuit(inducer)
    between = [entry.at[0][1][1] for entry in scores.top(40) if entry.at[0][1][1].count("a") == 2]
    keys = [edge for edge in true if edge.endswith("<k>")]
    assert len(keys) == 4
    assert set(between[:4]) == set(keys)
    assert scores.top(1)[0].at[0][1][1] in true  # what the previous-token head reads


def test_acdc_finds_the_induction_circuit_and_nothing_else(inducer: GPT) -> None:
    """0.5 logits, of a difference of some 14 in the clean run."""
    true = induction_circuit(inducer)
    assert acdc(inducer, renamed_cue(inducer, 16, 0), 0.5, "logit_diff").circuit == true
    alone = evaluate_circuits(inducer, renamed_cue(inducer, 16, 5), true)
    assert 0.95 < alone.values[0] < 1.05


@pytest.mark.usefixtures("unchecked")
def test_training_a_mask_finds_most_of_the_induction_circuit(inducer: GPT) -> None:
    """9 edges of 81: by chance two such circuits share 6 % of the edges that either has."""
    true = induction_circuit(inducer)
    found = edge_pruning(inducer, renamed_cue(inducer, 16, 0), len(true) / len(true.graph), "logit_diff", steps=200)
    assert found.circuit.iou(true) > 0.6


# town


@pytest.fixture(scope="module")
def found() -> list[Any]:
    """Circuits for the indirect object from two sets of prompts, judged on a third."""
    town = load("town")
    held_out = tasks.ioi(town, n=16, seed=9)
    jaxtyping_config.update("jaxtyping_disable", True)  # for speed: thousands of rows; other tests check annotations
    try:
        return [find_circuit(town, tasks.ioi(town, n=16, seed=seed), held_out=held_out) for seed in (0, 1)]
    finally:
        jaxtyping_config.update("jaxtyping_disable", False)


def test_a_twentieth_of_the_edges_keeps_nine_tenths_of_the_towns_indirect_object(found: list[Any]) -> None:
    for each in found:
        assert len(each.circuit) <= 0.05 * len(each.circuit.graph)
        assert each.evaluation.values[0] > 0.9
        assert each.evaluation.raw.min() > 0  # right above wrong on every prompt


def test_the_towns_circuit_is_the_same_for_other_prompts(found: list[Any]) -> None:
    first, second = (each.circuit for each in found)
    assert first.iou(second) > 0.75
    strongest = [set(ranked(each.scores)[:10].tolist()) for each in found]
    assert len(strongest[0] & strongest[1]) >= 8


@pytest.mark.usefixtures("unchecked")
def test_an_approximate_ranking_of_the_towns_edges_is_nearly_as_good(found: list[Any]) -> None:
    town = load("town")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick = find_circuit(town, tasks.ioi(town, n=16, seed=0), method="eap-ig", held_out=tasks.ioi(town, 16, 9))
    assert quick.circuit.iou(found[0].circuit) > 0.5
    assert quick.evaluation.values[0] > 0.8
