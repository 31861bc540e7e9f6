"""Programs compiled to weights, whose circuits are known: exact edge patching and edge attribution find them.

An edge is in the truth (see `tests.compiled`) if it alone changes any output by 0.5 or more; no other changes one by
more than 1e-6.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from analyses import edge_attribution, edge_patching
from interp import PromptPairs
from interp.circuit import Circuit
from interp.graph import Graph
from models import GPT
from tests.compiled import PROGRAMS, Program, changed_outputs, compiled


def area_under_roc(scores: np.ndarray, truth: np.ndarray) -> float:
    """How often an edge of the truth scores higher than one that is not; ties count half."""
    inside, outside = scores[truth][:, None], scores[~truth][None]
    return float(((inside > outside) + 0.5 * (inside == outside)).mean())


def test_the_compiled_models_compute_what_their_compiler_says(shared_data: Path) -> None:
    for name in PROGRAMS:
        folder = shared_data / "tracr" / name
        model, sizes = compiled(folder), json.loads((folder / "config.json").read_text())
        for line in (folder / "examples.jsonl").read_text().splitlines():
            example = json.loads(line)
            logits = model(torch.tensor([example["ids"]]))[0, 1:]
            if sizes["output_values"] is None:
                np.testing.assert_allclose(logits[:, 0].detach(), example["output"], atol=1e-5)  # given to 6 digits
            else:
                assert [sizes["output_values"][i] for i in logits.argmax(-1)] == example["output"]


@pytest.mark.filterwarnings("ignore:zero ablation")
@pytest.mark.parametrize("value", ["resample", "zero"])
def test_edges_outside_the_true_circuit_have_no_effect_and_those_in_it_have(program: Program, value: str) -> None:
    """1e-6: compiled attention is as sharp as the compiler's finite exactness makes it."""
    model, pairs, truth = program
    found = edge_patching(model, pairs, changed_outputs(model, pairs), value=value, normalize=False)
    true = Circuit.of(Graph.of(model), truth[value]["edges"])
    assert np.abs(found.raw[~true.kept]).max() < 1e-6
    assert found.raw[true.kept].max(1).min() > 0.5
    assert area_under_roc(np.abs(found.values), true.kept) == 1.0
    listed = truth[value]["effect"]
    for name, effect in listed.items():
        assert found.raw[found.graph.index(name)].max() <= effect["max_abs_output_change"] + 1e-5


def test_resampled_edges_outside_the_true_circuit_have_exactly_no_effect(
    program: Program,
) -> None:
    model, pairs, truth = program
    found = edge_patching(model, pairs, changed_outputs(model, pairs), normalize=False)
    outside = ~Circuit.of(Graph.of(model), truth["resample"]["edges"]).kept
    assert (found.values[outside] == 0).all()


def size_of_estimates(model: GPT, pairs: PromptPairs, method: str) -> np.ndarray:
    """Of the effect on a random sum of all outputs, the start token's apart."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(pairs.clean.shape[1] - 1, model.cfg.n_outputs, generator=generator, dtype=torch.float64)

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return (logits[:, 1:] * weights).sum((1, 2))

    found = edge_attribution(model, pairs, metric, method=method, steps=20, checks=1, normalize=False)
    return np.abs(found.raw - found.clean).mean(-1)


def test_edge_attribution_along_the_inputs_finds_the_true_circuit(program: Program) -> None:
    model, pairs, truth = program
    true = Circuit.of(Graph.of(model), truth["resample"]["edges"])
    assert area_under_roc(size_of_estimates(model, pairs, "EAP-IG-inputs"), true.kept) == 1.0


def test_gradients_at_the_run_find_it_unless_its_attention_is_saturated(program: Program) -> None:
    """Attention that is as good as hard has no gradient at queries and keys, where `sort_unique` computes."""
    model, pairs, truth = program
    true = Circuit.of(Graph.of(model), truth["resample"]["edges"])
    found = size_of_estimates(model, pairs, "EAP")
    assert (found[~true.kept] == 0).all()
    computes_there = any(edge.endswith(("<q>", "<k>")) for edge in true)
    assert (area_under_roc(found, true.kept) == 1.0) == (not computes_there)
