"""What vocabularies do to a text, counted by hand, and the loss per byte against a plain sum over tokens.

1e-9 in float64; a model read window by window is held to a loop over the same windows.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analyses import loss_per_byte, vocabulary_statistics
from interp.errors import LabError
from interp.results import Result
from models import GPT, TransformerConfig
from models.tokenizers import Tokenizer, characters_of, train_bpe
from tests.strategies import random_model

TEXT = "the cat saw the dog\nand the señor saw the cat — twice"
CLOSE = 1e-9


def model_of(tokenizer: Tokenizer, n_ctx: int = 8, prepend_bos: bool = True, seed: int = 0) -> GPT:
    cfg = TransformerConfig(
        1, 2, 8, len(tokenizer), n_ctx=n_ctx, default_prepend_bos=prepend_bos, model_name="mine", d_mlp=8
    )
    model = random_model(cfg, seed)
    model.tokenizer = tokenizer
    return model


def uniform(tokenizer: Tokenizer) -> GPT:
    model = model_of(tokenizer)
    with torch.no_grad():
        model.unembed.weight.zero_()
    return model


@given(text=st.text(min_size=1).filter(lambda text: text.split()))
def test_counts_are_those_of_the_text(text: str) -> None:
    bpe = train_bpe([TEXT] * 4, 300)
    found = vocabulary_statistics({"characters": characters_of(text), "bytes": bpe}, text)
    assert found.of("size").tolist() == [len(set(text)) + 1, len(bpe)]
    assert found.of("used")[0] == len(set(text))
    assert found.of("tokens")[0] == len(text)
    assert found.of("tokens per word")[0] == pytest.approx(len(text) / len(text.split()))
    np.testing.assert_allclose(found.of("bytes per token") * found.of("tokens"), len(text.encode()))


def test_more_merges_make_fewer_tokens() -> None:
    sizes = (258, 270, 300)
    found = vocabulary_statistics({str(size): train_bpe([TEXT] * 4, size) for size in sizes}, [TEXT, TEXT])
    assert found.of("bytes per token")[0] == 1.0
    assert (np.diff(found.of("tokens")) < 0).all()


def test_guessing_costs_the_logarithm_of_the_vocabulary_a_token() -> None:
    """A model of equal logits: bits per byte = tokens · log2(d_vocab) / bytes, whatever the windows."""
    for tokenizer in (characters_of(TEXT), train_bpe([TEXT] * 4, 270)):
        n_tokens, n_bytes = len(tokenizer.encode(TEXT)), len(TEXT.encode())
        found = loss_per_byte({"it": uniform(tokenizer)}, TEXT)
        assert found.values[0] == pytest.approx(n_tokens * math.log2(len(tokenizer)) / n_bytes, rel=CLOSE)
        assert found.nats_per_token[0] == pytest.approx(math.log(len(tokenizer)), rel=CLOSE)
        assert found.bytes_per_token[0] == pytest.approx(n_bytes / n_tokens)


@pytest.mark.parametrize("n_ctx", [2, 5, 8, 100])
@pytest.mark.parametrize("prepend_bos", [True, False])
def test_each_token_is_predicted_once_in_windows_that_overlap_by_one(n_ctx: int, prepend_bos: bool) -> None:
    tokenizer = characters_of(TEXT)
    model = model_of(tokenizer, n_ctx, prepend_bos)
    ids = [tokenizer.bos_token_id] * prepend_bos + tokenizer.encode(TEXT)
    nats, start = 0.0, 0
    while start < len(ids) - 1:
        window = ids[start : start + n_ctx]
        with torch.no_grad():
            logprobs = model(torch.tensor([window]))[0].log_softmax(-1)
        for place in range(1, len(window)):
            nats -= float(logprobs[place - 1, window[place]])
        start += n_ctx - 1
    n_bytes = len(TEXT.encode()) - (0 if prepend_bos else 1)  # nothing foretells the first "t"
    found = loss_per_byte({"it": model}, TEXT)
    assert found.values[0] == pytest.approx(nats / math.log(2) / n_bytes, rel=CLOSE)


def test_several_texts_weigh_by_their_bytes() -> None:
    model = model_of(characters_of(TEXT))
    texts = ["the cat", "and the señor saw the cat"]
    found = loss_per_byte({"a": model, "b": uniform(model.tokenizer)}, texts)
    weights = np.array([len(text.encode()) for text in texts])
    np.testing.assert_allclose(found.values, found.by_text @ weights / weights.sum(), rtol=CLOSE)
    alone = [loss_per_byte({"a": model}, text).values[0] for text in texts]
    np.testing.assert_allclose(found.by_text[0], alone, rtol=CLOSE)


def test_a_table_has_a_row_for_each_model(tmp_path: Path) -> None:
    found = loss_per_byte({"a": model_of(characters_of(TEXT)), "b": uniform(characters_of(TEXT))}, TEXT)
    frame = found.to_dataframe()
    assert frame["model_label"].tolist() == ["a", "b"]
    assert {"values", "nats_per_token", "bytes_per_token", "tokens_per_word"} <= set(frame.columns)
    found.save(tmp_path / "it.safetensors")
    assert Result.load(tmp_path / "it.safetensors") == found
    assert "bits per byte" in found.to_html()


def test_what_makes_no_sense_is_refused() -> None:
    tokenizer = characters_of(TEXT)
    model = model_of(tokenizer)
    for texts in ([], "", "  \n", ["the", ""]):
        with pytest.raises(LabError, match="expected one text or more, each with a word"):
            vocabulary_statistics({"it": tokenizer}, texts)
    with pytest.raises(LabError, match="no tokenizers"):
        vocabulary_statistics({}, TEXT)
    with pytest.raises(LabError, match="no models"):
        loss_per_byte({}, TEXT)
    with pytest.raises(LabError, match=r"cannot encode 'X' \(U\+0058\), line 1, column 5"):
        loss_per_byte({"it": model}, "the X")
    with pytest.raises(LabError, match="'it' has no tokenizer"):
        loss_per_byte({"it": GPT(model.cfg)}, TEXT)
    with pytest.raises(LabError, match="single token of 'mine', which nothing foretells"):
        loss_per_byte({"it": model_of(tokenizer, prepend_bos=False)}, "t")
    with pytest.raises(LabError, match="window of one token"):
        loss_per_byte({"it": model_of(tokenizer, 1)}, TEXT)
    both_ways = GPT(TransformerConfig(1, 2, 8, len(tokenizer), n_ctx=8, attention_dir="bidirectional"), tokenizer)
    with pytest.raises(LabError, match="attention sees both ways"):
        loss_per_byte({"it": both_ways}, TEXT)


def test_a_first_token_that_is_part_of_a_character_needs_a_start_token() -> None:
    bpe = train_bpe([TEXT] * 4, 258)
    assert loss_per_byte({"it": model_of(bpe)}, "— the").values[0] > 0
    with pytest.raises(LabError, match="part of a character"):
        loss_per_byte({"it": model_of(bpe, prepend_bos=False)}, "— the")
