"""Token and position vectors are the same on TransformerLens's bridge and on our GPT of the same weights.

Tolerance: 1e-5, since both read the same W_E and W_pos, and float32 products of some twenty numbers follow. Losses are
of whole forwards: 1e-4, as in test_bridge_analyses.py.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import analyses
from interp.errors import LabError
from models.tokenizers import Tokenizer, characters
from tests.parity.bridge_models import KINDS, VOCAB, Pair, both, saved

TOKENS = [3, 1, 4]
ROWS = torch.randint(VOCAB, (3, 9), generator=torch.Generator().manual_seed(4))
TEXT = "to be or not to be"

# The analysis -> its run and the arrays that must be the same, and how close.
RUNS: dict[str, tuple[Callable[[Any], Any], tuple[str, ...], float]] = {
    "nearest_tokens": (lambda model: analyses.nearest_tokens(model, TOKENS, 4), ("values", "ids"), 1e-5),
    "analogies": (
        lambda model: analyses.analogies(model, [(1, 2, 3, 4), (7, 6, 5)]), ("values", "ids", "answer_rank"), 1e-5
    ),
    "embedding_pca": (lambda model: analyses.embedding_pca(model, k=3), ("values", "explained", "directions"), 1e-5),
    "loss_by_position": (lambda model: analyses.loss_by_position({"it": [model]}, ROWS), ("values",), 1e-4),
    "loss_per_byte": (
        lambda model: analyses.loss_per_byte({"it": model}, TEXT), ("values", "by_text", "nats_per_token"), 1e-4
    ),
}  # fmt: skip
POSITIONS = ("values", "explained", "spectrum", "wavelength", "fit")
OF_TOKENIZERS = {"vocabulary_statistics"}
EMBEDDING_ANALYSES = {*RUNS, "position_geometry"} | OF_TOKENIZERS
"""Those that are held to the bridge here, and those that run no model."""


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    pair = both(saved(request.param, tmp_path_factory.mktemp(request.param)))
    alphabet = " " + string.ascii_letters + string.digits + string.punctuation
    for model in pair:
        model.tokenizer = Tokenizer(
            characters(alphabet[: VOCAB - 1]).core
        )  # no start token, which a bridge may leave out
    return pair


@pytest.mark.parametrize("analysis", RUNS)
def test_it_gives_the_same_numbers(pair: Pair, analysis: str) -> None:
    run, names, close = RUNS[analysis]
    ours, theirs = (run(model) for model in pair)
    for name in names:
        expected, got = getattr(ours, name), getattr(theirs, name)
        assert np.abs(expected).max() > 1e-3, f"{name} is nothing to compare"
        np.testing.assert_allclose(got, expected, atol=close * max(1, np.abs(expected).max()), err_msg=name)
    assert ours.labels == theirs.labels


def test_positions_are_the_same_or_refused_by_both(pair: Pair) -> None:
    if pair[0].cfg.positional_embedding_type == "rotary":
        for model in pair:
            with pytest.raises(LabError, match=r"no position vectors: its positions turn queries and keys"):
                analyses.position_geometry(model)
        return
    ours, theirs = (analyses.position_geometry(model) for model in pair)
    for name in POSITIONS:
        np.testing.assert_allclose(getattr(theirs, name), getattr(ours, name), rtol=1e-5, atol=1e-5, err_msg=name)
