"""The DPO loss is its formula, its reference stays as it was, its measures are what they say, and a run resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import product
from math import exp, log, log1p
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import LabError
from models import GPT
from models.checkpoints import read_log
from models.examples import Preference
from models.preferences import DPO, Pair, Preferences, PreferenceScores, answer_kl, frozen, paired, pairs
from models.tokenizers import characters
from models.training import TrainingConfig, train
from tests.models.test_fine_tuning import ALPHABET, SIZES, WORD, tiny
from tests.strategies import SEEDS

ROOT = Path(__file__).resolve().parents[2]
PREFERENCES = st.lists(
    st.tuples(WORD, WORD, WORD).filter(lambda t: t[1] != t[2]).map(lambda t: Preference(*t)), min_size=1, max_size=4
)


def summed_log_prob(model: GPT, prompt: tuple[int, ...], told: tuple[int, ...]) -> torch.Tensor:
    """log p(answer | prompt) of a single row, token after token."""
    row = torch.tensor([[*prompt, *told]])
    logits = model(row[:, :-1])[0]
    total = logits.new_zeros(())
    for i, token in enumerate(told, len(prompt) - 1):
        total = total + logits[i, token] - logits[i].exp().sum().log()
    return total


def rewards(policy: GPT, reference: GPT, pair: Pair, beta: float) -> list[torch.Tensor]:
    return [
        beta
        * (summed_log_prob(policy, each.prompt, each.answer) - summed_log_prob(reference, each.prompt, each.answer))
        for each in pair
    ]


@given(PREFERENCES, st.sampled_from([0.1, 0.5, 2.0]), SEEDS)
def test_the_loss_is_the_papers_formula_and_so_is_its_gradient(
    preferences: list[Preference], beta: float, seed: int
) -> None:
    """arXiv:2305.18290, eq. 7, and the gradient that the paper derives from it (§4), in loops over single rows:

    -β E[σ(reward of the rejected - reward of the chosen) (∇ log π(chosen) - ∇ log π(rejected))]

    In float64; 1e-6 is what is promised, 1e-9 what the two orders of summation leave.
    """
    policy, reference = tiny(seed), frozen(tiny(seed + 1))
    known = pairs(policy, preferences)
    loss = DPO(reference, beta)(policy, paired(known))
    loss.backward()
    expected, gradient = 0.0, [torch.zeros_like(p) for p in policy.parameters()]
    for pair in known:
        chosen, rejected = (float(reward.detach()) for reward in rewards(policy, reference, pair, beta))
        expected += log1p(exp(rejected - chosen)) / len(known)
        weight = beta / (1 + exp(chosen - rejected)) / len(known)
        for sign, each in zip((-1, 1), pair, strict=True):
            parts = torch.autograd.grad(
                summed_log_prob(policy, each.prompt, each.answer), list(policy.parameters()), materialize_grads=True
            )
            gradient = [total + sign * weight * part for total, part in zip(gradient, parts, strict=True)]
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    for parameter, wanted in zip(policy.parameters(), gradient, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-8, atol=1e-9)


@given(PREFERENCES, SEEDS)
def test_a_policy_that_is_its_reference_has_no_margin(preferences: list[Preference], seed: int) -> None:
    """Then the loss is ln 2, nothing is preferred and the divergence is 0, up to the rounding of float64."""
    model = tiny(seed)
    known = pairs(model, preferences)
    measured = PreferenceScores(known, DPO(frozen(model)))(model)
    assert measured["held_out_loss"] == pytest.approx(log(2), abs=1e-9)
    assert measured["margin"] == pytest.approx(0, abs=1e-9)
    assert measured["kl"] == pytest.approx(0, abs=1e-9)
    odds = []
    for better, worse in known:
        ours = [float(summed_log_prob(model, each.prompt, each.answer).detach()) for each in (better, worse)]
        odds.append(1 / (1 + exp(ours[1] - ours[0])))
    assert measured["chosen"] == pytest.approx(sum(odds) / len(odds), abs=1e-9)


def test_the_divergence_of_answers_is_that_over_all_answers() -> None:
    """Three letters and an end, at most two tokens: every answer can be listed.

    The estimate over 6,000 draws is held to 5 of its standard errors, taken from the answers' own divergences.
    """
    policy, reference = (tiny(seed, d_vocab=4, d_vocab_out=4) for seed in (3, 4))
    policy.tokenizer = reference.tokenizer = characters("ab\n")
    end, prompt = 3, (3, 0, 2)
    answers = [(end,), *product(range(3), range(4))]
    exact, square = 0.0, 0.0
    for told in answers:
        ours, theirs = (float(summed_log_prob(m, prompt, told).detach()) for m in (policy, reference))
        exact += exp(ours) * (ours - theirs)
        square += exp(ours) * (ours - theirs) ** 2
    estimate = answer_kl(policy, reference, [prompt] * 6000, longest=2, seed=0, batch_size=3000)
    assert exact > 0.05
    assert estimate == pytest.approx(exact, abs=5 * (square / 6000) ** 0.5)


def trained(steps: int = 20) -> tuple[GPT, GPT, list[dict[str, Any]]]:
    """A fresh model taught to like the answer a letter, not the letter twice; its reference, and the log."""
    model = GPT(SIZES, tokenizer=characters(ALPHABET))
    reference = frozen(model)
    known = pairs(model, [Preference(f"{letter}?", letter, 2 * letter) for letter in "abcdefgh"])
    loss = DPO(reference, 0.5)
    config = TrainingConfig(steps=steps, lr=1e-2, weight_decay=0.0, eval_every=steps)
    measure = PreferenceScores(known, loss)
    log = train(model, Preferences(known, 4), config, evaluate=measure, progress=False, loss=loss)
    return model, reference, log


def test_what_is_chosen_becomes_likelier_and_the_reference_stays() -> None:
    model, reference, log = trained()
    first, last = (record for record in log if "margin" in record)
    assert (first["accuracy"], last["accuracy"]) == (0.5, 1.0)
    assert last["margin"] > first["margin"] == 0
    assert last["chosen"] > first["chosen"]
    assert last["held_out_loss"] < first["held_out_loss"]
    assert last["kl"] > first["kl"] == 0
    fresh = GPT(SIZES)
    assert all(torch.equal(a, b) for a, b in zip(reference.parameters(), fresh.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True) if a.ndim > 1)
    assert not any(p.requires_grad for p in reference.parameters())


def test_half_precision_gives_nearly_the_same_loss() -> None:
    """bfloat16 has 8 bits; on log-probabilities of some ten nats and β = 0.1 that is a few hundredths."""
    policy, reference = tiny(1).float(), frozen(tiny(2).float())
    batch = paired(pairs(policy, [Preference("ab", "c", "dd"), Preference("c", "da", "e")]))
    exact = DPO(reference)(policy, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = DPO(reference)(policy, batch)
    assert rounded.dtype == torch.float32
    assert float((exact - rounded).detach().abs()) < 0.05


def test_an_answer_that_does_not_fit_is_refused() -> None:
    with pytest.raises(LabError, match=r"'cccccccccc' is 13 tokens long, but the context window is 12"):
        pairs(tiny(), [Preference("a", "b", "c"), Preference("a", "b", 10 * "c")])


KILLED = """
import os, signal, sys
from models import GPT
from models.checkpoints import RunFolder
from models.examples import Preference
from models.preferences import DPO, Preferences, PreferenceScores, frozen, pairs
from models.tokenizers import characters
from models.training import TrainingConfig, train
from tests.models.test_fine_tuning import ALPHABET, SIZES

class Deadly(Preferences):
    def batch(self, step):
        if step == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(step)

for folder, last in zip(sys.argv[1::2], sys.argv[2::2]):
    model = GPT(SIZES, tokenizer=characters(ALPHABET))
    known = pairs(model, [Preference(f"{letter}?", letter, 2 * letter) for letter in "abcdefgh"])
    loss = DPO(frozen(model))
    batches = Deadly(known, 4)
    object.__setattr__(batches, "last", int(last))
    config = TrainingConfig(steps=12, lr=1e-2, save_every=3, log_every=1, eval_every=4)
    train(model, batches, config, folder, PreferenceScores(known, loss), progress=False, loss=loss)
"""


def test_a_killed_preference_run_resumes_to_the_same_loss_curve(tmp_path: Path) -> None:
    """SIGKILL at step 8, then the rest in a process that starts from the same model: log and weights are the same."""
    (tmp_path / "run.py").write_text(KILLED)
    whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    codes = []
    for arguments in ((whole, "99", killed, "8"), (killed, "99")):
        command = [sys.executable, str(tmp_path / "run.py"), *arguments]
        codes.append(subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode)
    assert codes == [-signal.SIGKILL, 0]
    curves = [[{**record, "seconds": 0} for record in read_log(folder)] for folder in (whole, killed)]
    assert curves[0] == curves[1]
    assert [r["step"] for r in curves[0] if "lr" in r] == list(range(1, 13))
    last = "checkpoints/step_000012.safetensors"
    assert (tmp_path / "whole" / last).read_bytes() == (tmp_path / "killed" / last).read_bytes()
