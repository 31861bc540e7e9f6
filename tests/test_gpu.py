"""The main paths on a GPU, in float32 and bfloat16, against the same model in float32 on the CPU.

TOLERANCES are relative to the largest number compared. float32: the kernels add in another order (about 1e-6 an
addition); bfloat16 keeps 8 bits, so each of the dozen roundings along the stream is off by up to 0.4 %.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from analyses import (
    activation_patching,
    add_direction,
    causal_trace,
    circuit_eigenvalues,
    component_lens,
    copying_scores,
    direction_ablation,
    generate_with,
    head_attribution,
    head_composition,
    head_roles,
    head_scores,
    logit_lens,
    neuron_attribution,
    singular_directions,
    source_attribution,
    steering_effect,
    steering_vectors,
)
from analyses.patching import patching_plan
from interp import PromptPairs, Site, edits, metrics, sweep
from models import GPT, TransformerConfig
from tests.pairs import random_pairs
from tests.sweeps import least_budget

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.06}

SIZES: dict[str, Any] = {
    "n_layers": 3, "n_heads": 4, "d_model": 64, "d_vocab": 101, "n_ctx": 32, "init_range": 0.15, "seed": 0
}  # fmt: skip
CONFIGS = {
    "gpt2-like": TransformerConfig(**SIZES),
    "llama-like": TransformerConfig(
        **SIZES,
        n_key_value_heads=2,
        gated_mlp=True,
        act_fn="silu",
        normalization_type="RMS",
        positional_embedding_type="rotary",
        attn_bias=False,
        mlp_bias=False,
    ),
}


@pytest.fixture(params=CONFIGS, scope="module")
def on_cpu(request: pytest.FixtureRequest) -> GPT:
    return GPT(CONFIGS[request.param])


@pytest.fixture(params=TOLERANCES, ids=str, scope="module")
def on_gpu(request: pytest.FixtureRequest, on_cpu: GPT) -> GPT:
    return copy.deepcopy(on_cpu).to(device=DEVICE, dtype=request.param)


@pytest.fixture(params=["left", "right"], scope="module")
def pairs(request: pytest.FixtureRequest) -> PromptPairs:
    """Kept on the CPU: an analysis brings them to the model."""
    return random_pairs(3, (9, 5, 12), request.param, d_vocab=101)


def assert_close(found: Any, expected: Any, dtype: torch.dtype, scale: float = 1e-3) -> None:
    """scale: what the tolerance is relative to, when that is more than the largest number expected."""
    found, expected = (
        x.detach().float().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x) for x in (found, expected)
    )
    scale = max(scale, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCES[dtype] * scale)


@torch.no_grad()
def test_logits_and_loss(on_cpu: GPT, on_gpu: GPT, pairs: PromptPairs) -> None:
    mask = pairs.mask.to(DEVICE)
    logits, loss = on_gpu(pairs.clean.to(DEVICE), attention_mask=mask, return_type="both")
    expected, expected_loss = on_cpu(pairs.clean, attention_mask=pairs.mask, return_type="both")
    assert logits.device.type == torch.device(DEVICE).type
    assert logits.dtype == on_gpu.dtype
    assert_close(logits[mask], expected[pairs.mask], on_gpu.dtype)
    assert_close(loss, expected_loss, on_gpu.dtype)


@torch.no_grad()
def test_every_activation_and_its_copy_on_the_cpu(on_cpu: GPT, on_gpu: GPT) -> None:
    tokens = random_pairs(1, (12, 12), d_vocab=101).clean
    _, expected = on_cpu.run_with_cache(tokens, names_filter=lambda name: True)
    _, stayed = on_gpu.run_with_cache(tokens.to(DEVICE), names_filter=lambda name: True)
    _, copied = on_gpu.run_with_cache(tokens.to(DEVICE), names_filter=lambda name: True, device="cpu")
    assert set(copied) == set(stayed) == set(expected)
    for name in expected:
        assert copied[name].device.type == "cpu"
        assert torch.equal(copied[name], stayed[name].cpu()), name
        if "scores" not in name:  # masked scores hold the lowest number
            assert_close(copied[name], expected[name], on_gpu.dtype)


@torch.no_grad()
def test_fused_and_explicit_attention_agree(on_gpu: GPT, pairs: PromptPairs) -> None:
    tokens, mask = pairs.clean.to(DEVICE), pairs.mask.to(DEVICE)
    explicit = on_gpu.run_with_cache(tokens, attention_mask=mask, names_filter="*hook_pattern")[0]
    assert_close(on_gpu(tokens, attention_mask=mask)[mask], explicit[mask], on_gpu.dtype)


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern", "result"])
def test_patching(on_cpu: GPT, on_gpu: GPT, pairs: PromptPairs, site: str) -> None:
    found, expected = (activation_patching(model, pairs, site, normalize=False) for model in (on_gpu, on_cpu))
    for name in ("raw", "clean", "corrupted"):
        assert_close(getattr(found, name), getattr(expected, name), on_gpu.dtype)


@pytest.mark.parametrize("metric", ["prob", "log_prob", "kl", "cross_entropy"])
def test_metrics(on_cpu: GPT, on_gpu: GPT, pairs: PromptPairs, metric: str) -> None:
    found, expected = (
        activation_patching(model, pairs, "resid_pre", metric, normalize=False, by="layer")
        for model in (on_gpu, on_cpu)
    )
    assert_close(found.raw, expected.raw, on_gpu.dtype)
    assert_close(found.corrupted, expected.corrupted, on_gpu.dtype)


def test_the_budget_changes_nothing(on_gpu: GPT, pairs: PromptPairs) -> None:
    least = least_budget(lambda budget: patching_plan(on_gpu, pairs, "z", budget=budget))
    whole, split = (activation_patching(on_gpu, pairs, "z", normalize=False, budget=n) for n in (None, least))
    assert_close(split.raw, whole.raw, on_gpu.dtype)


def test_values_cached_on_the_cpu_can_be_patched_in(on_gpu: GPT, pairs: PromptPairs) -> None:
    site = Site("resid_mid", 1, pos=-1)
    tokens, mask = pairs.corrupted.to(DEVICE), pairs.mask.to(DEVICE)
    stayed, copied = (
        on_gpu.run_with_cache(tokens, attention_mask=mask, names_filter=site.hook_name, device=device)[1]
        for device in (None, "cpu")
    )
    rows = [
        [make(site, cache)]
        for cache in (stayed, copied)
        for make in (edits.replace, edits.mean, lambda s, c: edits.resample(s, c, torch.tensor([2, 0, 1])))
    ]
    values = sweep.run(on_gpu, pairs, rows, metrics.logit_diff).values
    assert np.array_equal(values[:3], values[3:])


def test_lenses(on_cpu: GPT, on_gpu: GPT) -> None:
    tokens = random_pairs(1, (12,), d_vocab=101).clean
    found, expected = (logit_lens(model, tokens) for model in (on_gpu, on_cpu))
    for name in ("logits", "entropy"):
        assert_close(getattr(found, name), getattr(expected, name), on_gpu.dtype)
    for component in ("attn_out", "mlp_out", "result"):
        found, expected = (component_lens(model, tokens, component) for model in (on_gpu, on_cpu))
        assert_close(found.logits, expected.logits, on_gpu.dtype)


def test_attribution(on_cpu: GPT, on_gpu: GPT, pairs: PromptPairs) -> None:
    found, expected = (head_attribution(model, pairs) for model in (on_gpu, on_cpu))
    # Shares of one stream are rounded with the stream, so the tolerance is relative to the largest of them.
    scale = float(max(np.abs(part).max() for part in (expected.by_prompt, expected.mlp, expected.other)))
    for name in ("by_prompt", "mlp", "other", "logit_diff"):
        assert_close(getattr(found, name), getattr(expected, name), on_gpu.dtype, scale)
    assert_close(found.total(), found.logit_diff.mean(), on_gpu.dtype, scale)
    for analyse in (neuron_attribution, source_attribution):
        assert_close(analyse(on_gpu, pairs).values, analyse(on_cpu, pairs).values, on_gpu.dtype, scale)


def test_head_scores(on_cpu: GPT, on_gpu: GPT) -> None:
    assert_close(head_scores(on_gpu, n=4).values, head_scores(on_cpu, n=4).values, on_gpu.dtype)


@torch.no_grad()
def test_generation_takes_the_likeliest_token(on_cpu: GPT, on_gpu: GPT) -> None:
    """Up to the tolerance: between two tokens that are nearly alike, rounding may choose."""
    from models.generation import generate

    pairs = random_pairs(3, (9, 5, 12), "left", d_vocab=101)
    written = generate(
        on_gpu, pairs.clean.to(DEVICE), 8, temperature=0, stop_tokens=(), attention_mask=pairs.mask.to(DEVICE)
    ).cpu()
    mask = torch.cat([pairs.mask, torch.ones(3, 8, dtype=torch.bool)], 1)
    logits = on_cpu(written, attention_mask=mask)[:, 11:-1]
    chosen = logits.gather(-1, written[:, 12:, None])[..., 0]
    assert_close(chosen, logits.amax(-1), on_gpu.dtype)


def test_sampling_with_a_seed_repeats_itself(on_gpu: GPT) -> None:
    from models.generation import generate

    prompt = torch.tensor([[1, 2, 3]], device=DEVICE)
    assert torch.equal(generate(on_gpu, prompt, 8, seed=1), generate(on_gpu, prompt, 8, seed=1))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training(on_cpu: GPT, precision: Any) -> None:
    """Five steps of AdamW on one batch; weights stay in float32, the products are in `precision`."""
    from models.batches import Batch
    from models.training import TrainingConfig, train

    class OneBatch:
        def batch(self, step: int) -> Batch:
            return Batch(torch.arange(4)[:, None] + torch.arange(16))

    logs = []
    for device, given in (("cpu", "float32"), (DEVICE, precision)):
        model = copy.deepcopy(on_cpu).to(device)
        logs.append(train(model, OneBatch(), TrainingConfig(5, log_every=1, precision=given), progress=False))
    expected, found = ([record["loss"] for record in log if "loss" in record] for log in logs)
    assert len(found) == 5
    assert found[-1] < found[0]
    assert_close(found, expected, torch.float32 if precision == "float32" else torch.bfloat16)


def test_circuits_read_off_the_weights(on_cpu: GPT, on_gpu: GPT) -> None:
    for analysis in (circuit_eigenvalues, head_composition):
        here, there = analysis(on_cpu).values, analysis(on_gpu).values
        assert_close(np.nan_to_num(there), np.nan_to_num(here), on_gpu.dtype, scale=1.0)
    here, there = (singular_directions(model, "OV", 1, 2).values for model in (on_cpu, on_gpu))
    assert_close(there, here, on_gpu.dtype)
    assert copying_scores(on_gpu).values.shape == copying_scores(on_cpu).values.shape


def test_tracing_and_steering(on_cpu: GPT, on_gpu: GPT, pairs: PromptPairs) -> None:
    for settings in ({}, {"corruption": "noise", "noise": 0.1, "draws": 2}):
        here, there = (causal_trace(model, pairs, normalize=False, **settings) for model in (on_cpu, on_gpu))
        assert_close(there.raw, here.raw, on_gpu.dtype, scale=1.0)
    vectors = steering_vectors(on_cpu, pairs)
    assert_close(steering_vectors(on_gpu, pairs).values, vectors.values, on_gpu.dtype)
    here, there = (steering_effect(model, pairs, vectors.vector(1), 1) for model in (on_cpu, on_gpu))
    assert_close(there.raw, here.raw, on_gpu.dtype, scale=1.0)
    here, there = (direction_ablation(model, pairs, vectors.vector(1)[None]) for model in (on_cpu, on_gpu))
    assert_close(there.raw, here.raw, on_gpu.dtype, scale=1.0)
    generate_with(on_gpu, add_direction(vectors.vector(1), 1), torch.tensor([[1, 2, 3]]), 3, 0.0)


def test_roles_of_heads(on_cpu: GPT, on_gpu: GPT, pairs: PromptPairs) -> None:
    here, there = (head_roles(model, pairs) for model in (on_cpu, on_gpu))
    for name in ("previous token", "induction", "looks"):
        assert_close(there.evidence(name), here.evidence(name), on_gpu.dtype, scale=1.0)
