"""Weights and configs go to HookedTransformer's names and back, and what has no place there is refused.

What HookedTransformer itself computes from such weights is compared in tests/parity/test_hooked_transformer.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from hypothesis import given
from safetensors.torch import save_file
from torch import Tensor

from interp import provenance
from interp.errors import LabError
from models import GPT, HookedTransformer, TransformerConfig, load, processing
from models.hooked_transformer.weights import config_of_hooked, from_hooked, to_hooked, unmatched
from models.rotary_scaling import RotaryScaling
from tests.strategies import models, random_model, token_batches

SIZES: Any = {"n_layers": 2, "n_heads": 4, "d_model": 16, "d_vocab": 11, "n_ctx": 8, "d_mlp": 20}
THEIRS: dict[str, Any] = {
    **{"n_layers": 2, "n_heads": 4, "d_model": 16, "d_head": 4, "d_vocab": 11, "n_ctx": 8, "d_mlp": 20},
    **{"act_fn": "gelu_new", "normalization_type": "LN", "attn_scale": 2.0, "initializer_range": 0.2, "device": "cuda"},
    **{"dtype": "torch.float32", "use_attn_result": True, "n_params": 4000, "rotary_scaling_factor": 1.0},
}
TOKENS = torch.tensor([[1, 5, 3, 2, 7], [4, 4, 9, 0, 10]])
BUFFERS = {"attn.mask": torch.ones(8, 8, dtype=torch.bool), "attn.IGNORE": torch.tensor(float("-inf"))}


@given(models(), token_batches())
def test_there_and_back_the_weights_are_the_same(model: GPT, tokens: Tensor) -> None:
    """Exactly, but for a scale of the embedding or an offset of gains, each of which costs a rounding."""
    back = GPT(model.cfg)
    back.load_state_dict(from_hooked(to_hooked(model), model.cfg))
    exact = model.cfg.embed_scale is None and not model.cfg.norm_gain_offset
    tolerance = {"atol": 0.0, "rtol": 0.0} if exact else {"atol": 1e-14, "rtol": 1e-14}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(back.get_parameter(name), parameter, **tolerance)


def test_names_and_shapes_are_those_of_the_field() -> None:
    model = random_model(TransformerConfig(**SIZES, n_key_value_heads=2))
    state = to_hooked(model)
    for name in ("W_Q", "W_O", "b_Q"):
        assert torch.equal(state[f"blocks.1.attn.{name}"], getattr(model.blocks[1].attn, name))
    for name in ("W_K", "W_V", "b_K", "b_V"):  # heads share them
        assert torch.equal(state[f"blocks.1.attn._{name}"], getattr(model.blocks[1].attn, name))
    assert torch.equal(state["blocks.0.mlp.W_in"], model.blocks[0].mlp.W_in)
    assert torch.equal(state["pos_embed.W_pos"], model.W_pos)
    assert torch.equal(state["unembed.W_U"], model.W_U)
    assert torch.equal(state["ln_final.w"], model.ln_final.w)
    assert not state["unembed.b_U"].any()


def test_weights_are_views_and_cost_no_memory() -> None:
    model = random_model(TransformerConfig(**SIZES, unembed_bias=True))
    owned = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert all(tensor.untyped_storage().data_ptr() in owned for tensor in to_hooked(model).values())


def test_the_weights_hash_is_that_of_the_same_weights_under_our_names() -> None:
    model = random_model(TransformerConfig(**SIZES, gated_mlp=True))
    expected = provenance.weights_hash(model)
    assert provenance.weights_hash(HookedTransformer.of(model)) == expected
    processing.fold_norms(model)
    assert provenance.weights_hash(model) != expected


def test_a_processed_state_dict_has_no_gains_and_loads() -> None:
    model = random_model(TransformerConfig(**SIZES))
    processing.process_weights(model)
    state = to_hooked(model)
    assert not [name for name in state if ".ln" in name or name.startswith("ln_")]
    cfg = config_of_hooked(THEIRS | {"normalization_type": "LNPre", "dtype": torch.float64})
    loaded = GPT(cfg)
    loaded.load_state_dict(from_hooked(state, cfg))
    assert torch.equal(loaded(TOKENS), model(TOKENS))


def test_buffers_are_left_out() -> None:
    model = random_model(TransformerConfig(**SIZES))
    state = to_hooked(model)
    buffers = {f"blocks.{layer}.{name}": value for layer in range(2) for name, value in BUFFERS.items()}
    assert from_hooked(state | buffers, model.cfg).keys() == from_hooked(state, model.cfg).keys()


def test_every_missing_and_unexpected_tensor_is_listed() -> None:
    model = random_model(TransformerConfig(**SIZES))
    state = to_hooked(model)
    del state["blocks.0.attn.W_Q"], state["ln_final.b"]
    state |= {"blocks.2.attn.W_Q": TOKENS, "hello": TOKENS}
    assert unmatched(state, model.cfg) == (["blocks.0.attn.W_Q", "ln_final.b"], ["blocks.2.attn.W_Q", "hello"])
    message = r"missing blocks\.0\.attn\.W_Q, ln_final\.b; not expected blocks\.2\.attn\.W_Q, hello"
    with pytest.raises(LabError, match=message):
        from_hooked(state, model.cfg)
    assert "blocks.0.attn.q.weight" not in from_hooked(state, model.cfg, strict=False)


def test_a_tensor_of_another_shape_is_named_with_both_shapes() -> None:
    model = random_model(TransformerConfig(**SIZES))
    state = to_hooked(model) | {"blocks.1.mlp.W_in": torch.zeros(20, 16)}
    with pytest.raises(LabError, match=r"'blocks.1.mlp.W_in' has shape \[20, 16\]; the config makes it \[16, 20\]"):
        from_hooked(state, model.cfg)


def test_a_bias_that_the_config_has_no_place_for_must_be_zero() -> None:
    model = random_model(TransformerConfig(**SIZES, attn_bias=False))
    state = to_hooked(model)
    from_hooked(state, model.cfg)
    state["blocks.0.attn.b_Q"] = torch.ones(4, 4)
    with pytest.raises(LabError, match=r"'blocks\.0\.attn\.b_Q' is not zero"):
        from_hooked(state, model.cfg)


def test_their_bias_after_the_product_of_a_gated_mlp_goes_to_the_output() -> None:
    cfg = TransformerConfig(**SIZES, gated_mlp=True, dtype=torch.float64)
    model = random_model(cfg)
    bias = torch.randn(20, dtype=torch.float64)
    back = GPT(cfg)
    back.load_state_dict(from_hooked(to_hooked(model) | {"blocks.1.mlp.b_in": bias}, cfg))
    with pytest.raises(LabError, match="expected W_out and b_out beside it"):
        from_hooked({"blocks.1.mlp.b_in": bias}, cfg, strict=False)
    without = {name: tensor for name, tensor in to_hooked(model).items() if name != "blocks.1.mlp.b_in"}
    assert unmatched(without, cfg) == (["blocks.1.mlp.b_in"], [])
    with model.hooks([("blocks.1.mlp.hook_post", lambda post, hook: post + bias)]):
        torch.testing.assert_close(back(TOKENS), model(TOKENS), atol=1e-12, rtol=1e-12)


def test_biases_before_the_product_of_a_gated_mlp_have_names_that_theirs_does_not_know() -> None:
    model = random_model(TransformerConfig(**SIZES, gated_mlp=True))
    extra = {"blocks.0.mlp.b_gate", "blocks.0.mlp.b_pre_linear"}
    assert extra <= to_hooked(model).keys()
    assert not to_hooked(model)["blocks.0.mlp.b_in"].any()
    with torch.no_grad():
        model.blocks[0].mlp.gate.bias.zero_()
        model.blocks[0].mlp.in_.bias.zero_()
    assert not extra & to_hooked(model).keys()


def test_tied_embeddings_must_agree() -> None:
    model = random_model(TransformerConfig(**SIZES, tie_embeddings=True))
    state = to_hooked(model)
    from_hooked(state, model.cfg)
    state["unembed.W_U"] = state["unembed.W_U"] + 1
    with pytest.raises(LabError, match=r"'embed\.W_E' and 'unembed\.W_U' differ"):
        from_hooked(state, model.cfg)


def test_the_config_of_a_hooked_transformer() -> None:
    cfg = config_of_hooked(THEIRS)
    assert (cfg.n_layers, cfg.n_heads, cfg.d_head, cfg.d_mlp, cfg.d_vocab_out) == (2, 4, 4, 20, 11)
    assert (cfg.attn_bias, cfg.out_bias, cfg.mlp_bias, cfg.unembed_bias, cfg.tie_embeddings) == (True,) * 4 + (False,)
    assert (cfg.positional_embedding_type, cfg.attn_scale, cfg.init_range) == ("learned", None, 0.2)
    assert (cfg.dtype, cfg.device) == (torch.float32, None)


YARN = {"use_yarn_rope": True, "yarn_factor": 4.0, "yarn_original_max_position_embeddings": 16}
NTK = {"use_NTK_by_parts_rope": True, "NTK_by_parts_factor": 8.0, "NTK_original_ctx_len": 16}
LOCAL = {"use_local_attn": True, "attn_types": ["local", "global"] * 2, "window_size": 3}


@pytest.mark.parametrize(
    ("entries", "ours"),
    [
        ({"act_fn": "gelu_pytorch_tanh"}, {"act_fn": "gelu_new"}),
        ({"attn_only": True, "act_fn": None}, {"attn_only": True}),
        ({"n_heads": -1}, {"n_heads": 4}),
        ({"use_attn_scale": False}, {"attn_scale": 1.0}),
        ({"attn_scale": 3.0}, {"attn_scale": 3.0}),
        ({"d_vocab_out": 5}, {"d_vocab_out": 5}),
        ({"output_logits_soft_cap": 30.0, "attn_scores_soft_cap": -1.0}, {"output_logits_soft_cap": 30.0}),
        (LOCAL, {"attn_types": ("local", "global"), "window_size": 3}),
        ({"use_normalization_before_and_after": True, "normalization_type": "RMS"}, {"norm_places": "both"}),
        ({"normalization_type": "RMSPre"}, {"normalization_type": "RMSPre"}),
        ({"normalization_type": None}, {"normalization_type": None}),
    ],
)
def test_entries_are_said_in_our_words(entries: dict[str, Any], ours: dict[str, Any]) -> None:
    cfg = config_of_hooked(THEIRS | entries)
    assert {name: getattr(cfg, name) for name in ours} == ours


@pytest.mark.parametrize(
    ("entries", "ours"),
    [
        ({}, {"rotary_dim": 4, "rotary_scaling": None}),
        ({"rotary_dim": 2, "rotary_adjacent_pairs": True}, {"rotary_dim": 2, "rotary_adjacent_pairs": True}),
        ({"rotary_scaling_factor": 8.0}, {"rotary_scaling": RotaryScaling("linear", 8.0)}),
        (LOCAL | {"rotary_scaling_factor": 8.0}, {"rotary_base_local": 10000.0}),
        (NTK, {"rotary_scaling": RotaryScaling("llama3", 8.0, 16)}),
        (YARN, {"rotary_scaling": RotaryScaling("yarn", 4.0, 16, attention_factor=1.0)}),
        ({"use_qk_norm": True}, {"qk_norm": "head"}),
        ({"original_architecture": "Olmo2ForCausalLM"}, {"qk_norm": "width", "norm_places": "post"}),
    ],
)
def test_rotary_entries_are_said_in_our_words(entries: dict[str, Any], ours: dict[str, Any]) -> None:
    rotary = {"positional_embedding_type": "rotary", "normalization_type": "RMS"}
    cfg = config_of_hooked(THEIRS | rotary | entries)
    assert {name: getattr(cfg, name) for name in ours} == ours


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"n_layer": 2}, "unknown entry of a HookedTransformerConfig 'n_layer'.*closest: 'n_layers'"),
        ({"act_fn": "solu_ln"}, "act_fn='solu_ln'; the lab's own code computes relu"),
        ({"positional_embedding_type": "shortformer"}, "positional_embedding_type='shortformer'"),
        ({"final_rms": True}, "final_rms=True; the lab's own code computes final_rms=False only"),
        ({"num_experts": 8}, "num_experts=8"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"d_vocab": -1}, "d_vocab=-1; expected the size of the vocabulary"),
        ({"use_local_attn": True}, "use_local_attn=True needs attn_types and window_size"),
        ({"n_heads": 3, "n_key_value_heads": 2}, "n_heads=3 is not a multiple"),
        (
            LOCAL | NTK | {"positional_embedding_type": "rotary", "rotary_base_local": 50.0},
            "rotary_base_local=50.0 under scaled angles",
        ),
    ],
)
def test_what_the_lab_does_not_compute_is_refused_by_name(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        config_of_hooked(THEIRS | entries)


def test_a_config_without_sizes_says_which() -> None:
    with pytest.raises(LabError, match="lacks d_model, d_head, n_ctx"):
        config_of_hooked({"n_layers": 2})


# -- directories -------------------------------------------------------------------------------------------


def _directory(folder: Path, model: GPT, weights: str, **entries: Any) -> Path:
    """What `torch.save(model.state_dict())` and the JSON of `model.cfg.to_dict()` leave of a HookedTransformer."""
    (folder / "config.json").write_text(json.dumps(THEIRS | entries), encoding="utf-8")
    state = {name: tensor.clone().contiguous() for name, tensor in to_hooked(model).items()}
    state |= {f"blocks.{layer}.{name}": value for layer in range(2) for name, value in BUFFERS.items()}
    if weights.endswith(".safetensors"):
        save_file({name: tensor.clone() for name, tensor in state.items()}, folder / weights)
    else:
        torch.save(state, folder / weights)
    return folder


@pytest.mark.parametrize("weights", ["model.safetensors", "model.pth", "trained.pt"])
def test_a_directory_of_a_hooked_transformer_loads(tmp_path: Path, weights: str) -> None:
    model = random_model(TransformerConfig(**SIZES, unembed_bias=True), dtype=torch.float32)
    loaded = load(_directory(tmp_path, model, weights))
    assert torch.equal(loaded(TOKENS), model(TOKENS))
    assert all(parameter.requires_grad and parameter.is_contiguous() for parameter in loaded.parameters())
    assert load(tmp_path, dtype="bfloat16").dtype is torch.bfloat16


def test_a_processed_directory_loads(tmp_path: Path) -> None:
    model = random_model(TransformerConfig(**SIZES), dtype=torch.float32)
    processing.process_weights(model)
    loaded = load(_directory(tmp_path, model, "model.pth", normalization_type="LNPre"))
    assert torch.equal(loaded(TOKENS), model(TOKENS))


def test_a_directory_without_weights_or_with_two_says_so(tmp_path: Path) -> None:
    model = random_model(TransformerConfig(**SIZES), dtype=torch.float32)
    _directory(tmp_path, model, "first.pt")
    _directory(tmp_path, model, "second.pt")
    with pytest.raises(LabError, match=r"first\.pt, second\.pt"):
        load(tmp_path)
    (tmp_path / "first.pt").unlink()
    (tmp_path / "second.pt").unlink()
    with pytest.raises(LabError, match="no weights"):
        load(tmp_path)


def test_a_directory_whose_weights_do_not_fit_says_which(tmp_path: Path) -> None:
    model = random_model(TransformerConfig(**SIZES), dtype=torch.float32)
    with pytest.raises(LabError, match=r"'pos_embed.W_pos' has shape \[8, 16\]; the config makes it \[9, 16\]"):
        load(_directory(tmp_path, model, "model.pth", n_ctx=9))
    with pytest.raises(LabError, match=r"missing blocks\.2\.ln1\.w"):
        load(_directory(tmp_path, model, "model.pth", n_layers=3))


@pytest.mark.parametrize("entries", [{"d_head": "four"}, {"d_head": 0, "n_heads": -1}, {"attn_scale": "wide"}])
def test_a_config_of_nonsense_is_refused_in_words(tmp_path: Path, entries: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(THEIRS | entries), encoding="utf-8")
    with pytest.raises(LabError, match=r"config|d_head"):
        load(tmp_path)


def test_a_revision_of_one_version_is_refused(tmp_path: Path) -> None:
    model = random_model(TransformerConfig(**SIZES), dtype=torch.float32)
    with pytest.raises(LabError, match="has no revision 'step-400'"):
        load(_directory(tmp_path, model, "model.pth"), revision="step-400")


def test_a_pickle_that_runs_code_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(THEIRS), encoding="utf-8")
    torch.save({"model": rearrange}, tmp_path / "model.pth")
    with pytest.raises(LabError, match="a pickle runs code"):
        load(tmp_path)
