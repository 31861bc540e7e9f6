"""Fine-tuning counts the answers alone, measures what is held out, and refuses what a model cannot learn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import LabError
from models import GPT, TransformerConfig
from models.batches import UNCOUNTED, shuffled
from models.examples import Example
from models.fine_tuning import Answers, AnswerScores, answer, as_batch, as_text, in_batches, turns
from models.tokenizers import Tokenizer, characters
from models.training import TrainingConfig, batch_loss, mean_loss, train
from tests.strategies import SEEDS, random_model

ALPHABET = "abcdefgh?\n"
SIZES = TransformerConfig(n_layers=1, n_heads=2, d_model=16, d_vocab=len(ALPHABET) + 1, n_ctx=12, seed=0)
WORD = st.text("abcdefgh", min_size=1, max_size=4)
EXAMPLES = st.lists(st.builds(Example, WORD, WORD), min_size=1, max_size=5)


def tiny(seed: int = 0, **changes: Any) -> GPT:
    """A random model of order one that reads eight letters; float64, so that tolerances are of the arithmetic."""
    model = random_model(replace(SIZES, **changes), seed)
    model.tokenizer = characters(ALPHABET)
    return model


@given(EXAMPLES, SEEDS)
@torch.no_grad()
def test_the_loss_is_that_of_the_answers_and_their_ends_alone(examples: list[Example], seed: int) -> None:
    """A loop over single rows and tokens, without padding, gives the same mean; float64, so to 1e-10."""
    model = tiny(seed)
    losses = []
    for example in examples:
        prompt = model.to_tokens(example.prompt + "\n")[0].tolist()
        row = [*prompt, *model.tokenizer.encode(example.answer), model.tokenizer.eos_token_id]
        log_probs = model(torch.tensor([row]))[0].log_softmax(-1)
        losses += [-float(log_probs[i - 1, row[i]]) for i in range(len(prompt), len(row))]
    batch = as_batch(turns(model, examples))
    assert float(batch_loss(model, batch)) == pytest.approx(sum(losses) / len(losses), abs=1e-10)
    assert int((batch.targets != UNCOUNTED).sum()) == sum(len(example.answer) + 1 for example in examples)


@given(EXAMPLES, st.integers(1, 4), SEEDS)
def test_how_examples_are_batched_changes_no_mean(examples: list[Example], batch_size: int, seed: int) -> None:
    model = tiny(seed)
    known = turns(model, examples)
    whole, parts = mean_loss(model, [as_batch(known)]), mean_loss(model, in_batches(known, batch_size))
    assert parts == pytest.approx(whole, abs=1e-10)


@given(n=st.integers(1, 20), batch_size=st.integers(1, 30), seed=SEEDS)
def test_every_example_comes_once_an_epoch(n: int, batch_size: int, seed: int) -> None:
    """Batch after batch, and the batch of a step is the same whenever it is asked for."""
    steps = -(-2 * n // batch_size)
    order = [place for step in range(steps) for place in shuffled(n, batch_size, step, seed)]
    assert sorted(order[:n]) == sorted(order[n : 2 * n]) == list(range(n))
    assert shuffled(n, batch_size, steps - 1, seed) == order[-batch_size:]


@given(st.lists(WORD, min_size=1, max_size=5), st.integers(1, 3), SEEDS)
@torch.no_grad()
def test_answers_are_the_likeliest_tokens_one_after_the_other(prompts: list[str], batch_size: int, seed: int) -> None:
    """As a loop over whole forwards of single rows gives them, whatever stands beside a prompt in its batch."""
    model = tiny(seed)
    end = model.tokenizer.eos_token_id
    asked = [each.prompt for each in turns(model, [Example(prompt, "a") for prompt in prompts])]
    for prompt, told in zip(asked, answer(model, asked, longest=5, batch_size=batch_size), strict=True):
        row = list(prompt)
        while len(row) < len(prompt) + 5 and row[len(prompt) :][-1:] != [end]:
            row.append(int(model(torch.tensor([row]))[0, -1].argmax()))
        assert list(told) == row[len(prompt) :]


def test_a_small_model_learns_to_answer_prompts_that_it_has_not_seen() -> None:
    """Which of the letters to say is learned from half of the 64 prompts, and measured on the others.

    The halves are the black and the white fields of a board, so that every letter stands at every place in both.
    """
    prompts = [f"{a}{b}?" for a in "abcdefgh" for b in "abcdefgh"]
    examples = [Example(prompt, prompt[1]) for prompt in prompts]
    board = [(a, b) for a in range(8) for b in range(8)]
    model = GPT(SIZES, tokenizer=characters(ALPHABET))
    learned, apart = (turns(model, [examples[8 * a + b] for a, b in board if (a + b) % 2 == side]) for side in (0, 1))
    measure = AnswerScores(apart)
    config = TrainingConfig(steps=60, lr=2e-2, warmup_steps=10, weight_decay=0.0)
    log = train(model, Answers(learned, 16), config, evaluate=measure, progress=False)
    assert measure(GPT(SIZES, tokenizer=characters(ALPHABET)))["exact"] == 0
    assert log[-1]["exact"] >= 0.95
    assert as_text(model, answer(model, [apart[0].prompt], 3)[0]) == examples[1].answer  # the first white field


def test_any_of_the_answers_to_a_prompt_is_exact() -> None:
    class AlwaysB(GPT):
        """Says b, then ends."""

        def logits_at(self, *args: Any, **settings: Any) -> torch.Tensor:
            logits = super().logits_at(*args, **settings)
            self.said = not getattr(self, "said", True)
            return torch.nn.functional.one_hot(
                torch.full(logits.shape[:-1], len(ALPHABET) if self.said else 1), logits.shape[-1]
            ).to(logits)

    model = AlwaysB(SIZES, tokenizer=characters(ALPHABET))
    for answers, exact in ((["a", "b"], 1), (["a", "bb"], 0)):
        known = turns(model, [Example("ab", each) for each in answers])
        assert AnswerScores(known, batch_size=1)(model)["exact"] == exact


def without_end() -> Tokenizer:
    return replace(characters(ALPHABET), eos_token=None)


@pytest.mark.parametrize(
    ("changes", "tokenizer", "example", "message"),
    [
        ({}, None, Example("ab", "c"), "has no tokenizer"),
        ({}, without_end(), Example("ab", "c"), "has no end-of-text token"),
        ({"attention_dir": "bidirectional"}, characters(ALPHABET), Example("ab", "c"), "does not write from left to"),
        ({}, characters(ALPHABET), Example("abcdefgh", "abc"), "is 13 tokens long, but the context window is 12"),
        ({}, characters(ALPHABET), Example("axb", "c"), "'x'"),
        ({}, characters(ALPHABET), Example("ab", "y"), "'y'"),
        ({}, characters("abc"), Example("ab", "c"), r"\\n"),
    ],
)
def test_what_a_model_cannot_learn_is_refused(
    changes: dict[str, Any], tokenizer: Tokenizer | None, example: Example, message: str
) -> None:
    model = tiny(**changes)
    model.tokenizer = tokenizer
    with pytest.raises(LabError, match=message):
        turns(model, [example])
