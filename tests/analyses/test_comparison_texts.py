"""Two models are compared on the same tokens, or not at all; tokens are classed by look, context and frequency."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analyses.same_text import SameText, same_text
from analyses.token_classes import by_context, by_frequency, by_look
from interp import LabError
from models import GPT, TransformerConfig
from models.tokenizers import Tokenizer, train_bpe
from tests.analyses.tiny_models import tokenizer
from tests.strategies import random_model

SIZES = {"n_layers": 1, "n_heads": 2, "d_model": 8, "n_ctx": 16}
TEXT = "When Mary and John went to the store"


def bare(d_vocab: int = 11) -> GPT:
    return random_model(TransformerConfig(**SIZES, d_vocab=d_vocab))


def reader(tokens: Tokenizer, more: int = 0) -> GPT:
    return GPT(TransformerConfig(**SIZES, d_vocab=len(tokens) + more), tokens)


class TestReading:
    def test_one_text_several_and_ids_in_every_form_are_read(self) -> None:
        model = reader(tokenizer())
        ids = model.to_tokens(TEXT)
        for given_as in (TEXT, [TEXT], (TEXT,), ids, ids[0], [ids[0]], [ids[0].tolist()]):
            text = same_text(model, model, given_as)
            assert [row.tolist() for row in text.rows_b] == ids.tolist()
            assert "".join(text.words[0]) == "".join(model.to_str_tokens(ids[0]))
        assert same_text(model, model, text) is text

    def test_a_model_without_tokenizer_takes_the_others_ids(self) -> None:
        model = reader(tokenizer())
        plain = GPT(model.cfg)
        for a, b in ((model, plain), (plain, model)):
            text = same_text(a, b, TEXT)
            assert text.rows_a[0].tolist() == text.rows_b[0].tolist() == model.to_tokens(TEXT)[0].tolist()
            assert text.readable
            assert text.same_vocabulary

    def test_a_tokenizer_that_divides_alike_is_enough(self) -> None:
        """Another vocabulary, trained on other text: what both know as whole words, they read alike."""
        a = reader(tokenizer())
        b = reader(train_bpe((f"{TEXT} and then" for _ in range(50)), 400))
        text = same_text(a, b, TEXT)
        assert not text.same_vocabulary
        assert text.rows_a[0].tolist() != text.rows_b[0].tolist()

    def test_texts_that_are_divided_differently_are_shown(self) -> None:
        a, b = reader(tokenizer()), reader(train_bpe(["a b c d"] * 9, 300))
        with pytest.raises(LabError, match=r"divide a text differently.*' Mary'.*'M' 'a' 'r' 'y'"):
            same_text(a, b, "When Mary")

    @pytest.mark.parametrize(
        ("texts", "message"),
        [
            ("", "the prompt is empty"),
            ([], "expected one text or more"),
            ([TEXT, torch.tensor([1])], "expected one text or more"),
            (torch.tensor([], dtype=torch.long), "at least one token"),
            (torch.tensor([[1, 2], [3, 9999]]), "token ids from 0 to"),
            (torch.tensor([-1, 2]), "token ids from 0 to"),
            (torch.arange(17), "17 tokens, the context window 16"),
            ([[1, 2], []], "at least one token"),
        ],
    )
    def test_what_is_no_text_is_refused(self, texts: object, message: str, unchecked: None) -> None:
        model = reader(tokenizer())
        with pytest.raises(LabError, match=message):
            same_text(model, model, texts)

    def test_text_needs_a_tokenizer(self) -> None:
        with pytest.raises(LabError, match="no tokenizer, so it takes no text"):
            same_text(bare(), bare(), TEXT)
        with pytest.raises(LabError, match="vocabularies of"):
            same_text(reader(tokenizer()), bare(), TEXT)

    def test_a_mask_fits_its_tokens(self) -> None:
        tokens, mask = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[True, True, False], [True] * 3])
        assert [row.tolist() for row in same_text(bare(), bare(), tokens, mask).rows_a] == [[1, 2], [4, 5, 6]]
        with pytest.raises(LabError, match="of its own shape"):
            same_text(bare(), bare(), tokens[:, :2], mask)
        with pytest.raises(LabError, match="at least one token"):
            same_text(bare(), bare(), tokens, torch.zeros_like(mask))


ROWS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=5)


@given(ROWS)
def test_what_is_measured_by_token_comes_in_the_order_of_the_texts(rows: list[list[int]]) -> None:
    text = same_text(bare(), bare(), [torch.tensor(row) for row in rows])
    [ids] = text.tokenwise(lambda a, b: (a,))
    assert ids.tolist() == [token for row in rows for token in row]
    assert text.position.tolist() == [i for row in rows for i in range(len(row))]
    assert text.foretold.tolist() == [i < len(row) - 1 for row in rows for i in range(len(row))]


@given(ROWS)
def test_a_beginning_counts_once_and_the_first_position_never(rows: list[list[int]]) -> None:
    text = SameText(*([tuple(torch.tensor(row) for row in rows)] * 2), ((),), False, True)  # type: ignore[arg-type]
    beginnings = [tuple(row[: i + 1]) for row in rows for i in range(len(row))]
    expected = [len(start) > 1 and start not in beginnings[:i] for i, start in enumerate(beginnings)]
    assert torch.cat(text.distinct).tolist() == expected


class TestClasses:
    def test_by_context(self) -> None:
        found = by_context([5, 6, 5, 5, 7])
        assert found["repeated in its text"].tolist() == [False, False, True, True, False]
        assert (found["new in its text"] != found["repeated in its text"]).all()

    def test_by_frequency(self) -> None:
        texts = [[1, 2, 3], [2] + [4] * 11]
        found = by_frequency(texts)
        assert found["occurs once"].tolist() == [True, False, True] + [False] * 12
        assert found["occurs 2 to 10 times"].tolist() == [False, True, False, True] + [False] * 11
        assert found["more often"].tolist() == [False] * 4 + [True] * 11

    @pytest.mark.parametrize(
        ("words", "looks"),
        [
            (["The", " store", "s", "."], ["word start", "word start", "word continuation", "punctuation"]),
            (["▁Mary", "▁12", "3", "\n", "Next"], ["word start", "number", "number", "space", "word start"]),
            ([" don", "'t", " ", "été"], ["word start", "punctuation", "space", "word start"]),
            (["'", "t", "<s>", "x", ""], ["punctuation", "word continuation", "punctuation", "word start", "space"]),
        ],
    )  # fmt: skip
    def test_by_look(self, words: list[str], looks: list[str]) -> None:
        found = by_look(words)
        assert [next(kind for kind, members in found.items() if members[i]) for i in range(len(words))] == looks

    @given(st.lists(st.text(max_size=3), min_size=1, max_size=6))
    def test_every_token_is_in_one_class_of_each_kind(self, words: list[str]) -> None:
        ids = [hash(word) % 3 for word in words]
        for classes in (by_look(words), by_context(ids), by_frequency([ids])):
            assert [sum(bool(members[i]) for members in classes.values()) for i in range(len(words))] == [1] * len(
                words
            )
