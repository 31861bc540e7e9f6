"""In the shipped induction model the edge from the previous-token head into an induction head's key is found first.

Elhage et al. 2021: a key of the second layer must hold which token came before, and a head of the first layer writes
that. Here the corrupted prompt has another letter at the first occurrence of the last one, so that the induction heads
find nothing to look at; what is lost must flow from the previous-token head into their keys.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from analyses import edge_attribution, edge_patching, head_scores
from analyses.edge_scores import EdgeScores
from interp import PromptPairs
from models import GPT, load

LETTERS, BLOCK, AGAIN = 64, 12, 6


@pytest.fixture(scope="module")
def model() -> GPT:
    return load("induction-2l")


@pytest.fixture(scope="module")
def pairs() -> PromptPairs:
    """A block of different letters, then its first ones again; what followed the last of them is right."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.stack([torch.randperm(LETTERS, generator=generator)[: BLOCK + 2] for _ in range(16)])
    block, strange, wrong = rows[:, :BLOCK], rows[:, BLOCK], rows[:, BLOCK + 1]
    clean = torch.cat([block, block[:, :AGAIN]], 1)
    corrupted = clean.clone()
    corrupted[:, AGAIN - 1] = strange
    return PromptPairs.from_tokens(clean, corrupted, block[:, AGAIN], wrong)


def strongest_between_heads(result: EdgeScores) -> str:
    """The name of the edge from one head to another with the largest score."""
    between = [name.startswith("a") and name.endswith(">") and "->a" in name for name in result.graph.names]
    return result.graph.names[int(np.argmax(np.where(between, np.abs(result.values), -1.0)))]


def expected(model: GPT) -> set[str]:
    """From the head that looks at the previous token to the keys of those that look after the last occurrence."""
    roles = head_scores(model)
    previous, induction = np.array(roles.previous), np.array(roles.induction)
    layer, head = divmod(int(previous.argmax()), model.cfg.n_heads)
    assert previous[layer, head] > 0.8
    return {f"a{layer}.h{head}->a{place[0]}.h{place[1]}<k>" for place in np.argwhere(induction > 0.8).tolist()}


@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_the_edge_into_an_induction_heads_key_is_found_first(model: GPT, pairs: PromptPairs, direction: str) -> None:
    exact = edge_patching(model, pairs, direction=direction, progress=False)
    assert strongest_between_heads(exact) in expected(model)
    for method in ("EAP-IG-inputs", "EAP-IG-activations"):
        estimated = edge_attribution(model, pairs, direction=direction, method=method, progress=False)
        assert strongest_between_heads(estimated) in expected(model)
        assert np.corrcoef(estimated.values, exact.values)[0, 1] > 0.9


def test_the_previous_token_head_needs_its_values_alone(model: GPT, pairs: PromptPairs) -> None:
    """What it carries is the token, from the input: nearly the whole way, and more than any other edge."""
    exact = edge_patching(model, pairs, progress=False)
    (sender,) = {name.partition("->")[0] for name in expected(model)}
    assert exact.top(1)[0].at[0][1][1] == f"input->{sender}<v>"
    assert exact.values[exact.graph.index(f"input->{sender}<v>")] > 0.8
