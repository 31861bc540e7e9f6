"""Tasks give aligned pairs with the right answer, in any tokenizer that keeps their words whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from interp import tasks
from interp.errors import LabError
from interp.prompts import PromptPairs
from interp.tasks import indirect_object, verb_number, world, year_order
from interp.tasks.held_out import held_out
from models import GPT, TransformerConfig
from models.tokenizers import Tokenizer, characters, train_bpe

WORDS = [f"the {word}" for word in (*indirect_object.NAMES, *indirect_object.PLACES, *indirect_object.OBJECTS)]
WORDS += [f"the {word}" for word in (*year_order.EVENTS, *world.COUNTRIES, *verb_number.NOUNS, "is", "are")]
WORDS += [f"the {word}" for pair in world.COUNTRIES.values() for word in pair]
WORDS += [f"the {word}" for word in (*verb_number.NOUNS.values(), *verb_number.BESIDE)]
WORDS += [*indirect_object.TEMPLATES, year_order.TEMPLATE, verb_number.TEMPLATE, *(t for t, _ in world.TEMPLATES)]
WORDS += [f"the year {century}{year}" for century in year_order.CENTURIES for year in year_order.YEARS]


def tiny(tokenizer: Tokenizer | None, n_ctx: int = 64, d_vocab: int = 10) -> GPT:
    size = d_vocab if tokenizer is None else len(tokenizer)
    return GPT(TransformerConfig(n_layers=1, n_heads=1, d_model=2, d_vocab=size, n_ctx=n_ctx, seed=0), tokenizer)


@pytest.fixture(scope="module")
def trained_here() -> GPT:
    """A model whose tokenizer has every word of every task whole."""
    return tiny(train_bpe(WORDS * 3, 6000))


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> GPT:
    return tiny(Tokenizer.from_dir(shared_data / "gpt2-bpe"))


@pytest.fixture(params=["trained_here", "gpt2"])
def model(request: pytest.FixtureRequest) -> GPT:
    return request.getfixturevalue(request.param)


def text_of(model: GPT, tokens: torch.Tensor) -> list[str]:
    return [str(model.to_string(row)).replace("<|endoftext|>", "") for row in tokens]


@pytest.mark.parametrize("name", tasks.NAMES)
def test_pairs_are_distinct_unpadded_and_differ(model: GPT, name: str) -> None:
    pairs = tasks.get(name)(model, n=40)
    assert len({(*clean, *corrupted) for clean, corrupted in zip(*rows(pairs), strict=True)}) == 40
    assert (pairs.first_difference < pairs.clean.shape[1]).all()
    assert not pairs.padded
    assert (pairs.clean[:, 0] == model.tokenizer.bos_token_id).all()


def rows(pairs: PromptPairs) -> tuple[list[list[int]], list[list[int]]]:
    return pairs.clean.tolist(), pairs.corrupted.tolist()


@pytest.mark.parametrize("name", tasks.NAMES)
def test_a_seed_gives_the_same_prompts_and_another_seed_others(model: GPT, name: str) -> None:
    task = tasks.get(name)
    assert torch.equal(task(model, n=8, seed=3).clean, task(model, n=8, seed=3).clean)
    assert not torch.equal(task(model, n=8, seed=3).clean, task(model, n=8, seed=4).clean)


@pytest.mark.parametrize("name", ["ioi", "induction", "facts", "agreement"])
def test_clean_and_corrupted_differ_in_one_token(model: GPT, name: str) -> None:
    pairs = tasks.get(name)(model, n=20)
    assert ((pairs.clean != pairs.corrupted).sum(dim=1) == 1).all()


def test_ioi_right_is_named_once_and_the_corrupted_prompt_flips_the_answer(model: GPT) -> None:
    pairs = tasks.ioi(model, n=60)
    for tokens, (right,), (wrong,) in zip(
        pairs.clean.tolist(), pairs.right.tolist(), pairs.wrong.tolist(), strict=True
    ):
        assert (tokens.count(right), tokens.count(wrong)) == (1, 2)
    for tokens, (right,), (wrong,) in zip(rows(pairs)[1], pairs.right.tolist(), pairs.wrong.tolist(), strict=True):
        assert (tokens.count(right), tokens.count(wrong)) == (2, 1)


def test_ioi_has_both_orders_and_lines_up_its_names(model: GPT) -> None:
    pairs = tasks.ioi(model, n=60)
    first = pairs.clean[:, 2] == pairs.wrong[:, 0]
    assert 10 < int(first.sum()) < 50
    assert (pairs.clean[:, 10] == pairs.wrong[:, 0]).all()


def test_ioi_asks_only_for_names_kept_apart(model: GPT) -> None:
    pairs = tasks.ioi(model, n=60)
    assert pairs.labels is not None
    for (right,), (wrong,) in zip(pairs.labels.right, pairs.labels.wrong, strict=True):
        assert indirect_object.never_together(right.strip(), wrong.strip())


def test_greater_than_divides_all_two_digit_tokens_at_the_year(model: GPT) -> None:
    pairs = tasks.greater_than(model, n=60)
    assert pairs.labels is not None
    for clean, corrupted, right, wrong in zip(
        pairs.labels.clean, pairs.labels.corrupted, pairs.labels.right, pairs.labels.wrong, strict=True
    ):
        year = int(clean[8])
        assert (clean[7], clean[-1], corrupted[8]) == (clean[-1], clean[7], "01")
        assert sorted(map(int, right)) == list(range(year + 1, 100))
        assert sorted(map(int, wrong)) == list(range(year + 1))
        assert year_order.never_begins(clean[2].strip(), int(clean[7]), year)


def test_facts_are_true_and_the_corrupted_answer_is_another(model: GPT) -> None:
    pairs = tasks.facts(model, n=60)
    assert pairs.labels is not None
    for clean, corrupted, (right,), (wrong,) in zip(
        pairs.labels.clean, pairs.labels.corrupted, pairs.labels.right, pairs.labels.wrong, strict=True
    ):
        assert right.strip() in world.COUNTRIES[clean[5].strip()]
        assert wrong.strip() in world.COUNTRIES[corrupted[5].strip()]
        assert right != wrong


def test_agreement_follows_the_first_noun_whatever_the_second(model: GPT) -> None:
    pairs = tasks.agreement(model, n=60)
    assert pairs.labels is not None
    plurals, agrees = set(verb_number.NOUNS.values()), 0
    for clean, corrupted, (right,) in zip(pairs.labels.clean, pairs.labels.corrupted, pairs.labels.right, strict=True):
        assert right == (" are" if clean[2].strip() in plurals else " is")
        assert (corrupted[2].strip() in plurals) != (clean[2].strip() in plurals)
        agrees += (clean[5].strip() in plurals) == (clean[2].strip() in plurals)
    assert 10 < agrees < 50


def test_induction_repeats_its_block_and_needs_no_tokenizer() -> None:
    model = tiny(None, n_ctx=12)
    pairs = tasks.induction(model, n=10)
    assert pairs.clean.shape == (10, 11)
    assert torch.equal(pairs.clean[:, :5], pairs.clean[:, 6:])
    assert torch.equal(pairs.clean[:, 5], pairs.right[:, 0])
    assert torch.equal(pairs.corrupted[:, 5], pairs.wrong[:, 0])


def test_induction_uses_no_special_token_but_the_start() -> None:
    model = tiny(characters("abcdefgh"))
    pairs = tasks.induction(model, n=50)
    assert (pairs.clean[:, 0] == 8).all()
    assert not (pairs.clean[:, 1:] == 8).any()


def test_repeated_tokens_are_a_block_twice() -> None:
    rows = tasks.repeated_tokens(tiny(characters("abcdefgh")), n=5, length=6)
    assert torch.equal(rows[:, 1:7], rows[:, 7:])
    with pytest.raises(LabError, match="ordinary tokens"):
        tasks.repeated_tokens(tiny(characters("abcdefgh")), n=5, length=9)


@pytest.mark.parametrize("name", ["ioi", "greater_than", "facts", "agreement"])
def test_words_that_are_not_single_tokens_are_named(name: str) -> None:
    model = tiny(characters("".join(sorted({c for word in WORDS for c in word}))))
    with pytest.raises(LabError, match=f"task '{name}' needs at least .* splits or lacks ' "):
        tasks.get(name)(model)


def test_words_that_the_tokenizer_splits_are_left_out() -> None:
    lacking = [word for word in WORDS if not word.endswith(("Mary", "James", "store"))]
    model = tiny(train_bpe(lacking * 3, 6000))
    pairs = tasks.ioi(model, n=200)
    assert not any(word in text for text in text_of(model, pairs.clean) for word in (" Mary", " James", " store"))


@pytest.mark.parametrize("name", tasks.NAMES)
def test_zero_prompts_are_refused(trained_here: GPT, name: str) -> None:
    with pytest.raises(LabError, match="n must be at least 1"):
        tasks.get(name)(trained_here, n=0)


def test_more_prompts_than_there_are_is_refused(trained_here: GPT) -> None:
    with pytest.raises(LabError, match="too many"):
        tasks.facts(trained_here, n=100_000)


def test_an_unknown_task_gets_near_misses() -> None:
    with pytest.raises(LabError, match=r"unknown task 'induktion'\.  closest: 'induction'"):
        tasks.get("induktion")


def test_too_short_a_context_is_refused_by_induction() -> None:
    with pytest.raises(LabError, match="context of four"):
        tasks.induction(tiny(None, n_ctx=2))


def test_held_out_is_a_fixed_share_and_does_not_change() -> None:
    share = sum(held_out("x", i) for i in range(5000)) / 5000
    assert abs(share - 0.1) < 0.015  # three standard deviations of a share of 5000
    assert held_out("names", "John", "Mary") == indirect_object.never_together("Mary", "John")
