"""Every text survives its tokens, and published vocabularies give the published ids."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import LabError
from models.tokenizers import END, PAD, NoTokenizerError, Tokenizer, characters, characters_of, train_bpe

TEXTS = ["the war lasted from the year 1732 to the year 1745."] * 4


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(TEXTS, 400)


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> Tokenizer:
    return Tokenizer.from_dir(shared_data / "gpt2-bpe")


@given(text=st.text())
def test_bytes_round_trip_whatever_the_text(bpe: Tokenizer, text: str) -> None:
    assert bpe.decode(bpe.encode(text)) == text


@given(text=st.text(alphabet="abc \n"))
def test_characters_round_trip_one_token_each(text: str) -> None:
    tokenizer = characters("abc \n")
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) == len(text)


def test_characters_are_numbered_in_the_order_of_the_alphabet_with_the_end_last() -> None:
    tokenizer = characters("xyz")
    assert tokenizer.encode("zyx") == [2, 1, 0]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (3, 3, 4)


@given(
    before=st.text(alphabet="ab \n<|"), lacking=st.characters().filter(lambda c: c not in "ab \n<|"), after=st.text()
)
def test_the_first_character_that_an_alphabet_lacks_is_named_with_its_place(
    before: str, lacking: str, after: str
) -> None:
    tokenizer = characters("ab \n<|")
    line, column = before.count("\n") + 1, len(before.split("\n")[-1]) + 1
    place = f"line {line}, column {column} of the text (offset {len(before)})"
    with pytest.raises(LabError, match=re.escape(f"cannot encode {lacking!r} (U+{ord(lacking):04X}), {place}")):
        tokenizer.encode(before + lacking + after)


def test_a_special_token_is_spelled_without_its_characters() -> None:
    with pytest.raises(LabError, match=r"cannot encode 'd' .*offset 14"):
        characters("abc").encode(f"a{END}d{END}")


def test_a_vocabulary_that_would_leave_a_character_out_refuses_it(shared_data: Path) -> None:
    """The library gives such a character no token, so the text would silently become another."""
    with pytest.raises(LabError, match=r"cannot encode 'B' \(U\+0042\), line 1, column 3"):
        Tokenizer.from_dir(shared_data / "makemore-names").encode("abB")


def test_the_characters_of_a_text_are_its_alphabet() -> None:
    tokenizer = characters_of("to be\nor not")
    assert tokenizer.strings(range(len(tokenizer) - 1)) == list("\n benort")
    with pytest.raises(LabError, match="no characters"):
        characters_of("")


@pytest.mark.parametrize("alphabet", ["", "aba"])
def test_an_alphabet_is_of_different_characters(alphabet: str) -> None:
    with pytest.raises(LabError, match="different characters"):
        characters(alphabet)


def test_years_split_after_the_century(bpe: Tokenizer) -> None:
    assert bpe.strings(bpe.encode("the year 1732")) == ["the", " year", " 17", "32"]


def test_training_again_gives_the_same_vocabulary(bpe: Tokenizer) -> None:
    assert train_bpe(TEXTS, 400).core.to_str() == bpe.core.to_str()


def test_training_stops_at_the_vocabulary_asked_for() -> None:
    assert len(train_bpe(TEXTS, 270)) == 270
    with pytest.raises(LabError, match="vocab_size=100"):
        train_bpe(TEXTS, 100)


def test_no_special_token_is_added_but_special_ones_in_the_text_are_read(bpe: Tokenizer) -> None:
    assert 0 not in bpe.encode("the year")
    assert bpe.encode(f"the{END}")[-1] == bpe.eos_token_id
    assert bpe.all_special_ids == [0, 1]


def test_a_saved_tokenizer_comes_back_the_same(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    again = Tokenizer.from_dir(tmp_path)
    assert again.encode(TEXTS[0]) == bpe.encode(TEXTS[0])
    assert (again.bos_token, again.eos_token, again.pad_token, len(again)) == (END, END, PAD, len(bpe))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_transformers_reads_what_is_saved(bpe: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    bpe.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(TEXTS[0], add_special_tokens=False).input_ids == bpe.encode(TEXTS[0])
    assert (theirs.bos_token_id, theirs.pad_token_id) == (bpe.bos_token_id, bpe.pad_token_id)


def test_gpt2_ids_are_the_published_ones(gpt2: Tokenizer) -> None:
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.encode(" Mary") == [5335]
    assert (len(gpt2), gpt2.bos_token_id, gpt2.all_special_ids) == (50257, 50256, [50256])


def test_gpt2_counts_shakespeare_as_documented(gpt2: Tokenizer, shared_data: Path) -> None:
    text = (shared_data / "texts" / "tinyshakespeare.txt").read_text()
    cut = int(len(text) * 0.9)
    assert (len(gpt2.encode(text[:cut])), len(gpt2.encode(text[cut:]))) == (301_966, 36_059)


def test_vocab_and_merges_are_the_same_tokenizer(gpt2: Tokenizer, shared_data: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(shared_data / "gpt2-bpe" / name, tmp_path)
    two_files = Tokenizer.from_dir(tmp_path)
    text = "It's 1732 in São Paulo —\n\n  and the keys are 42!<|endoftext|>"
    assert two_files.encode(text) == gpt2.encode(text)
    assert two_files.decode(two_files.encode(text)) == text
    assert (two_files.bos_token_id, len(two_files)) == (50256, 50257)


def test_a_sentencepiece_vocabulary_keeps_its_spaces(shared_data: Path) -> None:
    tokenizer = Tokenizer.from_dir(shared_data / "stories260k")
    ids = tokenizer.encode("Once upon a time, <s>é")
    assert ids[:4] == [403, 407, 261, 378]
    assert tokenizer.strings(ids[:5]) == [" Once", " upon", " a", " time", ","]
    assert tokenizer.decode(tokenizer.encode("Once upon a time é")) == "Once upon a time é"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (1, 2, 512)


@given(text=st.text(alphabet="abcxyz"))
def test_published_character_vocabularies_round_trip(shared_data: Path, text: str) -> None:
    tokenizer = Tokenizer.from_dir(shared_data / "makemore-names")
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.pad_token_id == 0


def test_special_tokens_may_be_written_as_objects_and_in_the_map(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": END}, "eos_token": None}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": PAD}))
    tokenizer = Tokenizer.from_dir(tmp_path)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (END, None, PAD)


def test_a_directory_without_a_tokenizer_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(NoTokenizerError, match=r"expected tokenizer\.json, or vocab\.json with merges\.txt"):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_corrupt_file_is_named(bpe: Tokenizer, tmp_path: Path, name: str) -> None:
    bpe.save(tmp_path)
    (tmp_path / name).write_text('{"bos')
    with pytest.raises(LabError, match=f"cannot read .*{name}"):
        Tokenizer.from_dir(tmp_path)


def test_a_start_token_must_be_in_the_vocabulary(bpe: Tokenizer) -> None:
    with pytest.raises(LabError, match="bos_token '<s>' is not in"):
        Tokenizer(bpe.core, bos_token="<s>")
