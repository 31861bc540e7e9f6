"""Pairs of prompts are refused at construction or are fit for every analysis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import LabError
from interp.prompts import PromptPairs
from models import GPT, TransformerConfig
from models.tokenizers import characters


@pytest.fixture(scope="module")
def model() -> GPT:
    tokenizer = characters("abcdefghij ")
    return GPT(TransformerConfig(n_layers=1, n_heads=1, d_model=4, d_vocab=12, n_ctx=8, seed=0), tokenizer)


rows = st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=7), min_size=1, max_size=5)


LONG = torch.ones(1, 2, dtype=torch.long)


def pairs_of(clean: list[list[int]], side: str = "left") -> PromptPairs:
    corrupted = [[token + 1 for token in row] for row in clean]
    return PromptPairs.from_tokens(clean, corrupted, [0] * len(clean), [1] * len(clean), padding_side=side)


@given(rows, st.sampled_from(["left", "right"]))
def test_padding_keeps_every_token_and_marks_the_rest(clean: list[list[int]], side: str) -> None:
    pairs = pairs_of(clean, side)
    for tokens, mask, row in zip(pairs.clean, pairs.mask, clean, strict=True):
        assert tokens[mask].tolist() == row
    assert pairs.padded == (len({len(row) for row in clean}) > 1)


@given(rows, st.sampled_from(["left", "right"]))
def test_last_is_the_last_real_token_on_either_side_of_padding(clean: list[list[int]], side: str) -> None:
    pairs = pairs_of(clean, side)
    assert pairs.clean[torch.arange(len(pairs)), pairs.last].tolist() == [row[-1] for row in clean]


def test_first_difference_is_the_first_position_that_differs_or_the_length() -> None:
    clean, corrupted = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[1, 9, 9], [4, 5, 6]])
    assert PromptPairs.from_tokens(clean, corrupted, [0, 0], [1, 1]).first_difference.tolist() == [1, 3]


def test_padding_is_no_difference() -> None:
    tokens, mask = torch.tensor([[7, 1, 2]]), torch.tensor([[False, True, True]])
    pairs = PromptPairs.from_tokens(tokens, torch.tensor([[8, 1, 3]]), [0], [1], mask=mask)
    assert pairs.first_difference.tolist() == [2]


def test_answers_of_different_number_are_filled_with_minus_one() -> None:
    pairs = PromptPairs.from_tokens([[1], [2]], [[3], [4]], [[5, 6], [7]], [[8], [9]])
    assert pairs.right.tolist() == [[5, 6], [7, -1]]
    assert pairs.wrong.tolist() == [[8], [9]]


def test_a_slice_has_the_prompts_answers_and_labels_of_its_rows(model: GPT) -> None:
    pairs = PromptPairs.from_text(model, ["ab", "cd", "ef"], ["ac", "cb", "eb"], ["a", "b", "c"], ["d", "e", "f"])
    part = pairs[1:]
    assert (len(part), part.right.tolist()) == (2, pairs.right[1:].tolist())
    assert part.labels is not None
    assert part.labels.clean == (("<|endoftext|>", "c", "d"), ("<|endoftext|>", "e", "f"))
    assert pairs[-1].clean.tolist() == pairs.clean[2:].tolist()
    with pytest.raises(IndexError):
        pairs[3]


def test_text_gets_the_start_token_and_its_labels(model: GPT) -> None:
    pairs = PromptPairs.from_text(model, "ab", "ac", "d", "e")
    assert pairs.clean.tolist() == [[11, 0, 1]]
    assert pairs.labels is not None
    assert (pairs.labels.right, pairs.labels.wrong) == ((("d",),), (("e",),))


def test_padded_text_has_empty_labels_where_it_is_padded(model: GPT) -> None:
    pairs = PromptPairs.from_text(model, ["abc", "d"], ["abd", "e"], ["a", "a"], ["b", "b"])
    assert pairs.labels is not None
    assert pairs.labels.clean[1] == ("", "", "<|endoftext|>", "d")


def test_swapped_exchanges_the_prompts_and_keeps_the_answers(model: GPT) -> None:
    pairs = PromptPairs.from_text(model, "ab", "ac", "d", "e")
    other = pairs.swapped()
    assert torch.equal(other.clean, pairs.corrupted)
    assert torch.equal(other.right, pairs.right)
    assert other.labels is not None
    assert other.labels.clean == (("<|endoftext|>", "a", "c"),)


@pytest.mark.gpu
def test_to_moves_every_tensor() -> None:
    moved = pairs_of([[1, 2], [3]]).to("cuda")
    assert {t.device.type for t in (moved.clean, moved.corrupted, moved.mask, moved.right, moved.wrong)} == {"cuda"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (("abc", "ab", "d", "e"), ["4 tokens", "corrupted 3", "'a' 'b' 'c'"]),
        (("ab", "ac", "dd", "e"), ["'dd'", "2 tokens", "'d' 'd'", "expected one"]),
        (("ab", "ac", "", "e"), ["''", "expected one"]),
        (("", "", "d", "e"), ["empty"]),
        (("abcdefgh", "abcdefgi", "d", "e"), ["9 tokens", "context is 8"]),
        (("ab", "ac", "d", "d"), ["both a right and a wrong answer"]),
        (("aX", "ac", "d", "e"), ["cannot encode 'X'", "column 2"]),
        ((["ab", "ac"], ["ab"], ["d"], ["e"]), ["2 clean and 1 corrupted"]),
        (("ab", "ac", [[12]], ["e"]), ["right has token id 12", "0 to 11"]),
    ],
)
def test_text_that_would_mislead_is_refused_with_what_was_given(model: GPT, text: tuple, says: list[str]) -> None:
    with pytest.raises(LabError) as error:
        PromptPairs.from_text(model, *text)
    assert all(part in str(error.value) for part in says), str(error.value)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ({"clean": [[1, 2]], "corrupted": [[1]], "right": [0], "wrong": [1]}, "must be aligned"),
        ({"clean": [[1], []], "corrupted": [[1], []], "right": [0, 0], "wrong": [1, 1]}, "prompt 1 is empty"),
        ({"clean": [], "corrupted": [], "right": [], "wrong": []}, "no prompts"),
        ({"clean": [[1]], "corrupted": [[1]], "right": [0, 0], "wrong": [1]}, "right answers [2, 1]"),
        ({"clean": [[1]], "corrupted": [[1]], "right": [-1], "wrong": [1]}, "no right answer"),
        ({"clean": [[1]], "corrupted": [[1]], "right": [0], "wrong": [-2]}, "no wrong answer"),
        ({"clean": [[1]], "corrupted": [[1]], "right": [0], "wrong": [1], "padding_side": "top"}, "'left' or 'right'"),
        (
            {"clean": torch.ones(1, 2).long(), "corrupted": torch.ones(1, 3).long(), "right": [0], "wrong": [1]},
            "same shape",
        ),
        ({"clean": LONG * 1.0, "corrupted": LONG * 1.0, "right": [0], "wrong": [1]}, "integer token ids"),
        (
            {"clean": [[1]], "corrupted": [[1]], "right": [0], "wrong": [1], "mask": torch.ones(1, 1).bool()},
            "a mask goes with",
        ),
    ],
)
def test_tokens_that_would_mislead_are_refused(tokens: dict, says: str) -> None:
    with pytest.raises(LabError) as error:
        PromptPairs.from_tokens(**tokens)
    assert says in str(error.value)


@pytest.mark.parametrize("mask", [[True, False, True], [False, True, False]])
def test_padding_inside_or_on_both_sides_is_refused(mask: list[bool]) -> None:
    tokens = torch.tensor([[1, 2, 3]])
    with pytest.raises(LabError, match="one side only"):
        PromptPairs.from_tokens(tokens, tokens, [0], [1], mask=torch.tensor([mask]))


def test_ids_outside_the_vocabulary_are_refused_when_the_model_is_known(model: GPT) -> None:
    with pytest.raises(LabError, match="clean has token id 12, but the model's ids are 0 to 11"):
        PromptPairs.from_tokens([[12]], [[1]], [0], [1], model=model)
    with pytest.raises(LabError, match="corrupted has token id -1"):
        PromptPairs.from_tokens([[1]], [[-1]], [0], [1], model=model)
