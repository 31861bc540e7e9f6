"""Programs compiled to weights, whose circuits are known: exact edge patching and edge attribution find them.

The truth (`../shared/data/tracr`) is for inputs of the greatest length, with every output that is not the start token's
read: an edge is in it if it alone changes any output by 0.5 or more, and no other changes one by more than 1e-6.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from analyses import edge_attribution, edge_patching
from interp import PromptPairs
from interp.circuit import Circuit
from interp.graph import Graph
from models import GPT, TransformerConfig

PROGRAMS = ("reverse", "frac_prevs", "sort_unique")
N_PROMPTS = 48


def compiled(folder: Path) -> GPT:
    """A compiled program as a model of ours, in float64."""
    sizes = json.loads((folder / "config.json").read_text())
    same = ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "n_ctx", "d_vocab", "act_fn")
    cfg = TransformerConfig(
        **{name: sizes[name] for name in same},
        d_vocab_out=max(2, sizes["d_vocab_out"]),  # pairs of prompts have two answers; what is added stays zero
        normalization_type=None,
        attention_dir="bidirectional",
        unembed_bias=True,
        model_name=sizes["name"],
        dtype=torch.float64,
    )
    model = GPT(cfg)
    weights = load_file(folder / "model.safetensors")
    with torch.no_grad():
        model.embed.W_E.copy_(weights["embed.W_E"])
        model.pos_embed.W_pos.copy_(weights["pos_embed.W_pos"])
        for layer, block in enumerate(model.blocks):
            mine = {name.partition(f"blocks.{layer}.")[2]: value for name, value in weights.items()}
            for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
                getattr(block.attn, name).copy_(mine[f"attn.{name}"])
            for name in ("W_in", "b_in", "W_out", "b_out"):
                getattr(block.mlp, name).copy_(mine[f"mlp.{name}"])
        model.unembed.weight.zero_()[: sizes["d_vocab_out"]] = weights["unembed.W_U"].T
        model.unembed.bias.zero_()[: sizes["d_vocab_out"]] = weights["unembed.b_U"]
    return model


def inputs(folder: Path) -> torch.Tensor:
    """Random inputs of the greatest length, behind the start token."""
    sizes = json.loads((folder / "config.json").read_text())
    ids = [sizes["token_to_id"][str(token)] for token in sizes["input_tokens"]]
    choose = itertools.permutations if sizes["unique_tokens_only"] else itertools.product
    repeat = {} if sizes["unique_tokens_only"] else {"repeat": sizes["max_seq_len"]}
    every = torch.tensor(list(choose(ids, sizes["max_seq_len"]) if not repeat else choose(ids, **repeat)))
    every = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))]
    return torch.cat([torch.full((len(every), 1), sizes["bos_id"]), every], 1)


@pytest.fixture(scope="module", params=PROGRAMS)
def program(request: Any, shared_data: Path) -> tuple[GPT, PromptPairs, Any]:
    """The model, pairs of inputs, and the truth."""
    folder = shared_data / "tracr" / request.param
    ids = inputs(folder)
    answers = torch.zeros(N_PROMPTS, dtype=torch.long)
    pairs = PromptPairs.from_tokens(ids[:N_PROMPTS], ids[N_PROMPTS : 2 * N_PROMPTS], answers, answers + 1)
    return compiled(folder), pairs, json.loads((folder / "truth.json").read_text())


def changed_outputs(model: GPT, pairs: PromptPairs) -> Any:
    """How far the outputs are from the clean run's, start token apart: 0 in the clean run."""
    with torch.no_grad():
        expected = model(pairs.clean)[:, 1:]

    def metric(logits: torch.Tensor, asked: PromptPairs) -> torch.Tensor:
        rows = (asked.clean[:, None] == pairs.clean[None]).all(-1).int().argmax(1)
        return (logits[:, 1:] - expected[rows]).abs().amax((1, 2))

    return metric


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
def test_edges_outside_the_true_circuit_have_no_effect_and_those_in_it_have(
    program: tuple[GPT, PromptPairs, Any], value: str
) -> None:
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
    program: tuple[GPT, PromptPairs, Any],
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


def test_edge_attribution_along_the_inputs_finds_the_true_circuit(program: tuple[GPT, PromptPairs, Any]) -> None:
    model, pairs, truth = program
    true = Circuit.of(Graph.of(model), truth["resample"]["edges"])
    assert area_under_roc(size_of_estimates(model, pairs, "EAP-IG-inputs"), true.kept) == 1.0


def test_gradients_at_the_run_find_it_unless_its_attention_is_saturated(program: tuple[GPT, PromptPairs, Any]) -> None:
    """Attention that is as good as hard has no gradient at queries and keys, where `sort_unique` computes."""
    model, pairs, truth = program
    true = Circuit.of(Graph.of(model), truth["resample"]["edges"])
    found = size_of_estimates(model, pairs, "EAP")
    assert (found[~true.kept] == 0).all()
    computes_there = any(edge.endswith(("<q>", "<k>")) for edge in true)
    assert (area_under_roc(found, true.kept) == 1.0) == (not computes_there)
