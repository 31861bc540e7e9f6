"""Circuits chosen, searched for and judged: each against its definition written plainly.

Everything is float64; TOLERANCE is for the rounding of different kernels.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analyses import (
    acdc,
    auroc,
    completeness,
    edge_patching,
    edge_pruning,
    evaluate_circuits,
    faithfulness_curve,
    find_circuit,
    greedy_edges,
    minimality,
    ranking_stability,
    strongest_edges,
    strongest_nodes,
)
from analyses.circuit_picture import lines_of
from analyses.circuit_runs import CircuitRuns
from analyses.circuit_selection import edges_of_share, ranked
from analyses.edges import EdgePatchingResult
from analyses.known_circuits import KnownCircuit
from interp import LabError, PromptPairs
from interp.circuit import Circuit
from interp.graph import Graph
from interp.results import Result
from models import TransformerConfig
from tests.hostile import SCRIPT
from tests.pairs import random_pairs
from tests.strategies import random_model

TOLERANCE = 1e-9
SIZES: dict[str, Any] = {"n_layers": 2, "n_heads": 2, "d_model": 12, "d_head": 4, "d_vocab": 11, "n_ctx": 10}
MODEL = random_model(TransformerConfig(**SIZES), seed=3)
PAIRS = random_pairs(4, (5, 5, 4, 5))
GRAPH = Graph.of(MODEL)


@pytest.fixture(scope="module")
def scores() -> EdgePatchingResult:
    return edge_patching(MODEL, PAIRS)


# selection


def test_the_strongest_edges_are_those_with_the_largest_effects(scores: EdgePatchingResult) -> None:
    found = strongest_edges(scores, len(GRAPH) // 2)
    assert found.model == MODEL.cfg.model_name
    found.check(MODEL)
    weakest = np.abs(scores.values[found.kept]).min()
    dangling = strongest_edges(scores, len(GRAPH) // 2).kept
    assert len(found) <= len(GRAPH) // 2
    assert (np.abs(scores.values[~dangling]) > weakest).sum() <= len(GRAPH) // 2 - len(found)


def test_the_signed_ranking_takes_edges_that_work_against_the_answer_last(scores: EdgePatchingResult) -> None:
    helping = int((scores.values > 0).sum())
    found = strongest_edges(scores, helping, signed=True)
    assert (scores.values[found.kept] > 0).all()


def test_a_signed_ranking_is_the_same_in_the_metrics_units(scores: EdgePatchingResult) -> None:
    raw = edge_patching(MODEL, PAIRS, normalize=False)
    assert strongest_edges(raw, 20, signed=True) == strongest_edges(scores, 20, signed=True)


def test_every_edge_of_a_greedy_circuit_leads_to_the_logits(scores: EdgePatchingResult) -> None:
    """Taking the best edge into what is there, by a plain loop."""
    order = np.argsort(-np.abs(scores.values), kind="stable").tolist()
    there, kept = {"logits"}, np.zeros(len(GRAPH), dtype=bool)
    for _ in range(15):
        for edge in order:
            sender, receiver = GRAPH.names[edge].split("->")
            if not kept[edge] and receiver.split("<")[0] in there:
                kept[edge] = True
                there.add(sender)
                break
    assert greedy_edges(scores, 15) == Circuit(GRAPH, kept).pruned()


def test_the_circuit_of_nodes_has_every_edge_between_them(scores: EdgePatchingResult) -> None:
    found = strongest_nodes(scores, 3)
    inner = [name for name in found.nodes if name not in ("input", "logits")]
    assert len(inner) <= 3
    assert found == Circuit.whole(GRAPH).restrict(["input", "logits", *inner]).pruned()
    sums = {name: scores.values[GRAPH.ends[:, 0] == n].sum() for n, name in enumerate(GRAPH.sender_names) if n}
    strongest = sorted(sums, key=lambda name: -abs(sums[name]))[:3]
    assert set(inner) <= set(strongest)


def test_all_edges_are_the_whole_graph(scores: EdgePatchingResult) -> None:
    for select in (strongest_edges, greedy_edges):
        assert select(scores, len(GRAPH)) == Circuit.whole(GRAPH)


def test_too_many_edges_or_too_few_are_refused(scores: EdgePatchingResult) -> None:
    for n in (0, len(GRAPH) + 1):
        with pytest.raises(LabError, match=f"{n} edges; expected 1 to {len(GRAPH)}"):
            strongest_edges(scores, n)
    with pytest.raises(LabError, match="above 0 and at most 1"):
        edges_of_share(GRAPH, 1.5)


# ACDC


def acdc_one_by_one(pairs: PromptPairs, threshold: float, metric: str, value: str) -> Circuit:
    """The paper's loop: every edge alone, from the last receiver to the first."""
    runs = CircuitRuns.of(MODEL, pairs, metric, value)
    kept = np.ones(len(GRAPH), dtype=bool)
    loss = 0.0
    for edge in reversed(range(len(GRAPH))):
        kept[edge] = False
        new = float(np.abs(runs.scores(kept[None])[0] - runs.clean).mean())
        if new - loss < threshold:
            loss = new
        else:
            kept[edge] = True
    return Circuit(GRAPH, kept)


@pytest.mark.usefixtures("unchecked")  # for speed: hundreds of tiny forwards; other tests check annotations
@pytest.mark.parametrize(("threshold", "metric", "value"), [(0.03, "kl", "resample"), (0.3, "logit_diff", "mean")])
def test_acdc_gives_what_trying_edges_one_by_one_gives(threshold: float, metric: str, value: str) -> None:
    pairs = random_pairs(6, (4, 3))
    found = acdc(MODEL, pairs, threshold, metric, value)
    assert found.circuit == acdc_one_by_one(pairs, threshold, metric, value)
    assert 0 < len(found.circuit) < len(GRAPH)
    assert (found.values[found.kept] >= threshold).all()
    raw = CircuitRuns.of(MODEL, pairs, metric, value)
    np.testing.assert_allclose(found.loss, np.abs(raw.scores(found.kept[None]) - raw.clean).mean(), atol=TOLERANCE)


def test_acdc_with_no_patience_at_all_keeps_nothing_and_refuses_a_threshold_of_zero() -> None:
    assert not len(acdc(MODEL, PAIRS, 1e9).circuit)
    with pytest.raises(LabError, match="expected a number above 0"):
        acdc(MODEL, PAIRS, 0.0)


def test_acdc_at_positions_keeps_edges_where_they_matter() -> None:
    pairs = random_pairs(1, (3, 3))
    found = acdc(MODEL, pairs, 0.05, graph=Graph.of(MODEL, n_pos=3))
    assert found.circuit.kept.shape == found.circuit.graph.shape
    into_logits = [name for name in found.circuit if "->logits" in name]
    assert into_logits
    assert all(name.endswith("@2") for name in into_logits)  # the metric reads the last position


# edge pruning


def test_shares_of_nothing_or_all_are_the_circuits_run_and_have_the_gradient_of_the_definition() -> None:
    """By central differences of 1e-5, whose own error is far below 1e-6."""
    runs, rng = CircuitRuns.of(MODEL, PAIRS), np.random.default_rng(0)
    kept, prompts = rng.random(GRAPH.shape) < 0.5, torch.tensor([2, 0])
    whole = runs.soft_scores(torch.from_numpy(kept).double(), prompts)
    np.testing.assert_allclose(whole.detach(), runs.scores(kept[None])[0, [2, 0]], atol=TOLERANCE)
    shares = torch.from_numpy(rng.random(GRAPH.shape)).requires_grad_()
    (gradient,) = torch.autograd.grad(runs.soft_scores(shares, prompts).sum(), shares)
    way = torch.from_numpy(rng.standard_normal(GRAPH.shape))
    with torch.no_grad():
        up, down = (runs.soft_scores(shares + step * way, prompts).sum() for step in (1e-5, -1e-5))
    np.testing.assert_allclose((gradient * way).sum(), (up - down) / 2e-5, rtol=1e-6)


def test_edge_pruning_keeps_as_many_edges_as_it_is_asked_for_and_repeats_itself() -> None:
    found, again = (edge_pruning(MODEL, PAIRS, 0.3, steps=10, seed=1) for _ in range(2))
    assert found == again
    assert found.kept.sum() == edges_of_share(GRAPH, 0.3)
    assert found.values[found.kept].min() >= found.values[~found.kept].max()
    assert len(found.losses) == 10
    found.circuit.check(MODEL)
    with pytest.raises(LabError, match="at least one step"):
        edge_pruning(MODEL, PAIRS, steps=0)
    with pytest.raises(LabError, match="'rank' has no gradient"):
        edge_pruning(MODEL, PAIRS, metric="rank", steps=1)


# faithfulness


def test_faithfulness_is_the_share_of_the_way_from_the_ablated_to_the_clean_run(scores: EdgePatchingResult) -> None:
    circuits = [strongest_edges(scores, n) for n in (15, 40)] + [Circuit.whole(GRAPH)]
    found = evaluate_circuits(MODEL, PAIRS, circuits)
    clean, ablated = found.clean.mean(), found.ablated.mean()
    np.testing.assert_allclose(found.values, (found.raw.mean(1) - ablated) / (clean - ablated), atol=TOLERANCE)
    np.testing.assert_allclose(found.values[2], 1, atol=TOLERANCE)
    assert (found.low <= found.high).all()
    np.testing.assert_allclose([found.low[2], found.high[2]], 1, atol=TOLERANCE)
    assert list(found.setting) == ["granularity", "components", "ablation", "positions", "direction", "prompts"]


def test_the_bootstrap_draws_prompts_again(scores: EdgePatchingResult) -> None:
    """Its spread is near the one that theory gives for a mean: the standard error. With 40 prompts and 1000 draws the
    two agree to a quarter."""
    pairs = random_pairs(5, [4] * 40)
    found = evaluate_circuits(MODEL, pairs, strongest_edges(scores, 40))
    gain, whole = found.raw[0] - found.ablated, found.clean - found.ablated
    residual = (gain - found.values[0] * whole) / whole.mean()  # of a ratio of means
    expected = 2 * 1.96 * residual.std() / np.sqrt(40)
    assert (found.high[0] - found.low[0]) == pytest.approx(expected, rel=0.25)


def test_the_areas_are_sums_of_trapezoids(scores: EdgePatchingResult) -> None:
    curve = faithfulness_curve(MODEL, PAIRS, scores, sizes=(0.1, 0.5, 1.0))
    f = curve.values
    expected = [0.4 * (f[0, 0] + f[0, 1]) / 2 + 0.5 * (f[0, 1] + f[0, 2]) / 2]
    gaps = np.abs(1 - f[1])
    expected.append(0.4 * (gaps[0] + gaps[1]) / 2 + 0.5 * (gaps[1] + gaps[2]) / 2)
    np.testing.assert_allclose([curve.cpr, curve.cmd], expected, atol=TOLERANCE)
    np.testing.assert_allclose(curve.values[:, -1], 1, atol=TOLERANCE)
    one = evaluate_circuits(MODEL, PAIRS, strongest_edges(scores, edges_of_share(GRAPH, 0.5), signed=True))
    np.testing.assert_allclose(curve.values[0, 1], one.values[0], atol=TOLERANCE)


def test_the_whole_graph_is_complete_and_what_it_needs_shows() -> None:
    whole = Circuit.whole(GRAPH)
    assert completeness(MODEL, PAIRS, whole, draws=3).incompleteness < TOLERANCE
    found = minimality(MODEL, PAIRS, whole, draws=2)
    runs = CircuitRuns.of(MODEL, PAIRS)
    for number, name in enumerate(found.labels["component"]):
        rest = whole.restrict([node for node in whole.nodes if node != name])
        f = (runs.scores(rest.kept[None]).mean() - runs.ablation.mean()) / (runs.clean - runs.ablation).mean()
        np.testing.assert_allclose(found.alone[number], abs(1 - f), atol=TOLERANCE)
    assert (found.values >= found.alone - TOLERANCE).all()


def test_a_circuit_without_a_component_that_the_model_uses_is_incomplete() -> None:
    lacking = Circuit.whole(GRAPH).restrict([node for node in Circuit.whole(GRAPH).nodes if node != "a0.h0"])
    assert completeness(MODEL, PAIRS, lacking, draws=3).incompleteness > 0.01


def test_completeness_and_minimality_state_how_far_they_depend_on_the_prompts(scores: EdgePatchingResult) -> None:
    """By drawing prompts again, with the same draws for both sides of a difference."""
    circuit = strongest_edges(scores, len(GRAPH) // 3)
    judged = completeness(MODEL, PAIRS, circuit, draws=2), minimality(MODEL, PAIRS, circuit, draws=2)
    for found in judged:
        assert (found.low <= found.high).all()
        assert (found.high > found.low).any()
        assert ((found.low - TOLERANCE <= found.values) & (found.values <= found.high + TOLERANCE)).mean() > 0.7
        assert found.setting["ablation"].startswith("resample")
    one = random_pairs(4, (5,))  # drawn again, one prompt is the same prompt
    for found in (completeness(MODEL, one, circuit, draws=2), minimality(MODEL, one, circuit, draws=2)):
        np.testing.assert_allclose([found.low, found.high], [found.values] * 2, atol=TOLERANCE)


@pytest.mark.usefixtures("unchecked")
def test_every_statement_about_a_circuit_says_of_what_it_is_one_and_how_it_spreads(scores: EdgePatchingResult) -> None:
    """Granularity, components, ablation, positions, direction, prompts; quartiles and worst case, or bounds."""
    circuit = strongest_edges(scores, 30)
    evaluated = evaluate_circuits(MODEL, PAIRS, circuit)
    found = [
        evaluated,
        faithfulness_curve(MODEL, PAIRS, scores, sizes=(0.5, 1.0)),
        completeness(MODEL, PAIRS, circuit, draws=1),
        minimality(MODEL, PAIRS, circuit, draws=1),
        auroc(scores, KnownCircuit(circuit, "resample"), PAIRS),
        acdc(MODEL, PAIRS, 0.5, "logit_diff"),
        edge_pruning(MODEL, PAIRS, 0.5, steps=2),
        find_circuit(MODEL, PAIRS, share=0.5),
    ]
    for each in found:
        assert set(each.setting) == {"granularity", "components", "ablation", "positions", "direction", "prompts"}
        assert {"low", "high", "raw", "evaluation"} & (set(each.arrays) | set(each.facts))
    assert evaluated.spread()["lowest"] == evaluated.raw.min()
    assert found[5].spread()["lowest"] == found[5].raw.min()
    np.testing.assert_allclose(np.abs(found[5].raw - found[5].clean).mean(), found[5].loss, atol=TOLERANCE)
    rerun = evaluate_circuits(MODEL, PAIRS, found[6].circuit, "kl")
    np.testing.assert_allclose(found[6].raw, rerun.raw[0], atol=TOLERANCE)


def test_ranking_stability_counts_how_often_an_edge_is_among_the_strongest(scores: EdgePatchingResult) -> None:
    found = ranking_stability(scores, 10, draws=50)
    assert found.values.sum() == pytest.approx(10)
    assert found.strongest.sum() == 10
    assert set(np.flatnonzero(found.strongest)) == set(np.argsort(-np.abs(scores.values))[:10])
    assert ((found.overlap > 0) & (found.overlap <= 1)).all()
    assert "4 prompts are few" in str(found)
    same = edge_patching(MODEL, PAIRS[:1])
    assert (ranking_stability(same, 10, draws=5).overlap == 1).all()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_the_place_of_an_edge_has_an_interval_over_the_draws(signed: bool, direction: str) -> None:
    """Ranks and their correlation by a plain loop; the ranking that a circuit of that kind is chosen by."""
    scores = edge_patching(MODEL, PAIRS, direction=direction)
    found = ranking_stability(scores, 10, draws=20, signed=signed)
    order = ranked(scores, signed).tolist()
    assert [found.rank[edge] for edge in order] == list(range(1, len(GRAPH) + 1))
    assert found.strongest[order[:10]].all()
    effects, chosen = scores.raw - (scores.clean if direction == "noise" else scores.corrupted), []
    toward = np.sign((scores.values * effects.mean(1)).sum())  # a score is an effect, perhaps with the other sign
    for draw in np.random.default_rng(0).integers(len(PAIRS), size=(20, len(PAIRS))):
        mean = effects[:, draw].mean(1)
        strength = toward * mean if signed else np.abs(mean)
        chosen.append([1 + int((strength > each).sum()) for each in strength])
    moving = np.abs(effects).max(1) > 0
    np.testing.assert_allclose(found.low[moving], np.percentile(chosen, 2.5, axis=0)[moving], atol=1)  # ties
    np.testing.assert_allclose(found.high[moving], np.percentile(chosen, 97.5, axis=0)[moving], atol=1)
    expected = [np.corrcoef(np.array(each)[moving], found.rank[moving])[0, 1] for each in chosen]
    np.testing.assert_allclose(found.spearman, expected, atol=1e-3)  # the edges without effect lie between signed ones
    assert found.summary()["spearman"] == np.median(found.spearman)
    assert "rank correlation of all edges" in str(found)


# against a known truth


def test_the_area_under_the_roc_is_how_often_a_true_edge_is_higher(scores: EdgePatchingResult) -> None:
    true = np.zeros(len(GRAPH), dtype=bool)
    true[::9] = True
    strengths = np.abs(scores.values)
    pairs = [(a > b) + (a == b) / 2 for a in strengths[true] for b in strengths[~true]]
    found = auroc(scores, KnownCircuit(Circuit(GRAPH, true), "resample"), PAIRS)
    assert found.area == float(found) == pytest.approx(np.mean(pairs))
    assert found.low <= found.area <= found.high
    assert found.edges == true.sum()


def test_a_perfect_ranking_has_an_area_of_one_whichever_prompts_are_drawn() -> None:
    """One edge alone has an effect on every prompt: the truth."""
    from dataclasses import replace

    scores = edge_patching(MODEL, PAIRS)
    raw = np.repeat(scores.clean[None], len(GRAPH), 0)
    raw[7] += 1.0
    values = np.zeros(len(GRAPH))
    values[7] = 1.0
    true = np.zeros(len(GRAPH), dtype=bool)
    true[7] = True
    found = auroc(replace(scores, raw=raw, values=values), KnownCircuit(Circuit(GRAPH, true), "resample"), PAIRS)
    assert (found.values == 1.0).all()
    assert found.area == found.low == found.high == 1.0


def test_a_truth_of_another_ablation_or_length_draws_a_warning(scores: EdgePatchingResult) -> None:
    known = Circuit.of(GRAPH, ["input->logits"])
    with pytest.warns(UserWarning, match="true for the ablation 'zero', the scores are of 'resample'"):
        auroc(scores, KnownCircuit(known, "zero"), PAIRS)
    with pytest.warns(UserWarning, match=r"true for prompts of 9 tokens, these have \[4, 5\]"):
        auroc(scores, KnownCircuit(known, "resample", length=9), PAIRS)


def test_evaluating_with_another_ablation_than_the_ranking_draws_a_warning(scores: EdgePatchingResult) -> None:
    with pytest.warns(UserWarning, match="ranked with the ablation 'resample', but circuits are run with 'mean'"):
        faithfulness_curve(MODEL, PAIRS, scores, value="mean", sizes=(0.5, 1.0))


def test_zero_ablation_draws_a_warning(scores: EdgePatchingResult) -> None:
    with pytest.warns(UserWarning, match="zero ablation"):
        evaluate_circuits(MODEL, PAIRS, Circuit.whole(GRAPH), value="zero")


def test_baselines_that_cannot_be_told_apart_give_raw_values() -> None:
    same = random_pairs(4, (5, 5))
    same = type(same)(same.clean, same.clean, same.mask, same.right, same.wrong)
    with pytest.warns(UserWarning, match="differ by no more than rounding"):
        found = evaluate_circuits(MODEL, same, Circuit.whole(GRAPH))
    assert not found.normalized
    np.testing.assert_allclose(found.values, 0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("circuits", "message"),
    [
        ([], "no circuit; expected at least one"),
        (Circuit.of(GRAPH, []), "has no edges"),
        (Circuit.whole(Graph(3, 2, 2)), "not one of 'gpt'"),
        (Circuit.whole(GRAPH, random_model(TransformerConfig(**SIZES), seed=4)), "with other weights"),
        ([Circuit.whole(GRAPH), Circuit.whole(Graph.of(MODEL, neurons=True))], "of another graph than the first"),
    ],
)
def test_circuits_that_cannot_be_judged_are_refused(circuits: Any, message: str) -> None:
    with pytest.raises(LabError, match=message):
        evaluate_circuits(MODEL, PAIRS, circuits)


# from end to end


def test_a_found_circuit_is_saved_read_and_drawn(tmp_path: Path) -> None:
    found = find_circuit(MODEL, PAIRS, share=0.5, held_out=random_pairs(9, (5, 5, 5)))
    assert found.circuit == strongest_edges(found.scores, edges_of_share(GRAPH, 0.5), signed=True)
    assert found.evaluation.raw.shape == (1, 3)  # on the other prompts
    found.save(tmp_path / "found.safetensors")
    assert Result.load(tmp_path / "found.safetensors") == found
    (tmp_path / "found.json").write_text(json.dumps(found.to_dict()))
    read = Circuit.load(tmp_path / "found.json")
    assert read == found.circuit
    read.check(MODEL)
    page = found.to_html()
    for words in ("granularity", "CPR", "edges", "resample"):
        assert words in page


@pytest.mark.usefixtures("unchecked")  # for speed: hundreds of steps; other tests check annotations
def test_every_way_to_find_a_circuit_keeps_no_more_than_it_is_asked_for() -> None:
    for select in ("edges", "greedy", "nodes", "pruning"):
        found = find_circuit(MODEL, PAIRS, method="eap", share=0.4, select=select)
        assert 0 < len(found.circuit) <= edges_of_share(GRAPH, 0.4)
        assert found.circuit == found.circuit.pruned()  # nothing dangles
        assert found.provenance.settings["select"] == select
    nodes = find_circuit(MODEL, PAIRS, share=0.4, select="nodes").circuit
    assert nodes == Circuit.whole(GRAPH).restrict(nodes.nodes).pruned()


def test_acdc_is_found_by_its_threshold() -> None:
    found = find_circuit(MODEL, PAIRS, method="eap", select="acdc", threshold=0.5)
    assert found.circuit == acdc(MODEL, PAIRS, 0.5, "logit_diff").circuit
    assert found.provenance.settings["threshold"] == 0.5
    assert found.stability.k == len(found.circuit)


def test_every_edge_of_a_circuit_is_drawn_once_and_told_on_hover(scores: EdgePatchingResult) -> None:
    found = find_circuit(MODEL, PAIRS, share=0.3)
    lines = lines_of(found.circuit, scores.values)
    assert sorted(line.name for line in lines) == sorted(found.circuit)
    figure = found.plot()
    told = [words for trace in figure.data for words in (trace.hovertext or ())]
    assert sum("-&gt;" in words for words in told) == len(found.circuit)
    names = set(figure.data[-1].text)
    assert names == set(found.circuit.nodes)


def test_the_names_of_the_strongest_edges_are_written_out(scores: EdgePatchingResult) -> None:
    shown = [html.unescape(tick) for tick in scores.plot().layout.yaxis.ticktext]
    assert shown == [GRAPH.name(entry.index) for entry in scores.top(len(shown))]


def test_the_name_of_a_model_cannot_become_markup(tmp_path: Path) -> None:
    model = random_model(TransformerConfig(**SIZES, model_name=SCRIPT), seed=3)
    page = find_circuit(model, PAIRS, share=0.5).to_html()
    assert SCRIPT not in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "eapp"}, "closest: 'eap'"),
        ({"select": "greed"}, "closest: 'greedy'"),
        ({"select": "acdc"}, "expected a number above 0 instead of a share"),
        ({"threshold": 0.1}, "only 'acdc' takes one"),
        ({"share": 0.0}, "expected above 0"),
        ({"share": 1e-9}, "has no edges"),
        ({"metric": "kl", "method": "eap"}, "the gradient is zero there"),
        ({"budget": 500}, "at least"),
    ],
)
def test_what_cannot_be_found_is_refused_in_words(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        find_circuit(MODEL, PAIRS, **arguments)
