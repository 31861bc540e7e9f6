"""Checkpoints of families: what the lab's own code does not compute is refused, with the way out named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from interp.errors import LabError
from models import load
from models.pretrained.huggingface import FAMILIES, family_of
from tests.parity.family_models import MAKERS, N_CTX


def saved(family: str, directory: Path, seed: int = 0) -> Path:
    """A random model, saved by transformers."""
    AutoModelForCausalLM.from_config(MAKERS[family](seed)).save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before=False"),
        ("opt", {"word_embed_proj_dim": 8}, "word_embed_proj_dim=8"),
        ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm=True"),
        ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine=False"),
        ("phi3", {"rope_parameters": {"rope_type": "linear"}}, "rope_type='linear'"),
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "rope_type='longrope'"),
        ("gpt_neox", {"rope_parameters": {"rope_type": "proportional"}}, "rope_type='proportional'"),
        ("starcoder2", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ("stablelm", {"qk_layernorm": True}, "qk_layernorm=True"),
        ("gpt_neox", {"hidden_act": "gelu_fast"}, "'gelu_fast'"),
        ("gptj", {"model_type": "bloom"}, "model_type='bloom'"),
    ],
)
def test_what_is_not_computed_is_refused_and_the_bridge_named(family: str, changes: dict[str, Any], said: str) -> None:
    config = MAKERS[family](0).to_dict()
    family_of(config).read_config(config)
    with pytest.raises(LabError) as caught:
        family_of(config | changes).read_config(config | changes)
    assert said in str(caught.value)
    assert 'backend="transformer-lens"' in str(caught.value)


@pytest.mark.parametrize("seed", [0, 3])
def test_masks_and_a_second_copy_of_tied_embeddings_in_pythia_files_are_left(seed: int, tmp_path: Path) -> None:
    """Published files keep causal masks beside the weights. Seed 3 ties the embeddings."""
    directory = saved("gpt_neox", tmp_path, seed)
    bare = load(directory).state_dict()
    tensors = load_file(directory / "model.safetensors")
    copy = {"embed_out.weight": tensors.get("embed_out.weight", tensors["gpt_neox.embed_in.weight"]).clone()}
    mask = {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 4, 4).tril()}
    (directory / "model.safetensors").unlink()
    save_file({**tensors, **mask, **copy}, directory / "model.safetensors")
    full = load(directory).state_dict()
    assert all(torch.equal(weight, bare[name]) for name, weight in full.items())


def test_a_config_from_before_version_5_means_the_same() -> None:
    def neox_angles(config: dict[str, Any]) -> dict[str, Any]:
        angles = config.pop("rope_parameters")
        return {"rotary_emb_base": angles["rope_theta"], "rotary_pct": angles["partial_rotary_factor"]}

    def phi3_angles(config: dict[str, Any]) -> dict[str, Any]:
        angles = config.pop("rope_parameters")
        return angles | {"rope_scaling": None}

    older: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"gpt_neox": neox_angles, "phi3": phi3_angles}
    for family, angles_of in older.items():
        for seed in range(4):
            config = MAKERS[family](seed).to_dict()
            read = family_of(config).read_config
            today = read(dict(config))
            assert read(config | angles_of(config)) == today


def test_the_gelu_of_the_first_gemma_files_is_its_tanh_approximation() -> None:
    config = MAKERS["gemma"](0).to_dict() | {"hidden_act": "gelu"}
    assert family_of(config).read_config(config).act_fn == "gelu_new"


def test_the_older_names_of_longrope_mean_the_same() -> None:
    config = MAKERS["phi3-longrope"](0).to_dict()
    read = family_of(config).read_config
    angles = config.pop("rope_parameters")
    today = read(config | {"rope_parameters": angles})
    for name in ("su", "yarn"):
        older = {k: v for k, v in angles.items() if k not in ("rope_type", "rope_theta")} | {"type": name}
        assert read(config | {"rope_scaling": older, "rope_theta": angles["rope_theta"]}) == today


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"short_factor": [1.0]}, "a short_factor of 1 numbers; expected 4"),
        ({"short_factor": [1.0, 0.0, 1.0, 1.0]}, "a positive number for each frequency"),
        ({"short_factor": None}, "lacks 'short_factor'"),
    ],
)
def test_longrope_factors_that_make_no_sense_are_refused(changes: dict[str, Any], said: str) -> None:
    config = MAKERS["phi3-longrope"](0).to_dict()
    config["rope_parameters"] |= changes
    with pytest.raises(LabError, match=said):
        family_of(config).read_config(config)


def test_a_prompt_beyond_the_first_context_of_longrope_is_refused(tmp_path: Path) -> None:
    """There transformers changes the angles of every position, by the longest prompt of the batch."""
    model = load(saved("phi3-longrope", tmp_path))
    model(torch.zeros(1, N_CTX, dtype=torch.long))
    with pytest.raises(LabError, match=f"{N_CTX + 1} positions do not fit"):
        model(torch.zeros(1, N_CTX + 1, dtype=torch.long))


@pytest.mark.parametrize("family", ["gpt_neox", "gptj", "gemma2", "gemma3", "qwen3", "olmo2", "mistral", "llama-yarn"])
def test_a_model_with_what_gpt2_and_llama_lack_is_not_exported(family: str, tmp_path: Path) -> None:
    model = load(saved(family, tmp_path / "theirs"))
    with pytest.raises(LabError, match="no counterpart in transformers"):
        model.export(tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_families_share_no_model_type() -> None:
    kinds = [kind for family in FAMILIES for kind in family.model_types]
    assert len(kinds) == len(set(kinds))
