"""A config derives what it can, refuses what contradicts itself, and survives JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from hypothesis import given

from interp.errors import LabError
from models import GPT, TransformerConfig
from models.config import DTYPES, dtype_named
from tests.strategies import configs

SIZES: dict[str, Any] = {"n_layers": 2, "n_heads": 4, "d_model": 16, "d_vocab": 11, "n_ctx": 8}


def test_sizes_left_out_are_derived() -> None:
    cfg = TransformerConfig(**SIZES, positional_embedding_type="rotary")
    assert (cfg.d_head, cfg.d_mlp, cfg.d_vocab_out, cfg.rotary_dim, cfg.n_kv_heads) == (4, 64, 11, 4, 4)
    assert (cfg.head_size, cfg.mlp_size, cfg.n_outputs) == (4, 64, 11)


def test_a_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TransformerConfig(**SIZES).n_layers = 3  # type: ignore[misc]


@given(configs())
def test_json_and_back_is_the_same_config(cfg: TransformerConfig) -> None:
    assert TransformerConfig.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtype_survives_and_the_device_is_not_saved(dtype: str) -> None:
    cfg = TransformerConfig(**SIZES, dtype=dtype_named(dtype), device=torch.device("cpu"))
    values = cfg.to_dict()
    assert values["dtype"] == dtype
    assert "device" not in values
    assert TransformerConfig.from_dict(values).dtype == getattr(torch, dtype)
    assert GPT(cfg).dtype == getattr(torch, dtype)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layers": 0}, "n_layers=0; expected a positive integer"),
        ({"d_model": "16"}, "d_model='16'; expected a positive integer"),
        ({"d_head": 0}, "d_head=0; expected a positive integer"),
        ({"d_mlp": -3}, "d_mlp=-3; expected a positive integer"),
        ({"n_key_value_heads": 0}, "n_key_value_heads=0; expected a positive integer"),
        ({"n_heads": 3}, "d_model=16 is not a multiple of n_heads=3"),
        ({"n_key_value_heads": 3}, "n_heads=4 is not a multiple of n_key_value_heads=3"),
        ({"tie_embeddings": True, "d_vocab_out": 5}, "tie_embeddings needs d_vocab_out == d_vocab, given 5 and 11"),
        (
            {"positional_embedding_type": "rotary", "rotary_dim": 3},
            "rotary_dim=3; expected an even number up to d_head=4",
        ),
        (
            {"positional_embedding_type": "rotary", "rotary_dim": 6},
            "rotary_dim=6; expected an even number up to d_head=4",
        ),
        ({"act_fn": "gelu_nwe"}, "unknown activation function 'gelu_nwe'.*closest: 'gelu_new'"),
        ({"positional_embedding_type": "rotory"}, "unknown positional_embedding_type 'rotory'.*closest: 'rotary'"),
        ({"normalization_type": "BN"}, "normalization_type='BN'; expected 'LN', 'LNPre', 'RMS', 'RMSPre' or None"),
        ({"attention_dir": "backward"}, "unknown attention_dir 'backward'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_contradictions_are_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message) as error:
        TransformerConfig(**(SIZES | changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (SIZES | {"n_layer": 2}, "unknown config entry 'n_layer'.*closest: 'n_layers'"),
        ({"n_layers": 2, "n_heads": 4}, "the config lacks d_model, d_vocab, n_ctx"),
        (SIZES | {"dtype": "float8"}, "unknown dtype 'float8'"),
    ],
)
def test_a_dictionary_that_is_no_config_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        TransformerConfig.from_dict(values)
