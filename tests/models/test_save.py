"""What `model.save` writes, `load` gives back to the last bit; nothing is half-written."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from interp.errors import LabError
from models import GPT, TransformerConfig, load
from models.tokenizers import characters
from tests.strategies import SEEDS, configs, random_model

TINY = TransformerConfig(n_layers=1, n_heads=2, d_model=8, d_vocab=7, n_ctx=6, seed=0)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@given(cfg=configs(), seed=SEEDS, dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
def test_every_model_comes_back_to_the_last_bit(cfg: TransformerConfig, seed: int, dtype: torch.dtype) -> None:
    model = random_model(cfg, seed, dtype)
    with tempfile.TemporaryDirectory() as folder:
        back = load(model.save(Path(folder) / "model"))
    assert back.cfg == model.cfg
    assert back.dtype == dtype
    theirs = dict(back.named_parameters())
    for name, parameter in model.named_parameters():
        assert theirs.pop(name).equal(parameter)
    assert not theirs


def test_the_tokenizer_comes_back_too(tmp_path: Path) -> None:
    model = GPT(TINY, tokenizer=characters("abcdef"))
    back = load(model.save(tmp_path / "model"))
    assert back.tokenizer is not None
    assert torch.equal(back.to_tokens("fade"), model.to_tokens("fade"))
    assert torch.equal(back("fade"), model("fade"))


def test_a_directory_holds_the_format_plain_weights_and_nothing_else(tmp_path: Path) -> None:
    directory = GPT(TINY).save(tmp_path / "model")
    assert set(files(directory)) == {"config.json", "model.safetensors"}
    config = json.loads((directory / "config.json").read_text())
    assert (config["format"], config["format_version"]) == ("interp-lab", 1)
    assert "device" not in config
    with safe_open(directory / "model.safetensors", framework="pt") as weights:
        assert set(weights.keys()) == {name for name, _ in GPT(TINY).named_parameters()}


@pytest.mark.parametrize("write", ["save", "export"])
def test_saving_again_replaces_the_model_and_leaves_other_files(tmp_path: Path, write: str) -> None:
    first = GPT(TINY, tokenizer=characters("abcdef"))
    directory = getattr(first, write)(tmp_path / "model")
    (directory / "README.md").write_text("a card")
    second = GPT(TransformerConfig(n_layers=2, n_heads=2, d_model=8, d_vocab=5, n_ctx=6))
    getattr(second, write)(directory)
    back = load(directory)
    assert back.cfg.n_layers == 2
    assert back.tokenizer is None, "the first model's tokenizer does not fit the second"
    assert (directory / "README.md").read_text() == "a card"
    assert os.listdir(tmp_path) == ["model"]


def test_saving_over_the_directory_it_was_loaded_from_keeps_the_model(tmp_path: Path) -> None:
    original = GPT(TINY)
    directory = original.save(tmp_path / "model")
    model = load(directory)
    model.save(directory)
    assert model.unembed.weight.equal(original.unembed.weight)
    assert load(directory).unembed.weight.equal(original.unembed.weight)


@pytest.mark.parametrize(("there", "write"), [("export", "save"), ("save", "export")])
def test_a_model_of_another_format_is_never_overwritten(tmp_path: Path, there: str, write: str) -> None:
    directory = getattr(GPT(TINY), there)(tmp_path / "model")
    before = files(directory)
    with pytest.raises(LabError, match="holds another model"):
        getattr(GPT(TINY), write)(directory)
    assert files(directory) == before
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("write", ["save", "export"])
def test_a_failure_in_the_middle_leaves_the_old_model_and_no_litter(
    tmp_path: Path, write: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = getattr(GPT(TINY), write)(tmp_path / "model")
    before = files(directory)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    model = GPT(TransformerConfig(n_layers=2, n_heads=2, d_model=8, d_vocab=7, n_ctx=6), characters("abcdef"))
    monkeypatch.setattr("models.tokenizers.Tokenizer.save", interrupted)  # after the weights, before the config
    for place in (directory, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            getattr(model, write)(place)
    assert files(directory) == before
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("write", ["save", "export"])
def test_a_place_that_cannot_be_written_to_is_refused_before_any_work(
    tmp_path: Path, write: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked: list[str] = []
    for module in ("native", "export"):
        monkeypatch.setattr(f"models.pretrained.{module}.save_file", lambda *_, **__: worked.append("wrote"))
    (tmp_path / "file").write_text("here already")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/no/such/place")):
        with pytest.raises(LabError, match="cannot"):
            getattr(GPT(TINY), write)(place)
    assert not worked
    assert (tmp_path / "file").read_text() == "here already"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attn_only": True}, "attn_only=True"),
        ({"normalization_type": None}, "normalization_type=None"),
        ({"unembed_bias": True}, "unembed_bias=True"),
        ({"d_vocab_out": 3}, "d_vocab_out=3"),
        ({"n_key_value_heads": 1}, "n_key_value_heads=1"),
        ({"d_head": 6}, "d_head=6"),
        ({"attention_dir": "bidirectional"}, "attention_dir='bidirectional'"),
        (
            {"normalization_type": "RMS", "positional_embedding_type": "rotary", "gated_mlp": True, "rotary_dim": 2},
            "rotary_dim=2",
        ),
    ],
)
def test_a_model_without_counterpart_is_not_exported_and_the_obstacle_is_named(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    sizes = {"n_layers": 1, "n_heads": 2, "d_model": 8, "d_vocab": 7, "n_ctx": 6}
    with pytest.raises(LabError, match="no counterpart in transformers") as caught:
        GPT(TransformerConfig(**(sizes | changes))).export(tmp_path / "x")
    assert named in str(caught.value)
    assert not list(tmp_path.iterdir())
