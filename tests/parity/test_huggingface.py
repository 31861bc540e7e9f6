"""Random tiny models that transformers builds and saves give, loaded here, what transformers computes.

Tolerances. float32: 1e-4 absolute, on activations up to 30, where one rounding is 2e-6 and each passes several sums
taken in another order (over 40 seeds the worst was 1.7e-5).
float64: 1e-10 for GPT-2; transformers computes Llama's norms and angles in float32 whatever the dtype, so Llama is
compared in float32 alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig
from transformers.utils import logging as transformers_logging

from models import GPT, load
from tests.strategies import SEEDS

N_CTX, D_VOCAB = 12, 29
transformers_logging.disable_progress_bar()
FLOAT32 = 1e-4


@st.composite
def gpt2_configs(draw: st.DrawFn) -> GPT2Config:
    n_head = draw(st.sampled_from([1, 2, 4]))
    return GPT2Config(
        vocab_size=D_VOCAB,
        n_positions=N_CTX,
        n_embd=n_head * draw(st.sampled_from([4, 6])),
        n_layer=draw(st.integers(1, 3)),
        n_head=n_head,
        n_inner=draw(st.sampled_from([None, 20])),
        activation_function=draw(st.sampled_from(["gelu_new", "gelu", "relu", "silu"])),
        layer_norm_epsilon=draw(st.sampled_from([1e-5, 1e-2])),
        tie_word_embeddings=draw(st.booleans()),
        bos_token_id=0,
        eos_token_id=0,
    )


@st.composite
def llama_configs(draw: st.DrawFn) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=D_VOCAB,
        max_position_embeddings=N_CTX,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=4,
        num_key_value_heads=draw(st.sampled_from([1, 2, 4])),
        head_dim=draw(st.sampled_from([4, 6])),
        hidden_act=draw(st.sampled_from(["silu", "gelu"])),
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-2])),
        rope_parameters={"rope_type": "default", "rope_theta": draw(st.sampled_from([10.0, 10000.0, 500000.0]))},
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
    )


CONFIGS = st.one_of(gpt2_configs(), llama_configs())
FEW = settings(max_examples=10)


def hugging_face_model(config: Any, seed: int, dtype: torch.dtype = torch.float32) -> Any:
    """A random model with gains, biases and attention far from their defaults."""
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_gain = name.endswith("weight") and parameter.ndim == 1
            parameter.copy_(float(is_gain) + 0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def loaded(theirs: Any, **saving: Any) -> GPT:
    """The model, saved by transformers and loaded by the lab."""
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory, **saving)
        return load(directory)


def random_tokens(seed: int, batch: int = 3, pos: int = N_CTX) -> Tensor:
    return torch.randint(D_VOCAB, (batch, pos), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def their_logits_and_residuals(theirs: Any, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the stream before each block and after the last (`hidden_states` has the last one normalised)."""
    final_norm = theirs.transformer.ln_f if hasattr(theirs, "transformer") else theirs.model.norm
    last: list[Tensor] = []
    handle = final_norm.register_forward_pre_hook(lambda module, args: last.append(args[0]))
    output = theirs(tokens, output_hidden_states=True, use_cache=False)
    handle.remove()
    return output.logits, [*output.hidden_states[:-1], last[0]]


def residual_names(model: GPT) -> list[str]:
    last = model.cfg.n_layers - 1
    return [*(f"blocks.{layer}.hook_resid_pre" for layer in range(last + 1)), f"blocks.{last}.hook_resid_post"]


def fused(model: GPT, tokens: Tensor, **inputs: Any) -> tuple[Tensor, list[Tensor]]:
    """Nothing is hooked but the stream, so attention is the fused kernel."""
    names = residual_names(model)
    logits, cache = model.run_with_cache(tokens, names_filter=names, **inputs)
    return logits, [cache[name] for name in names]


def explicit(model: GPT, tokens: Tensor, **inputs: Any) -> tuple[Tensor, list[Tensor]]:
    """Every point is hooked, so attention is the explicit softmax."""
    logits, cache = model.run_with_cache(tokens, **inputs)
    assert "blocks.0.attn.hook_pattern" in cache
    return logits, [cache[name] for name in residual_names(model)]


def assert_same(ours: tuple[Tensor, list[Tensor]], theirs: tuple[Tensor, list[Tensor]], atol: float) -> None:
    torch.testing.assert_close(ours[0], theirs[0], atol=atol, rtol=0.0)
    assert len(ours[1]) == len(theirs[1])
    for our_residual, their_residual in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(our_residual, their_residual, atol=atol, rtol=0.0)


PATHS = pytest.mark.parametrize("run", [fused, explicit])
Run = Callable[..., tuple[Tensor, list[Tensor]]]


@PATHS
@torch.no_grad()
@FEW
@given(config=CONFIGS, seed=SEEDS)
def test_logits_and_every_residual_are_those_of_transformers(run: Run, config: Any, seed: int) -> None:
    theirs, tokens = hugging_face_model(config, seed), random_tokens(seed)
    assert_same(run(loaded(theirs), tokens), their_logits_and_residuals(theirs, tokens), atol=FLOAT32)


@PATHS
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
@FEW
@given(config=CONFIGS, seed=SEEDS)
def test_a_padded_batch_gives_each_prompt_what_transformers_gives_it_alone(
    run: Run, side: str, config: Any, seed: int
) -> None:
    theirs, tokens = hugging_face_model(config, seed), random_tokens(seed)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, length in enumerate((N_CTX, 5, 1)):
        mask[row, slice(-length, None) if side == "left" else slice(length)] = True
    logits, residuals = run(loaded(theirs), tokens, attention_mask=mask)
    for row, real in enumerate(mask):
        ours = (logits[row, real], [residual[row, real] for residual in residuals])
        alone, residuals_alone = their_logits_and_residuals(theirs, tokens[row, real][None])
        assert_same(ours, (alone[0], [residual[0] for residual in residuals_alone]), atol=FLOAT32)


@PATHS
@torch.no_grad()
@settings(max_examples=5)
@given(config=gpt2_configs(), seed=SEEDS)
def test_in_float64_gpt2_agrees_to_rounding(run: Run, config: GPT2Config, seed: int) -> None:
    theirs, tokens = hugging_face_model(config, seed, torch.float64), random_tokens(seed)
    ours = loaded(theirs)
    assert ours.dtype == torch.float64
    assert_same(run(ours, tokens), their_logits_and_residuals(theirs, tokens), atol=1e-10)


@torch.no_grad()
@settings(max_examples=6)
@given(config=CONFIGS, seed=SEEDS)
def test_a_sharded_checkpoint_is_the_same_model(config: Any, seed: int) -> None:
    theirs = hugging_face_model(config, seed)
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory, max_shard_size="1KB")
        assert len(list(Path(directory).glob("model-*.safetensors"))) > 1
        sharded = load(directory)
    whole = loaded(theirs).state_dict()
    assert all(torch.equal(weight, whole[name]) for name, weight in sharded.state_dict().items())


@torch.no_grad()
@FEW
@given(config=CONFIGS, seed=SEEDS)
def test_what_is_exported_transformers_loads_with_equal_logits(config: Any, seed: int) -> None:
    theirs, tokens = hugging_face_model(config, seed), random_tokens(seed)
    ours = loaded(theirs)
    with tempfile.TemporaryDirectory() as directory:
        ours.export(Path(directory) / "exported")
        back = AutoModelForCausalLM.from_pretrained(Path(directory) / "exported").eval()
        again = load(Path(directory) / "exported")
    assert type(back) is type(theirs)
    original = theirs.state_dict()
    assert all(torch.equal(weight, original[name]) for name, weight in back.state_dict().items())
    assert torch.equal(back(tokens).logits, theirs(tokens).logits)
    assert torch.equal(again(tokens), ours(tokens))


@torch.no_grad()
def test_the_random_models_attend_unevenly() -> None:
    """A flat pattern would hide errors in queries, keys and positions from every test here."""
    for config in (
        GPT2Config(vocab_size=D_VOCAB, n_positions=N_CTX, n_embd=16, n_layer=2, n_head=4,
                   bos_token_id=0, eos_token_id=0),
        LlamaConfig(vocab_size=D_VOCAB, max_position_embeddings=N_CTX, hidden_size=16, intermediate_size=20,
                    num_hidden_layers=2, num_attention_heads=4),
    ):  # fmt: skip
        model = loaded(hugging_face_model(config, seed=0))
        _, cache = model.run_with_cache(random_tokens(0), names_filter="blocks.*.attn.hook_pattern")
        last_query = torch.stack([cache["pattern", layer][:, :, -1] for layer in range(2)])
        assert last_query.amax(-1).mean() > 2 / N_CTX
