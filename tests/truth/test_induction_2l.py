"""The shipped induction model holds the circuit of Elhage et al. (2021) and arXiv:2209.11895, and our tools find it.

Chance is ln 64 = 4.16 nats: a letter of 64.
"""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from analyses import activation_patching, head_scores
from interp import tasks
from interp.edits import mean, zero
from interp.errors import LabError
from interp.sites import Site
from interp.tasks.repetition import repeated_tokens
from models import GPT, load
from models.norm import LayerNorm
from models.zoo.repeats import held_out, measure, repeat_loss

CHANCE = 4.16


@pytest.fixture(scope="module")
def model() -> GPT:
    return load("induction-2l")


@pytest.fixture(scope="module")
def rows() -> tuple[Tensor, Tensor]:
    return held_out()


@pytest.fixture(scope="module")
def previous_head(model: GPT) -> int:
    """The previous-token head, of layer 0."""
    scores = torch.as_tensor(head_scores(model).previous)
    layer, head = divmod(int(scores.argmax()), model.cfg.n_heads)
    assert layer == 0
    return head


def test_a_repeat_is_foreseen(model: GPT, rows: tuple[Tensor, Tensor]) -> None:
    with torch.no_grad():
        assert repeat_loss(model, *rows) < 0.1
        first = model(rows[0][:, :17], return_type="loss")
    assert first > CHANCE - 0.1  # what has not been seen before cannot be foreseen


def test_a_repeat_of_different_letters_is_foreseen_too(model: GPT) -> None:
    with torch.no_grad():
        losses = model(repeated_tokens(model, 32, 20), return_type="loss", loss_per_token=True)
    assert losses[:, 21:].mean() < 0.1


def test_one_head_looks_at_the_previous_token(model: GPT, previous_head: int) -> None:
    assert head_scores(model).previous[0, previous_head] > 0.8
    assert measure(model)["previous_token"] > 0.8


def test_a_head_of_the_second_layer_is_an_induction_head(model: GPT) -> None:
    scores = head_scores(model).induction
    assert scores[1].max() > 0.8
    assert scores[0].max() < 0.1
    assert measure(model)["induction"] > 0.8


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_without_the_previous_token_head_there_is_no_induction(
    model: GPT, rows: tuple[Tensor, Tensor], previous_head: int, ablation: str
) -> None:
    site = Site("z", 0, head=previous_head)
    if ablation == "zero":
        edit = zero(site)
    else:
        _, cache = model.run_with_cache(rows[0])
        edit = mean(site, cache)
    with torch.no_grad(), model.hooks([edit.as_hook()]):
        assert repeat_loss(model, *rows) > 4


def test_the_induction_heads_copy(model: GPT) -> None:
    """Copying score of W_E W_V W_O W_U, sum of eigenvalues over sum of their sizes: 1 is a perfect copier."""
    letters, norm = slice(0, 64), cast(LayerNorm, model.get_submodule("blocks.1.ln1"))
    final = cast(LayerNorm, model.ln_final)
    for head in head_scores(model).induction[1].argsort()[-2:]:
        ov = model.W_V[1, int(head)] @ model.W_O[1, int(head)]
        # Layer norm's gains belong to the circuit, and neither norm lets the mean of a vector through.
        read = (model.W_E[letters] - model.W_E[letters].mean(-1, keepdim=True)) * norm.w
        write = final.w[:, None] * model.W_U[:, letters]
        circuit = read @ (ov - ov.mean(-1, keepdim=True)) @ write
        eigenvalues = torch.linalg.eigvals(circuit.detach())
        assert eigenvalues.real.sum() / eigenvalues.abs().sum() > 0.95


def test_patching_finds_the_heads_that_copy(model: GPT) -> None:
    """The corrupted prompt changes the token to be copied: each induction head brings part of it back, layer 0 none."""
    effect = torch.as_tensor(activation_patching(model, tasks.induction(model, n=8), site="z").values)
    assert (effect[1] > 0.1).all()  # 1: the whole difference between the two runs
    assert effect[0].abs().max() < 0.01


def test_the_circuit_forms_in_a_phase_change() -> None:
    """From chance to nearly nothing, while the two heads of the circuit form."""
    start, middle, end = (measure(load("induction-2l", revision=f"step-{step}")) for step in (0, 300, 1500))
    assert start["repeat_loss"] > CHANCE - 0.1
    assert max(start["induction"], start["previous_token"]) < 0.1
    assert 0.1 < middle["repeat_loss"] < 2
    assert end["repeat_loss"] < 0.1
    assert min(end["induction"], end["previous_token"]) > 0.8


def test_a_dozen_steps_of_the_training_are_kept() -> None:
    with pytest.raises(LabError, match="known: step-0, step-100") as refused:
        load("induction-2l", revision="step-1")
    assert str(refused.value).count("step-") >= 12 + 1  # and the one asked for
