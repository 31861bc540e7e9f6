"""The shipped adder computes a + b mod 113 as arXiv:2301.05217 found: by a handful of frequencies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor

from analyses import modular_spectrum
from analyses.fourier import ModularSpectrum
from interp.edits import replace
from interp.sites import Site
from models import GPT, load
from models.zoo import recipes
from models.zoo.modular import ModularAddition

CHANCE = math.log(113)


@pytest.fixture(scope="module")
def model() -> GPT:
    return load("addition-1l")


@pytest.fixture(scope="module")
def data() -> ModularAddition:
    source = recipes.find("addition-1l").lesson().batches
    assert isinstance(source, ModularAddition)
    return source


@pytest.fixture(scope="module")
def rows(data: ModularAddition) -> Tensor:
    return data.all_rows()


@pytest.fixture(scope="module")
def logits(model: GPT, rows: Tensor) -> Tensor:
    """At the equals sign, of every pair, without their mean over the 113 answers."""
    with torch.no_grad():
        logits = model(rows)[:, -1].double()
    return logits - logits.mean(-1, keepdim=True)


@pytest.fixture(scope="module")
def spectrum(model: GPT) -> ModularSpectrum:
    return modular_spectrum(model)


def test_pairs_that_were_never_trained_on_are_added_right(model: GPT, data: ModularAddition) -> None:
    assert data.n_train == 3830  # 30 % of 12,769
    trained = {tuple(row) for row in data.all_rows()[data.order[: data.n_train]].tolist()}
    assert not trained & {tuple(row) for row in data.test.tokens.tolist()}
    measured = data.measure(model)
    assert measured["test_accuracy"] == 1.0
    assert measured["test_loss"] < 1e-3
    assert measured["train_loss"] < 1e-3


def test_it_memorised_before_it_generalised(data: ModularAddition) -> None:
    early = data.measure(load("addition-1l", revision="step-1000"))
    assert early["train_accuracy"] > 0.99
    assert early["test_loss"] > 2 * CHANCE


def test_a_handful_of_frequencies_carries_the_logits(spectrum: ModularSpectrum) -> None:
    assert spectrum.key == (15, 33, 38, 16)  # as in the card
    shares = np.sort(spectrum.values)[::-1]
    assert shares[:4].sum() > 0.95
    assert shares[3] > 100 * shares[4]  # a key frequency, and the largest of the others


def test_removing_every_other_frequency_does_not_hurt(spectrum: ModularSpectrum) -> None:
    assert spectrum.restricted <= spectrum.loss < 1e-4


def test_keeping_only_the_others_is_worse_than_chance(spectrum: ModularSpectrum) -> None:
    assert spectrum.excluded > spectrum.chance == CHANCE


def test_no_key_frequency_is_enough_without_another_and_no_other_matters(spectrum: ModularSpectrum) -> None:
    key = [k - 1 for k in spectrum.key]
    others = np.delete(spectrum.without, key)
    assert (spectrum.without[key] > 100 * spectrum.loss).all()
    assert (others < 2 * spectrum.loss).all()


def test_before_it_generalises_the_key_frequencies_already_know_more_than_the_model(data: ModularAddition) -> None:
    """The restricted loss falls before the test loss does, as in the paper's figure 7; on pairs never trained on."""
    unseen = torch.ones(113 * 113, dtype=torch.bool)
    unseen[data.order[: data.n_train]] = False
    unseen = rearrange(unseen, "(a b) -> a b", a=113)
    early = modular_spectrum(load("addition-1l", revision="step-1500"), key=(15, 33, 38, 16), pairs=unseen)
    assert early.restricted < CHANCE / 2 < CHANCE < early.loss
    assert early.excluded > early.loss


def test_the_embedding_holds_numbers_as_waves_of_few_frequencies(spectrum: ModularSpectrum) -> None:
    """Fourier analysis of W_E over the 113 numbers: the key frequencies hold most of it (the paper's figure 3)."""
    order = np.argsort(-spectrum.embedding)
    assert spectrum.embedding[order[:4]].sum() > 0.75
    assert spectrum.embedding[order[3]] > 3 * spectrum.embedding[order[4]]
    assert {int(k) + 1 for k in order[:4]} == {*spectrum.key}


def test_swapping_one_number_changes_the_sum_to_match(model: GPT) -> None:
    """Patching the embedding of `a` with another number's gives the other sum, through the lab's own edit."""
    clean, other = torch.tensor([[7, 20, 113]]), torch.tensor([[50, 20, 113]])
    _, cache = model.run_with_cache(other)
    with torch.no_grad(), model.hooks([replace(Site("embed", pos=0), cache).as_hook()]):
        assert int(model(clean)[0, -1].argmax()) == (50 + 20) % 113


def test_addition_does_not_mind_the_order(model: GPT, rows: Tensor, logits: Tensor) -> None:
    """a + b = b + a, for each of the 12,769 pairs."""
    grid = rearrange(logits, "(a b) answer -> a b answer", a=113)
    swapped = rearrange(grid, "a b answer -> b a answer")
    assert torch.equal(grid.argmax(-1), swapped.argmax(-1))


def test_text_goes_in_and_the_sum_comes_out(model: GPT) -> None:
    with torch.no_grad():
        answer = int(model(model.to_tokens("100 + 50 ="))[0, -1].argmax())
    assert model.to_string(torch.tensor([answer])) == "37"
