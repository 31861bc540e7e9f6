"""What trained embeddings are known to hold: kinds of words lie together, differences carry relations, numbers circle.

Thresholds lie between what was measured (in each docstring) and what an untrained model of the same shape gives.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from analyses import analogies, embedding_pca, nearest_tokens, position_geometry
from analyses.fourier import shares_of_frequencies
from interp.tasks.indirect_object import NAMES
from interp.tasks.world import COUNTRIES
from models import GPT, load

KEY_FREQUENCIES = (15, 33, 38, 16)  # of the adder: tests/truth/test_addition_1l.py


@pytest.fixture(scope="module")
def town() -> GPT:
    return load("town")


@pytest.fixture(scope="module")
def untrained(town: GPT) -> GPT:
    torch.manual_seed(0)
    return GPT(town.cfg, tokenizer=town.tokenizer)


def test_the_towns_names_lie_among_names(town: GPT, untrained: GPT) -> None:
    """Of the ten nearest to each of 60 names 99 % are names, though names are 4 % of the vocabulary; untrained 4 %."""
    names = {name for bare in NAMES for name in (bare, f" {bare}")}
    asked = [f" {name}" for name in NAMES]
    trained, fresh = (
        np.isin(nearest_tokens(model, asked).tokens[:, 0], [*names]).mean() for model in (town, untrained)
    )
    assert trained > 0.9
    assert fresh < 0.2


def test_the_towns_capitals_are_a_difference_from_their_countries(town: GPT, untrained: GPT) -> None:
    """capital - country + other country: 80 % of 1406 have the other capital first, 97 % in five; untrained 0.1 %."""
    capitals = {f" {country}": f" {capital}" for country, (capital, _) in COUNTRIES.items()}
    asked = [(capitals[a], a, b, capitals[b]) for a in capitals for b in capitals if a != b]
    found = analogies(town, asked)
    assert found.accuracy > 0.7
    assert (found.answer_rank < 5).mean() > 0.9
    assert analogies(untrained, asked).accuracy < 0.02


def test_the_adders_numbers_lie_on_circles_of_its_key_frequencies() -> None:
    """Eight components hold 83 % of the variance of the 113 numbers, 99 % of that in waves of four frequencies."""
    found = embedding_pca(load("addition-1l"), range(113), k=8)
    assert found.explained.sum() > 0.75
    shares = shares_of_frequencies(torch.tensor(found.values)).numpy()
    assert shares[[k - 1 for k in KEY_FREQUENCIES]].sum() > 0.95
    assert set(np.argsort(-shares)[:4] + 1) == set(KEY_FREQUENCIES)


def test_near_positions_of_the_town_are_alike(town: GPT) -> None:
    """Mean cosine 0.35 of neighbours, 0.04 of positions that are 30 apart."""
    similar = position_geometry(town).values
    assert np.diagonal(similar, 1).mean() > 0.25
    assert abs(np.diagonal(similar, 30).mean()) < 0.15
