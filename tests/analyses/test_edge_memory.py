"""Edge attribution in a small budget takes prompts one after another, and leaves nothing of one behind for the next."""

from __future__ import annotations

import gc

import pytest

from analyses.edge_estimates import edge_scores_of
from interp import PromptPairs, metrics
from interp.graph import Graph
from models import GPT, TransformerConfig
from tests.benchmarks.harness import peak_bytes
from tests.pairs import random_pairs

CONFIG = TransformerConfig(n_layers=1, n_heads=4, d_model=64, d_vocab=11, n_ctx=64)


def peak(model: GPT, pairs: PromptPairs, method: str) -> int:
    """Bytes, with prompts one at a time and garbage left where it lies."""
    gc.disable()
    try:
        return peak_bytes(lambda: edge_scores_of(model, pairs, metrics.logit_diff, Graph.of(model), method, budget=1))
    finally:
        gc.enable()


@pytest.mark.usefixtures("unchecked")  # beartype's frames hold on to arguments
@pytest.mark.parametrize("method", ["EAP", "EAP-IG-inputs", "EAP-IG-activations"])
def test_four_prompts_take_the_memory_of_one(method: str) -> None:
    """A quarter more: the scores of every prompt, which are the result, and allocations that meet by chance."""
    model, four = GPT(CONFIG), random_pairs(2, [64] * 4)
    assert peak(model, four, method) < 1.25 * peak(model, four[:1], method)
