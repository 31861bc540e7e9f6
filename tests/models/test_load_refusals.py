"""What is wrong with a checkpoint is said, by name and with both sides, and nothing is made up."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.tiny_checkpoints import OTHER_SHAPES, change_config, change_weights, message_of, tiny


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.99])
def test_a_truncated_file_is_named(exported: Path, keep: float) -> None:
    path = exported / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    message = message_of(exported)
    assert str(path) in message
    assert "truncated or corrupt" in message


def test_a_header_that_is_not_one_is_reported(exported: Path) -> None:
    (exported / "model.safetensors").write_bytes(struct.pack("<Q", 10**15) + b"x" * 100)
    assert "truncated or corrupt" in message_of(exported)


def test_a_missing_shard_is_named(exported: Path) -> None:
    (exported / "model.safetensors").rename(exported / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (exported / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors" in message_of(exported)


def test_a_config_that_contradicts_its_weights_is_shown_with_the_tensor_and_both_shapes(
    exported: Path, native: Path
) -> None:
    change_config(exported, vocab_size=8)
    message = message_of(exported)
    for part in ("transformer.wte.weight", "[7, 8]", "[8, 8]"):
        assert part in message
    change_config(native, d_mlp=20)
    message = message_of(native)
    for part in ("blocks.0.mlp.in_.weight", "[32, 8]", "[20, 8]"):
        assert part in message


def test_missing_and_unexpected_tensors_are_listed(exported: Path) -> None:
    change_weights(exported, **{"transformer.ln_f.bias": None, "transformer.h.9.ln_1.bias": torch.ones(8)})
    message = message_of(exported)
    assert "missing 'transformer.ln_f.bias'" in message
    assert "not expected 'transformer.h.9.ln_1.bias'" in message


def test_of_many_missing_tensors_the_first_are_named_and_the_rest_counted(exported: Path) -> None:
    change_config(exported, n_layer=3)
    message = message_of(exported)
    assert "missing 'transformer.h.2.ln_1.weight', 'transformer.h.2.ln_1.bias'" in message
    assert "and 8 more" in message


def test_an_index_that_leads_elsewhere_or_nowhere_is_refused(exported: Path) -> None:
    (exported / "model.safetensors").unlink()
    for weight_map, said in (({}, "no weight_map"), ({"a": "../../etc/passwd"}, "not there")):
        (exported / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        assert said in message_of(exported)


def test_quantised_tensors_are_refused(exported: Path) -> None:
    name = "transformer.wte.weight"
    change_weights(exported, **{name: torch.ones(7, 8, dtype=torch.int8)})
    assert "I8" in message_of(exported)


@pytest.mark.parametrize(
    ("text", "said"), [("{", "as JSON"), ("[1]", "expected a JSON object"), ("{}", "model_type=None")]
)
def test_a_config_that_is_none_is_reported(exported: Path, text: str, said: str) -> None:
    (exported / "config.json").write_text(text)
    assert said in message_of(exported)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "mamba"}, "transformer-lens"),
        ({"scale_attn_by_inverse_layer_idx": True}, "transformer-lens"),
        ({"activation_function": "quick_gelu"}, "quick_gelu"),
        ({"n_embd": ...}, "n_embd"),
        ({"n_head": 3}, "n_heads=3"),
        ({"n_embd": "wide"}, "d_model='wide'"),
        ({"n_layer": -1}, "n_layers=-1"),
        ({"n_head": 0}, "n_heads=0"),
        ({"vocab_size": 1.5}, "d_vocab=1.5"),
        ({"n_embd": 10**6}, "[7, 8]"),
        ({"n_embd": 10**15}, "sizes that no tensor has"),
        ({"n_layer": 10**12}, "1000000000000 layers"),
        ({"layer_norm_epsilon": "small"}, "eps='small'"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"auto_map": {"AutoModel": "code.py"}}, "code of its own"),
    ],
)
@pytest.mark.usefixtures("unchecked")  # the annotations would find the wrong type before the code does
def test_a_gpt2_that_the_lab_does_not_compute_is_refused(exported: Path, changes: dict[str, Any], said: str) -> None:
    change_config(exported, **changes)
    assert said in message_of(exported, backend="native")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}}, "rope_type='proportional'"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "rope_type='longrope'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "truncate=False"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7}}, "mscale=0.7"),
        ({"layer_types": ["chunked_attention", "full_attention"]}, "'chunked_attention'"),
        ({"model_type": "gemma3"}, "model_type='gemma3'"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
    ],
)
def test_a_llama_that_the_lab_does_not_compute_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    directory = tiny(**OTHER_SHAPES["llama"]).export(tmp_path / "x")
    change_config(directory, **changes)
    message = message_of(directory, backend="native")
    assert said in message
    assert "transformer-lens" in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks 'low_freq_factor'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "lacks 'factor'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -1.0}}, "factor=-1.0"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2}, "no sliding_window"),
        ({"model_type": "mistral", "sliding_window": 0}, "window_size=0"),
    ],
)
def test_positions_that_make_no_sense_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    directory = tiny(**OTHER_SHAPES["llama"]).export(tmp_path / "x")
    change_config(directory, **changes)
    assert said in message_of(directory)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_more_layers_than_tensors_are_refused_before_anything_is_made_for_each(kind: str, tmp_path: Path) -> None:
    directory = tiny(**OTHER_SHAPES["llama"]).export(tmp_path / "x")
    change_config(directory, model_type=kind, num_hidden_layers=10**12)
    assert "the config 1000000000000 layers" in message_of(directory)


def test_a_later_format_is_refused(native: Path) -> None:
    change_config(native, format_version=2)
    assert "update the lab" in message_of(native)
