"""A tokenizer comes without its model, from where the model would come."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from interp.errors import LabError, UnknownModelError
from models import load
from models.pretrained import load_tokenizer
from models.tokenizers import NoTokenizerError


def test_gpt2_by_its_name_is_the_published_vocabulary_and_no_weights_are_asked_for(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def snapshot(name: str, **arguments: Any) -> str:
        asked.append({"name": name, **arguments})
        return str(shared_data / "gpt2-bpe")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    gpt2 = load_tokenizer("gpt2", revision="main")
    assert (gpt2.encode("Hello world"), len(gpt2)) == ([15496, 995], 50257)
    assert [(ask["name"], ask["revision"]) for ask in asked] == [("gpt2", "main")]
    assert not [pattern for pattern in asked[0]["allow_patterns"] if "model" in pattern]


def test_a_model_of_the_zoo_and_a_directory_give_theirs(shared_data: Path, tmp_path: Path) -> None:
    assert load_tokenizer("town").core.to_str() == load("town").tokenizer.core.to_str()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(shared_data / "gpt2-bpe" / name, tmp_path)
    assert load_tokenizer(tmp_path).encode("Hello world") == [15496, 995]


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoTokenizerError, match=r"expected tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(UnknownModelError, match=r"no model 'twon': .*closest: 'town'"):
        load_tokenizer("twon")
    with pytest.raises(LabError, match="no model ''"):
        load_tokenizer("")
