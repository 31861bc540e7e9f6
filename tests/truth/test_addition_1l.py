"""The shipped adder computes a + b mod 113 as arXiv:2301.05217 found: by a handful of frequencies."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

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


def loss(logits: Tensor, rows: Tensor) -> float:
    return float(F.cross_entropy(logits, (rows[:, 0] + rows[:, 1]) % 113))


def of_frequency(logits: Tensor, rows: Tensor, k: int) -> Tensor:
    """The part of the logits that is a cosine and a sine of 2 pi k (a + b) / 113, for each answer."""
    angle = 2 * math.pi * k * (rows[:, 0] + rows[:, 1]).double() / 113
    waves = F.normalize(torch.stack([angle.cos(), angle.sin()]), dim=-1)
    return waves.T @ (waves @ logits)


def by_strength(logits: Tensor, rows: Tensor) -> list[Tensor]:
    """The parts of the 56 frequencies, the largest first."""
    parts = [of_frequency(logits, rows, k) for k in range(1, 57)]
    return sorted(parts, key=lambda part: -float(part.norm()))


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


def test_a_handful_of_frequencies_carries_the_logits(logits: Tensor, rows: Tensor) -> None:
    parts = by_strength(logits, rows)
    shares = torch.stack([part.pow(2).sum() for part in parts]) / logits.pow(2).sum()
    assert shares[:4].sum() > 0.95
    assert shares[3] > 100 * shares[4]  # a key frequency, and the largest of the others


def test_removing_every_other_frequency_does_not_hurt(logits: Tensor, rows: Tensor) -> None:
    key = torch.stack(by_strength(logits, rows)[:4]).sum(0)
    assert loss(key, rows) <= loss(logits, rows)


def test_keeping_only_the_others_is_worse_than_chance(logits: Tensor, rows: Tensor) -> None:
    key = torch.stack(by_strength(logits, rows)[:4]).sum(0)
    assert loss(logits - key, rows) > CHANCE


def test_the_embedding_holds_numbers_as_waves_of_few_frequencies(model: GPT) -> None:
    """Fourier analysis of W_E over the 113 numbers: the key frequencies hold most of it (the paper's figure 3)."""
    spectrum = torch.fft.rfft(model.W_E[:113].detach().double(), dim=0)[1:].abs().pow(2).sum(-1)
    strongest, order = spectrum.sort(descending=True)
    assert strongest[:4].sum() > 0.75 * spectrum.sum()
    assert strongest[3] > 3 * strongest[4]
    assert {int(k) + 1 for k in order[:4]} == {15, 16, 33, 38}  # as in the card


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
