"""The command line on an encoder-decoder: it translates, and each of its sides is looked at by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from analyses.command_line.shell import FAILED, MISUSED
from models.encoder_decoder import EncoderDecoder
from tests.analyses.tiny_models import interp
from tests.models.test_encoder_decoder import small

PATCH = ["--model", "dates", "--prompt", "5 March 1987", "--corrupted", "5 March 1947", "--right", "8", "--wrong", "4"]


def test_a_source_is_translated() -> None:
    assert interp("generate", "--model", "dates", "March 5, 1987").stdout == "1987-03-05\n"
    searched = interp("generate", "--model", "dates", "--prompt", "March 5, 1987", "--beams", "3", "--json")
    document = json.loads(searched.stdout)
    assert document["text"] == "1987-03-05"
    assert (
        document["provenance"]["settings"] | {"num_beams": 3, "temperature": 0.0} == document["provenance"]["settings"]
    )


def test_a_model_without_a_tokenizer_takes_ids(tmp_path: Path) -> None:
    model = EncoderDecoder(small())
    expected = model.generate(torch.tensor([1, 2, 3]), 4).tolist()
    model.save(tmp_path / "mine")
    written = interp("generate", "--model", str(tmp_path / "mine"), "--ids", "1 2 3", "--max-new-tokens", "4")
    assert written.stdout.split() == [str(token) for token in expected]


def test_the_decoder_is_read_given_a_source() -> None:
    found = interp("lens", "--model", "dates", "--source", "5 March 1987", "--prompt", "1987-0", "--json")
    document = json.loads(found.stdout)
    assert document["top"]["tokens"][-1][-1][0] == "3"
    assert document["provenance"]["model"] == "dates given '5 March 1987'"


def test_the_encoder_is_patched_given_a_target(tmp_path: Path) -> None:
    found = interp("patch", *PATCH, "--target", "19", "--site", "cross_v", "--by", "layer,pos", "--json")
    [values] = json.loads(found.stdout)["values"]
    assert [round(value) for value in values] == [0] * 10 + [1, 0]
    page = tmp_path / "patch.html"
    assert interp("patch", *PATCH, "--target", "19", "--out", str(page)).exit_code == 0
    assert page.stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["generate", "--model", "town", "Mary", "--beams", "2"], MISUSED, "only an encoder-decoder"),
        (["generate", "--model", "dates", "5/3/1987", "--prompt", "5/3/1987"], MISUSED, "given twice"),
        (["generate", "--model", "dates", "5 März 1987"], FAILED, "cannot encode 'ä'"),
        (["generate", "--model", "dates", "5" * 30], FAILED, "30 positions do not fit the context window of 24"),
        (["generate", "--model", "dates", "5", "--max-new-tokens", "30"], FAILED, "max_new_tokens=30"),
        (
            ["generate", "--model", "dates", "5", "--beams", "2", "--temperature", "1"],
            FAILED,
            "temperature=0 with beams",
        ),
        (["lens", "--model", "town", "--source", "a", "--prompt", "b"], FAILED, "goes with an encoder-decoder"),
        (["lens", "--model", "dates", "--source", "a", "--target", "b"], MISUSED, "expected one of them"),
        (["lens", "--model", "dates", "--target", "19", "--prompt", "5 March"], FAILED, "no logits of its own"),
        (["lens", "--model", "dates", "--prompt", "5 March"], MISUSED, "It has two sides"),
        (["patch", *PATCH], FAILED, "It has two sides"),
    ],
)
def test_what_does_not_go_is_said_in_words(arguments: list[str], code: int, words: str) -> None:
    found = interp(*arguments)
    assert (found.exit_code, found.stdout) == (code, "")
    assert found.stderr.startswith("error: ")
    assert words in found.stderr
