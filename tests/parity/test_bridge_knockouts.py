"""Knock-outs give the same numbers on TransformerLens's bridge and on our GPT of the same weights.

Tolerance: 1e-4, in float32; logits of these models are of order one and agree to some 1e-6.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from analyses import ablation, attention_knockout
from analyses.effects import Effects
from models import GPT, load
from models.bridge import Bridge
from tests.checkpoints import FAMILIES, VOCAB, saved
from tests.pairs import random_pairs

PROMPTS = random_pairs(3, lengths=(5, 4), side="left", d_vocab=VOCAB)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT, Bridge]:
    directory = str(saved(request.param, tmp_path_factory.mktemp(request.param)))
    return load(directory), load(directory, backend="transformer-lens")


def assert_same(ours: Effects, theirs: Effects) -> None:
    assert np.abs(ours.values).max() > 1e-2  # something to compare
    np.testing.assert_allclose(theirs.raw, ours.raw, atol=1e-4, rtol=0)
    np.testing.assert_allclose(theirs.base, ours.base, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:zero ablation")
@pytest.mark.parametrize("value", ["zero", "mean", "resample"])
@pytest.mark.parametrize("of", ["head", "attn", "mlp", "layer", "neuron"])
def test_ablation(pair: tuple[GPT, Bridge], of: str, value: str) -> None:
    assert_same(*(ablation(model, PROMPTS, of, value) for model in pair))


@pytest.mark.parametrize("asked", [{"window": 2}, {"by": ("layer", "head")}], ids=["window", "heads"])
def test_attention_knockout(pair: tuple[GPT, Bridge], asked: dict[str, Any]) -> None:
    assert_same(*(attention_knockout(model, PROMPTS, -1, [-2, -3], **asked) for model in pair))
