"""What the lab has no code for goes to TransformerLens with a warning, or is refused with both reasons."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from models import load
from tests.models.tiny_checkpoints import OTHER_SHAPES, TOKENS, bloom, change_config, message_of, tiny


def test_an_architecture_without_code_of_the_labs_goes_to_transformerlens_with_a_warning(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from models.bridge import Bridge

    directory = bloom(tmp_path)
    with pytest.warns(UserWarning, match="model_type='bloom'.*Loaded through TransformerLens instead"):
        model = load(directory)
    assert isinstance(model, Bridge)
    theirs = AutoModelForCausalLM.from_pretrained(directory)
    # the same code on the same weights; fused and eager attention round differently
    torch.testing.assert_close(model(TOKENS), theirs(TOKENS).logits, atol=1e-5, rtol=1e-5)


def test_a_feature_without_code_of_the_labs_goes_to_transformerlens_with_a_warning(tmp_path: Path) -> None:
    directory = tiny(**OTHER_SHAPES["llama"]).export(tmp_path / "x")
    change_config(directory, hidden_act="gelu_fast")
    with pytest.warns(UserWarning, match="'gelu_fast'.*Loaded through TransformerLens instead"):
        model = load(directory)
    assert bool(model(TOKENS).isfinite().all())


def test_whoever_asks_for_the_native_code_gets_it_or_an_error(tmp_path: Path) -> None:
    message = message_of(bloom(tmp_path), backend="native")
    assert "model_type='bloom'" in message
    assert 'try backend="transformer-lens"' in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "lama"}, ["model_type='lama'", "closest: 'llama'", "known: gpt2, gpt_neox", "TransformerLens"]),
        ({"model_type": "gemma3_txt"}, ["closest: 'gemma3_text'", "TransformerLens"]),
        (
            {"architectures": ["BloomForSequenceClassification"]},
            ["model_type='bloom'", "does not predict the next token"],
        ),
        ({"quantization_config": {"bits": 4}}, ["quantised"]),
        ({"auto_map": {"AutoModel": "code.py"}}, ["code of its own"]),
    ],
)
def test_what_neither_backend_loads_is_told_with_both_reasons(
    changes: dict[str, Any], said: list[str], tmp_path: Path
) -> None:
    message = message_of(bloom(tmp_path, **changes))
    for fragment in said:
        assert fragment in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 9}, "'transformer.word_embeddings.weight' has shape [7, 8], the config makes it [9, 8]"),
        ({"n_layer": 3}, "the weights lack 'transformer.h.2.input_layernorm.bias'"),
        ({"n_layer": 10**12}, "29 tensors, the config 1000000000000 layers"),
        ({"n_layer": -1}, "-1 layers; expected at least one"),
        ({"n_head": 0}, "modulo by zero"),
        ({"hidden_size": "wide"}, "'hidden_size' expected int, got str"),
        ({"hidden_size": 10**15}, "overflowed"),
    ],
)
@pytest.mark.parametrize("backend", [None, "transformer-lens"])
def test_weights_and_configs_that_disagree_are_refused_through_transformerlens_too(
    changes: dict[str, Any], said: str, backend: str | None, tmp_path: Path
) -> None:
    """transformers itself makes up what is missing, and goes on."""
    assert said in message_of(bloom(tmp_path, **changes), backend=backend)


def test_without_transformerlens_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformer_lens.model_bridge.sources", None)
    message = message_of(bloom(tmp_path))
    assert "model_type='bloom'" in message
    assert "transformer_lens" in message
