"""Text in and out of a model: start tokens, padding, and what each token stands for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import LabError
from models import GPT, TransformerConfig
from models.tokenizers import characters
from tests.strategies import random_model

LETTERS = "abcd e"
BOS = len(LETTERS)
TEXTS = st.text(alphabet=LETTERS, min_size=1, max_size=6)


def spelling(default_prepend_bos: bool = True) -> GPT:
    cfg = TransformerConfig(
        n_layers=2, n_heads=2, d_model=8, d_vocab=7, n_ctx=8, default_prepend_bos=default_prepend_bos
    )
    model = random_model(cfg)
    model.tokenizer = characters(LETTERS)
    return model


MODEL = spelling()


class TestToTokens:
    def test_the_start_token_comes_first_by_default_and_once(self) -> None:
        assert MODEL.to_tokens("ab").tolist() == [[BOS, 0, 1]]
        assert MODEL.to_tokens("ab", prepend_bos=False).tolist() == [[0, 1]]
        assert MODEL.to_tokens("<|endoftext|>ab").tolist() == [[BOS, 0, 1]]
        assert spelling(default_prepend_bos=False).to_tokens("ab").tolist() == [[0, 1]]
        assert spelling(default_prepend_bos=False).to_tokens("ab", prepend_bos=True).tolist() == [[BOS, 0, 1]]

    @given(st.lists(TEXTS, min_size=1, max_size=3), st.sampled_from(["left", "right"]), st.booleans())
    def test_texts_come_back_and_the_mask_says_which_tokens_are_theirs(
        self, texts: list[str], side: str, bos: bool
    ) -> None:
        tokens, mask = MODEL.to_tokens_and_mask(texts, prepend_bos=bos, padding_side=side)
        assert mask.shape == tokens.shape
        for text, row, real in zip(texts, tokens, mask, strict=True):
            assert MODEL.to_string(row[real]) == ("<|endoftext|>" if bos else "") + text
            padding = (~real).nonzero()[:, 0].tolist()
            missing = len(real) - len(text) - bos
            assert padding == list(range(missing) if side == "left" else range(len(real) - missing, len(real)))

    def test_longer_texts_are_cut_only_when_asked(self) -> None:
        assert MODEL.to_tokens("abcdabcdabcd").shape == (1, 8)
        assert MODEL.to_tokens("abcdabcdabcd", truncate=False).shape == (1, 13)

    @pytest.mark.parametrize(
        ("texts", "options", "message"),
        [
            ("", {"prepend_bos": False}, "an empty text gives no tokens"),
            (["ab", ""], {"prepend_bos": False}, "an empty text gives no tokens"),
            ([], {}, "an empty list of texts"),
            ("ab", {"padding_side": "middle"}, "padding_side='middle'; expected 'left' or 'right'"),
            ("xyz", {}, "cannot encode 'x'"),
        ],
    )
    def test_what_gives_no_tokens_is_refused(self, texts: str | list[str], options: dict, message: str) -> None:
        with pytest.raises(LabError, match=message) as error:
            MODEL.to_tokens(texts, **options)
        assert "\n" not in str(error.value)


class TestForward:
    @given(st.lists(TEXTS, min_size=1, max_size=3), st.sampled_from(["left", "right"]))
    def test_texts_are_padded_and_masked_by_themselves(self, texts: list[str], side: str) -> None:
        logits = MODEL(texts, padding_side=side)
        _, mask = MODEL.to_tokens_and_mask(texts, padding_side=side)
        for text, row, real in zip(texts, logits, mask, strict=True):
            # float64: padding only changes the order of summation.
            torch.testing.assert_close(row[real], MODEL(text)[0], atol=1e-9, rtol=1e-9)

    def test_a_text_longer_than_the_context_is_refused_not_cut(self) -> None:
        with pytest.raises(LabError, match="13 positions do not fit the context window of 8"):
            MODEL("abcdabcdabcd")

    @pytest.mark.parametrize("texts", ["", []])
    def test_an_empty_prompt_is_refused(self, texts: str | list[str]) -> None:
        with pytest.raises(LabError, match="empty"):
            MODEL(texts, prepend_bos=False)

    def test_the_loss_of_texts_counts_no_padding(self) -> None:
        loss = MODEL(["abcd", "ab"], return_type="loss")
        each = [MODEL(text, return_type="loss", loss_per_token=True) for text in ("abcd", "ab")]
        torch.testing.assert_close(loss, torch.cat(each, 1).mean(), atol=1e-9, rtol=1e-9)


class TestToText:
    def test_a_row_is_a_text_and_a_batch_is_a_list(self) -> None:
        assert MODEL.to_string(torch.tensor([0, 4, 1])) == "a b"
        assert MODEL.to_string([0, 4, 1]) == "a b"
        assert MODEL.to_string(torch.tensor([[0, 4], [1, 2]])) == ["a ", "bc"]
        assert MODEL.to_string(torch.tensor(3)) == "d"

    def test_tokens_one_by_one(self) -> None:
        pieces = ["<|endoftext|>", "a", " ", "b"]
        assert MODEL.to_str_tokens("a b") == pieces
        assert MODEL.to_str_tokens(MODEL.to_tokens("a b")) == pieces
        assert MODEL.to_str_tokens("a b", prepend_bos=False) == pieces[1:]
        assert MODEL.to_str_tokens(["a b", "c"]) == [pieces, ["<|endoftext|>", "c"]]
        assert MODEL.to_str_tokens(torch.tensor([[0, 1], [2, 3]])) == [["a", "b"], ["c", "d"]]

    def test_without_a_tokenizer_ids_stand_for_themselves(self) -> None:
        assert random_model(MODEL.cfg).to_str_tokens(torch.tensor([[3, 1]])) == ["3", "1"]


class TestSingleTokens:
    @pytest.mark.parametrize("letter", list(LETTERS))
    def test_there_and_back(self, letter: str) -> None:
        assert MODEL.to_single_str_token(MODEL.to_single_token(letter)) == letter

    @pytest.mark.parametrize("text", ["ab", ""])
    def test_several_or_none_are_refused(self, text: str) -> None:
        with pytest.raises(LabError, match=f"'{text}' is {len(text)} tokens .*expected one"):
            MODEL.to_single_token(text)

    def test_residual_directions_are_columns_of_the_unembedding(self) -> None:
        assert torch.equal(MODEL.tokens_to_residual_directions("b"), MODEL.W_U[:, 1])
        assert torch.equal(MODEL.tokens_to_residual_directions(torch.tensor([1, 3])), MODEL.W_U.T[[1, 3]])


@pytest.mark.parametrize("method", ["to_tokens", "to_single_token", "to_single_str_token", "to_string", "__call__"])
def test_text_without_a_tokenizer_gets_a_clear_message(method: str) -> None:
    model = random_model(MODEL.cfg)
    argument = {"to_string": torch.tensor([1]), "to_single_str_token": 1}.get(method, "ab")
    with pytest.raises(LabError, match="has no tokenizer, so it takes token ids and no text"):
        getattr(model, method)(argument)
