"""Analyses on recurrent encoder-decoders: states are patched; what needs blocks or heads says that there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import analyses
from analyses import activation_patching
from interp import PromptPairs, Site, edits, metrics, sweep
from interp.errors import LabError
from models.rnn import RNNEncoderDecoder
from models.rnn_config import CELLS
from tests.models.test_rnn import D_VOCAB, ids, random_rnn
from tests.strategies import SEEDS

# float64: patched runs in a batch and alone differ in the order of summation; effects are divided by a baseline
# difference of about 1.
CLOSE: Any = {"atol": 1e-8, "rtol": 1e-8}
TARGET = torch.tensor([0, 5])


def source_pairs(seed: int, pos: int = 6, first: int = 2, side: str | None = None) -> PromptPairs:
    """Sources that differ from position `first` on, where one token in two does."""
    clean = ids(seed, 3, pos)
    corrupted = clean.clone()
    corrupted[:, first::2] = (clean[:, first::2] + 1) % D_VOCAB
    mask = torch.ones(3, pos, dtype=torch.bool)
    if side is not None:
        mask[1, : first - 1] = side != "left"
        mask[2, -1:] = side == "left"
    return PromptPairs.from_tokens(clean, corrupted, torch.tensor([3, 4, 5]), torch.tensor([6, 7, 8]), mask=mask)


def naive_patching(model: RNNEncoderDecoder, pairs: PromptPairs, name: str) -> Tensor:
    """The logit difference with one position of one hook point at a time from the clean run, prompt by prompt."""
    values = []
    for row in range(len(pairs)):
        real = pairs.mask[row]
        clean, corrupted = pairs.clean[row, real][None], pairs.corrupted[row, real][None]
        _, cache = model.run_with_cache(clean, TARGET[None])
        offset = int(real.int().argmax())
        effects = []
        for pos in range(pairs.clean.shape[1] if name.startswith("encoder") else len(TARGET)):
            at = pos - offset if name.startswith("encoder") else pos

            def patch(tensor: Tensor, hook: Any, at: int = at, cache: Any = cache) -> None:
                if 0 <= at < tensor.shape[1]:
                    tensor[:, at] = cache[hook.name][:, at]

            logits = model.run_with_hooks(corrupted, TARGET[None], fwd_hooks=[(name, patch)])[0, -1]
            effects.append(logits[pairs.right[row, 0]] - logits[pairs.wrong[row, 0]])
        values.append(torch.stack(effects))
    return torch.stack(values, 1)


@given(st.sampled_from(CELLS), st.booleans(), SEEDS, st.sampled_from([None, "left", "right"]), st.data())
@torch.no_grad()
def test_patching_hidden_states_is_the_naive_loop(
    cell: str, attention: bool, seed: int, side: str | None, data: Any
) -> None:
    model, pairs = random_rnn(cell, attention, seed), source_pairs(seed, side=side)
    sites = ("encoder.hidden", "encoder.cell", "decoder.hidden", "encoder.embed", "decoder.context")
    hook = {site: Site(site).hook_name for site in sites}
    site = data.draw(st.sampled_from([site for site in sites if hook[site] in model.hook_dict]))
    found = activation_patching(model.encoder_given(TARGET), pairs, site=site, normalize=False, progress=False)
    np.testing.assert_allclose(found.raw, naive_patching(model, pairs, hook[site]).numpy(), **CLOSE)
    assert found.axes == ("pos",)


@given(st.sampled_from(["RNN", "GRU"]), SEEDS, st.integers(0, 5))
@torch.no_grad()
def test_without_attention_one_hidden_state_holds_all_that_the_decoder_will_ever_know(
    cell: str, seed: int, first: int
) -> None:
    """After the last difference any one state of the clean run gives the clean answer; before the first, none does."""
    clean = ids(seed, 3, 6)
    corrupted = clean.clone()
    corrupted[:, first] = (clean[:, first] + 1) % D_VOCAB
    pairs = PromptPairs.from_tokens(clean, corrupted, torch.tensor([3, 4, 5]), torch.tensor([6, 7, 8]))
    view = random_rnn(cell, False, seed).encoder_given(TARGET)
    found = activation_patching(view, pairs, site="encoder.hidden", normalize=False, progress=False)
    np.testing.assert_allclose(found.raw[:first], np.broadcast_to(found.corrupted, (first, 3)), **CLOSE)
    np.testing.assert_allclose(found.raw[first:], np.broadcast_to(found.clean, (6 - first, 3)), **CLOSE)


@torch.no_grad()
def test_with_attention_no_single_state_is_enough() -> None:
    pairs = source_pairs(3)
    view = random_rnn("GRU", True, 3).encoder_given(TARGET)
    found = activation_patching(view, pairs, site="encoder.hidden", normalize=False, progress=False)
    assert np.abs(found.raw[-1] - found.clean).min() > 1e-6
    every = [[edits.replace(Site("encoder.hidden"), view.run_with_cache(pairs.clean)[1])]]
    whole = sweep.run(view, pairs.swapped(), every, metrics.get("logit_diff"), progress=False)
    np.testing.assert_allclose(np.abs(whole.values[0]), np.abs(found.clean), **CLOSE)


def test_two_models_states_are_compared_and_what_needs_blocks_is_left_out() -> None:
    views = [random_rnn("GRU", True, seed).encoder_given(TARGET) for seed in (1, 1, 2)]
    same, other = (analyses.compare(views[0], view, PROMPT) for view in views[1:])
    assert "encoder.hook_hidden" in same.labels["hook"]
    assert same.relative.max() == 0 < other.relative.min()
    assert {"layers", "heads", "lens"} <= set(same.left_out)


def test_the_answer_stands_at_the_sources_last_real_position_and_nowhere_else() -> None:
    model, source, mask = random_rnn("GRU", True), ids(1, 2, 4), torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]]).bool()
    logits = model.encoder_given(TARGET)(source, attention_mask=mask)
    expected = model(source, TARGET.expand(2, -1), attention_mask=mask)[:, -1]
    torch.testing.assert_close(logits[[0, 1], [2, 3]], expected)
    assert logits.isnan().sum() == 2 * 3 * D_VOCAB


@pytest.mark.usefixtures("unchecked")
def test_a_target_that_is_not_one_row_of_ids_is_refused() -> None:
    model = random_rnn("GRU", True)
    with pytest.raises(LabError, match=r"target has shape \(2, 2\); expected one row"):
        model.encoder_given(torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(LabError, match="token ids run from 0 to 11; expected 0 to 10"):
        model.encoder_given(torch.tensor([0, 11]))


PAIRS, PROMPT = source_pairs(0), ids(0, 1, 6)
CALLS: dict[str, Callable[[Any], Any]] = {
    "ablation": lambda model: analyses.ablation(model, PAIRS),
    "activation_patching": lambda model: activation_patching(model, PAIRS, site="z"),
    "attention_knockout": lambda model: analyses.attention_knockout(model, PAIRS, queries=[5], keys=[0]),
    "attention_patterns": lambda model: analyses.attention_patterns(model, PROMPT),
    "attribution_patching": lambda model: analyses.attribution_patching(model, PAIRS, site="encoder.hidden"),
    "causal_trace": lambda model: analyses.causal_trace(model, PAIRS),
    "circuit_eigenvalues": lambda model: analyses.circuit_eigenvalues(model),
    "component_lens": lambda model: analyses.component_lens(model, PROMPT),
    "copying_scores": lambda model: analyses.copying_scores(model),
    "edge_attribution": lambda model: analyses.edge_attribution(model, PAIRS),
    "edge_patching": lambda model: analyses.edge_patching(model, PAIRS),
    "find_circuit": lambda model: analyses.find_circuit(model, PAIRS),
    "head_attribution": lambda model: analyses.head_attribution(model, PAIRS),
    "head_composition": lambda model: analyses.head_composition(model),
    "head_roles": lambda model: analyses.head_roles(model, PAIRS),
    "head_scores": lambda model: analyses.head_scores(model),
    "layer_similarity": lambda model: analyses.layer_similarity(model, model, PROMPT),
    "logit_lens": lambda model: analyses.logit_lens(model, PROMPT),
    "neuron_attribution": lambda model: analyses.neuron_attribution(model, PAIRS),
    "ov_circuit": lambda model: analyses.ov_circuit(model),
    "path_patching": lambda model: analyses.path_patching(model, PAIRS),
    "source_attribution": lambda model: analyses.source_attribution(model, PAIRS),
    "steering_vectors": lambda model: analyses.steering_vectors(model, PAIRS),
    "virtual_weights": lambda model: analyses.virtual_weights(model, Site("embed"), Site("unembed.out")),
}


@pytest.mark.parametrize("seen_as", ["the model itself", "a model of its sources"])
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.usefixtures("unchecked")
def test_an_analysis_of_blocks_and_heads_says_that_there_are_none(name: str, seen_as: str) -> None:
    model = random_rnn("GRU", True)
    given = model if seen_as == "the model itself" else model.encoder_given(TARGET)
    with pytest.raises(LabError):
        CALLS[name](given)


def test_the_refusal_says_what_there_is_instead() -> None:
    model = random_rnn("GRU", True)
    with pytest.raises(LabError, match=r"a recurrent encoder-decoder has no .*encoder_given\(target\), pairs, site="):
        analyses.logit_lens(model, PROMPT)
    with pytest.raises(LabError, match=r"has no 'z'; its sites: encoder\.embed, encoder\.hidden, .*decoder\.context"):
        activation_patching(model.encoder_given(TARGET), PAIRS, site="z")
    assert not hasattr(model, "blocks")
    with pytest.raises(AttributeError, match="has no attribute 'heads'"):
        model.heads  # noqa: B018
