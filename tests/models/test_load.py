"""`load` finds models, in every layout of files, and gives them as they were asked for."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp.errors import LabError
from models import GPT, TransformerConfig, load
from models.pretrained import places, zoo_names
from models.pretrained.gemma import GEMMA3
from models.rotary_scaling import RotaryScaling
from models.tokenizers import characters
from tests.models.tiny_checkpoints import OTHER_SHAPES, TINY, TOKENS, change_config, message_of, tiny

# Finding


def test_a_name_of_the_zoo_loads_and_a_directory_of_that_name_comes_first(
    native: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "ZOO", native.parent)
    assert zoo_names() == ["mine"]
    assert load("mine").cfg.d_vocab == 7
    tiny(d_vocab=9).save(tmp_path / "elsewhere" / "mine")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load("mine").cfg.d_vocab == 9


def test_an_unknown_name_is_answered_with_the_near_misses_of_the_zoo(
    native: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "ZOO", native.parent)
    message = message_of("mien")
    assert "no model 'mien'" in message
    assert "closest: 'mine'" in message


@pytest.mark.parametrize(
    ("name", "said"),
    [("./nowhere", "no directory"), ("a/b/c", "no directory"), ("", "no directory"), ("two words", "no model")],
)
def test_a_place_that_is_not_there_is_said_to_be(name: str, said: str) -> None:
    assert said in message_of(name)


def test_a_directory_without_a_config_is_named(tmp_path: Path) -> None:
    assert "no config.json" in message_of(tmp_path)


def test_a_hub_checkpoint_already_on_this_machine_needs_no_network(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def snapshot(name: str, **arguments: Any) -> str:
        asked.append({"name": name, **arguments})
        return str(exported)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    model = load("someone/tiny", revision="v1")
    assert model.cfg.model_name == "someone/tiny"
    assert model.revision == "v1"
    assert len(asked) == 1
    assert asked[0]["revision"] == "v1"
    assert not [p for p in asked[0]["allow_patterns"] if p.endswith((".py", ".bin", ".pkl"))]


def test_a_revision_picks_the_weights_of_that_step(native: Path) -> None:
    (native / "checkpoints").mkdir()
    early = load_file(native / "model.safetensors")
    early["unembed.weight"] = torch.ones_like(early["unembed.weight"])
    save_file(early, native / "checkpoints" / "step_000400.safetensors")
    model = load(native, revision="step-400")
    assert model.revision == "step-400"
    assert bool((model.unembed.weight == 1).all())
    assert load(native).revision is None
    assert "known: step-400" in message_of(native, revision="step-401")


def test_a_single_checkpoint_has_no_revisions(exported: Path, native: Path) -> None:
    assert "no revision 'main'" in message_of(exported, revision="main")
    assert "no revision 'main'" in message_of(native, revision="main")


# What is asked for


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_a_device_that_is_not_there_is_refused_before_anything_is_looked_for() -> None:
    assert "'cuda' is not there" in message_of("no such model", device="cuda")


def test_unknown_devices_dtypes_and_backends_are_refused(native: Path) -> None:
    assert "unknown device" in message_of(native, device="abacus")
    assert "float32" in message_of(native, dtype="int7")
    assert "transformer-lens" in message_of(native, backend="transformer_lens")


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float64])
def test_weights_come_in_the_dtype_asked_for(native: Path, exported: Path, dtype: Any) -> None:
    for directory in (native, exported):
        model = load(directory, dtype=dtype)
        wanted = torch.bfloat16 if dtype == "bfloat16" else dtype
        assert {parameter.dtype for parameter in model.parameters()} == {wanted}
        assert model.cfg.dtype == wanted


def test_without_a_dtype_the_checkpoint_keeps_its_own(tmp_path: Path) -> None:
    model = tiny().to(torch.bfloat16)
    assert load(model.save(tmp_path / "a")).dtype == torch.bfloat16
    assert load(model.export(tmp_path / "b")).dtype == torch.bfloat16
    change_config(tmp_path / "b", dtype=...)
    assert load(tmp_path / "b").dtype == torch.bfloat16


@pytest.mark.gpu
def test_weights_go_to_the_gpu(native: Path, exported: Path) -> None:
    for directory in (native, exported):
        model = load(directory, device="cuda", dtype="bfloat16")
        assert {p.device.type for p in model.parameters()} == {"cuda"}
        expected = load(directory, dtype="bfloat16")(TOKENS)
        # bfloat16 keeps 8 bits, and the two devices round different sums; logits are of order 0.01
        torch.testing.assert_close(model(TOKENS).cpu(), expected, atol=1e-3, rtol=0.05)


def test_a_loaded_model_is_ready_to_be_analysed_and_to_be_trained(exported: Path) -> None:
    model = load(exported)
    assert not model.training
    assert all(p.requires_grad and p.is_leaf and p.is_contiguous() for p in model.parameters())
    assert not any(p.is_meta for p in model.parameters())


# Layouts of files


@pytest.mark.parametrize("shape", ["tied", "llama"])
def test_a_base_model_without_prefix_and_with_buffers_loads(shape: str, tmp_path: Path) -> None:
    """As GPT-2 stands on the hub: no "transformer." before the names, and causal masks among the weights."""
    original = tiny(**(OTHER_SHAPES[shape] | {"tie_embeddings": True}))
    directory = original.export(tmp_path / "x")
    tensors = load_file(directory / "model.safetensors")
    bare = {name.removeprefix("transformer.").removeprefix("model."): t for name, t in tensors.items()}
    bare |= (
        {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
        if shape == "llama"
        else {"h.0.attn.bias": torch.ones(1, 1, 6, 6), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    )
    save_file(bare, directory / "model.safetensors")
    assert torch.equal(load(directory)(TOKENS), original(TOKENS))


def test_weights_saved_by_torch_load_when_they_hold_tensors_alone(exported: Path) -> None:
    expected = load(exported)(TOKENS)
    torch.save(load_file(exported / "model.safetensors"), exported / "pytorch_model.bin")
    (exported / "model.safetensors").unlink()
    assert torch.equal(load(exported)(TOKENS), expected)


class Malice:
    """Unpickling it makes a file appear."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("write", ["pickle", "torch"])
def test_a_pickle_offered_as_weights_is_refused_and_not_run(exported: Path, name: str, write: str) -> None:
    trap = exported / "it ran"
    (exported / "model.safetensors").unlink()
    content = {"transformer.wte.weight": Malice(trap)}
    if write == "pickle":
        (exported / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, exported / name)
    message = message_of(exported)
    assert "is a pickle" in message
    assert name in message
    assert "safetensors.torch.save_file" in message
    assert not trap.exists()


def test_a_path_to_a_pickle_and_a_directory_of_pickles_are_refused(exported: Path) -> None:
    (exported / "model.safetensors").rename(exported / "weights.pt")
    assert "is a pickle" in message_of(exported / "weights.pt")
    message = message_of(exported)
    assert "no weights" in message
    assert "Found weights.pt" in message


# Positions


@pytest.mark.parametrize("window", [6, 100])
def test_a_window_as_long_as_the_context_changes_nothing(tmp_path: Path, window: int) -> None:
    original = tiny(**OTHER_SHAPES["llama"])
    directory = original.export(tmp_path / "x")
    change_config(directory, model_type="mistral", sliding_window=window)
    assert torch.equal(load(directory)(TOKENS), original(TOKENS))


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": ..., "rope_theta": 50.0},  # before transformers 5
        {"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
        {"rope_parameters": ..., "rope_theta": 50.0, "rope_scaling": {"rope_type": "default"}},
        {"model_type": "mistral", "sliding_window": None},
    ],
)
def test_the_rotary_base_is_found_wherever_a_config_keeps_it(tmp_path: Path, changes: dict[str, Any]) -> None:
    original = tiny(**OTHER_SHAPES["llama"], rotary_base=50.0)
    directory = original.export(tmp_path / "x")
    change_config(directory, **changes)
    assert torch.equal(load(directory)(TOKENS), original(TOKENS))


def test_gemma_3_reads_both_forms_of_its_two_kinds_of_angles() -> None:
    sizes = {"num_hidden_layers": 7, "num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 8}
    rest = sizes | {"vocab_size": 9, "max_position_embeddings": 16}
    scaling = {"rope_type": "linear", "factor": 8.0}
    before = {"rope_theta": 1e5, "rope_local_base_freq": 50.0, "rope_scaling": scaling, "sliding_window_pattern": 3}
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2 + ["sliding_attention"]
    angles = {"full_attention": scaling | {"rope_theta": 1e5}, "sliding_attention": {"rope_theta": 50.0}}
    cfg = GEMMA3.read_config(rest | before)
    assert cfg == GEMMA3.read_config(rest | {"rope_parameters": angles, "layer_types": kinds})
    assert (cfg.rotary_base, cfg.rotary_base_local, cfg.rotary_scaling) == (1e5, 50.0, RotaryScaling("linear", 8.0))


# Text


def test_without_a_tokenizer_ids_work_and_text_gets_an_answer(native: Path) -> None:
    model = load(native)
    assert model(TOKENS).shape == (1, 4, 7)
    with pytest.raises(LabError, match="no tokenizer"):
        model("ab")


def test_a_start_token_is_put_first_where_there_is_one(tmp_path: Path) -> None:
    model = GPT(TransformerConfig(**TINY), tokenizer=characters("abcdef"))
    directory = model.export(tmp_path / "x")
    assert load(directory).to_tokens("ab").tolist() == [[6, 0, 1]]
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": None, "eos_token": None}))
    assert load(directory).to_tokens("ab").tolist() == [[0, 1]]


# TransformerLens


@pytest.mark.slow
@pytest.mark.parametrize("saved", ["save", "export"])
def test_the_bridge_of_a_checkpoint_gives_the_same_logits(tmp_path: Path, saved: str) -> None:
    original = tiny()
    directory = getattr(original, saved)(tmp_path / "mine")
    bridge = load(directory, backend="transformer-lens")
    assert type(bridge).__name__ == "Bridge"
    # float32: the two implementations differ in the order of sums; logits are of order 0.01
    torch.testing.assert_close(bridge(TOKENS), original(TOKENS), atol=1e-5, rtol=0.0)
    shutil.rmtree(directory)
    torch.testing.assert_close(bridge(TOKENS), original(TOKENS), atol=1e-5, rtol=0.0)
