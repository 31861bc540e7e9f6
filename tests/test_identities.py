"""Identities that hold for every model, on random ones of random configs.

Float64 throughout. What is compared is computed by different routes (fused or explicit attention, padded or not), so
it agrees to rounding: TOLERANCE is relative to the largest number, and these models amplify rounding little.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from analyses import (
    activation_patching,
    component_lens,
    head_attribution,
    logit_lens,
    neuron_attribution,
    source_attribution,
)
from interp import PromptPairs, edits, metrics, sweep
from interp.sites import KINDS, Site
from models import GPT
from tests.pairs import pairs
from tests.strategies import ADDITIVE, models, token_batches

TOLERANCE = 1e-9

DIRECTIONS = st.sampled_from(["denoise", "noise"])
# Sets of activations that together make up a run: with all of them patched nothing of the other run is left.
CUTS = (
    ("embed", "pos_embed"),
    ("embed", "pos_embed", "attn_out", "mlp_out"),
    ("embed", "pos_embed", "z", "mlp_post"),
    ("embed", "pos_embed", "result", "mlp_pre", "mlp_pre_linear"),
    ("embed", "pos_embed", "q", "k", "v", "mlp_in"),
    ("embed", "pos_embed", "pattern", "v", "mlp_out"),
    ("resid_pre",),
    ("resid_post",),
    ("unembed.in",),
)


def close(found: Any, expected: Any) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * scale)


def every_site(model: GPT, kinds: tuple[str, ...]) -> list[Site]:
    """All sites of the kinds that the model has, in all layers."""
    sites = [
        Site(kind, layer)
        for kind in kinds
        for layer in (range(model.cfg.n_layers) if KINDS[kind].per_layer else [None])
    ]
    return [site for site in sites if site.hook_name in model.hook_dict]


def cached(model: GPT, pairs: PromptPairs, sites: list[Site]) -> Any:
    _, cache = model.run_with_cache(
        pairs.clean, attention_mask=pairs.mask, names_filter=[site.hook_name for site in sites]
    )
    return cache


def logits_at_the_end(logits: torch.Tensor, pairs: PromptPairs) -> torch.Tensor:
    """A metric that hides nothing: a random but fixed mix of all logits at the last position."""
    mix = torch.linspace(-1, 1, logits.shape[-1], dtype=logits.dtype)
    return logits[torch.arange(len(pairs)), pairs.last] @ mix


@given(models(), pairs(), st.sampled_from(CUTS), DIRECTIONS)
def test_patching_everything_gives_the_other_run(
    model: GPT, pairs: PromptPairs, kinds: tuple[str, ...], direction: str
) -> None:
    target, base = (pairs, pairs.swapped()) if direction == "denoise" else (pairs.swapped(), pairs)
    sites = every_site(model, kinds)
    source = cached(model, target, sites)
    values = sweep.run(model, base, [[edits.replace(site, source) for site in sites]], logits_at_the_end).values
    expected = logits_at_the_end(model(target.clean, attention_mask=target.mask), target)
    close(values[0], expected.detach())


@given(models(), pairs(), st.sampled_from(CUTS))
def test_patching_a_run_with_itself_changes_nothing(model: GPT, pairs: PromptPairs, kinds: tuple[str, ...]) -> None:
    sites = every_site(model, kinds)
    source = cached(model, pairs, sites)
    rows = [[], *([edits.replace(site, source)] for site in sites), [edits.replace(site, source) for site in sites]]
    found = sweep.run(model, pairs, rows, logits_at_the_end)
    close(found.values, np.broadcast_to(found.base, found.values.shape))


@given(models(), pairs(), DIRECTIONS)
def test_patching_a_whole_residual_stream_gives_the_other_baseline(
    model: GPT, pairs: PromptPairs, direction: str
) -> None:
    result = activation_patching(model, pairs, "resid_pre", logits_at_the_end, direction, normalize=False, by=["layer"])
    other = result.clean if direction == "denoise" else result.corrupted
    close(result.raw, np.broadcast_to(other, result.raw.shape))
    close(result.values, np.full(model.cfg.n_layers, other.mean()))


@given(models(), pairs(), DIRECTIONS)
def test_normalised_a_whole_stream_is_one_when_denoised_and_zero_when_noised(
    model: GPT, pairs: PromptPairs, direction: str
) -> None:
    result = activation_patching(model, pairs, "resid_post", logits_at_the_end, direction, normalize=False, by="layer")
    assume(abs(result.clean.mean() - result.corrupted.mean()) > 0.1)
    result = activation_patching(model, pairs, "resid_post", logits_at_the_end, direction, by="layer")
    assert result.normalized
    np.testing.assert_allclose(result.values, float(direction == "denoise"), atol=1e-7)


@given(models(), pairs())
def test_equal_prompts_leave_nothing_to_patch(model: GPT, pairs: PromptPairs) -> None:
    same = PromptPairs(pairs.clean, pairs.clean, pairs.mask, pairs.right, pairs.wrong)
    with pytest.warns(UserWarning, match="not normalised"):
        result = activation_patching(model, same, "z")
    close(result.raw, np.broadcast_to(result.clean, result.raw.shape))


@given(models(), pairs())
def test_positions_before_the_first_difference_have_no_effect(model: GPT, pairs: PromptPairs) -> None:
    corrupted = pairs.clean.clone()
    corrupted[torch.arange(len(pairs)), pairs.last] = pairs.corrupted[torch.arange(len(pairs)), pairs.last]
    pairs = PromptPairs(pairs.clean, corrupted, pairs.mask, pairs.right, pairs.wrong)
    result = activation_patching(model, pairs, "resid_pre", logits_at_the_end, normalize=False)
    for prompt, last in enumerate(pairs.last.tolist()):
        elsewhere = np.delete(result.raw[..., prompt], last, axis=1)
        close(elsewhere, np.full(elsewhere.shape, result.corrupted[prompt]))
        close(result.raw[0, last, prompt], result.clean[prompt])


@given(models(), token_batches(max_batch=1))
def test_the_last_lens_row_is_the_logits(model: GPT, tokens: torch.Tensor) -> None:
    lens = logit_lens(model, tokens)
    close(lens.logits[-1], model(tokens)[0].detach())
    close(lens.kl[-1], np.zeros(tokens.shape[1]))


@given(models(**ADDITIVE), token_batches(max_batch=1))
def test_the_components_shares_sum_to_the_logits(model: GPT, tokens: torch.Tensor) -> None:
    """What no component lens holds is computed here: embeddings and biases, through the norm as it was."""
    logits, cache = model.run_with_cache(tokens)
    shares = component_lens(model, tokens).logits.sum(0)
    heads = component_lens(model, tokens, "result").logits.sum(0)
    rest = cache["hook_embed"][0].clone()
    if "hook_pos_embed" in cache:
        rest += cache["hook_pos_embed"][0]
    if not model.cfg.attn_only:
        shares = shares + component_lens(model, tokens, "mlp_out").logits.sum(0)
    with torch.no_grad():
        embeddings = through_the_final_norm(model, cache, rest) @ model.W_U
        b_O = sum(bias_in_the_stream(model, cache, layer, "attn") for layer in range(model.cfg.n_layers))
        b_O = b_O.expand(1, *rest.shape)[0]
        output_biases = through_the_final_norm(model, cache, b_O) @ model.W_U
        constant = getattr(model.ln_final, "b", torch.zeros(model.cfg.d_model, dtype=torch.float64)) @ model.W_U
        close(shares + (embeddings + constant + model.b_U).numpy(), logits[0])
        close(component_lens(model, tokens).logits.sum(0), heads + output_biases.numpy())


def bias_in_the_stream(model: GPT, cache: Any, layer: int, part: str) -> Any:
    """What an output bias adds to the streams [batch pos d_model] or, where no norm comes after it, [d_model]."""
    block = model.blocks[layer]
    bias, name = (block.attn.b_O, "ln1_post") if part == "attn" else (block.mlp.b_out, "ln2_post")
    if model.cfg.norm_places == "pre" or model.cfg.normalization_type is None:
        return bias
    if model.cfg.normalization_type == "LN":
        bias = bias - bias.mean()
    norm = getattr(block, name)
    return bias / cache[f"blocks.{layer}.{name}.hook_scale"] * norm.gain + getattr(norm, "b", 0.0)


def through_the_final_norm(model: GPT, cache: Any, vectors: torch.Tensor) -> torch.Tensor:
    """[pos d_model] through the final norm as the linear map that it was, without its bias."""
    if model.cfg.normalization_type is None:
        return vectors
    if model.cfg.normalization_type == "LN":
        vectors = vectors - vectors.mean(-1, keepdim=True)
    return vectors / cache["ln_final.hook_scale"][0] * model.ln_final.gain


@given(models(**ADDITIVE), pairs())
def test_attributed_parts_sum_to_the_logit_difference(model: GPT, pairs: PromptPairs) -> None:
    result = head_attribution(model, pairs)
    measured = metrics.logit_diff(model(pairs.clean, attention_mask=pairs.mask), pairs).detach()
    close(result.logit_diff, measured)
    close(result.total(), measured.mean())
    close(result.values, result.by_prompt.mean(-1))


@given(models(**ADDITIVE), pairs())
def test_source_positions_sum_to_the_heads(model: GPT, pairs: PromptPairs) -> None:
    close(source_attribution(model, pairs).values.sum(-1), head_attribution(model, pairs).values)


@given(models(**ADDITIVE), pairs())
def test_padding_brings_no_head_anything(model: GPT, pairs: PromptPairs) -> None:
    values = source_attribution(model, pairs).values
    unread = ~pairs.mask.any(0).numpy()
    close(values[..., unread], np.zeros_like(values[..., unread]))


@given(models(attn_only=False, **ADDITIVE), pairs())
def test_neurons_sum_to_the_mlps_without_their_biases(model: GPT, pairs: PromptPairs) -> None:
    result = head_attribution(model, pairs)
    _, cache = model.run_with_cache(pairs.clean, attention_mask=pairs.mask, names_filter=lambda n: "scale" in n)
    with torch.no_grad():
        layers = range(model.cfg.n_layers)
        biases = [bias_share(model, cache, pairs, bias_in_the_stream(model, cache, n, "mlp")) for n in layers]
    close(neuron_attribution(model, pairs).values.sum(-1), result.mlp - np.array(biases))


def bias_share(model: GPT, cache: Any, pairs: PromptPairs, bias: torch.Tensor) -> float:
    """A bias's share of the mean logit difference, prompt by prompt and answer by answer."""
    shares = []
    for prompt, last in enumerate(pairs.last.tolist()):
        vector = bias if bias.ndim == 1 else bias[prompt, last]
        if model.cfg.normalization_type == "LN":
            vector = vector - vector.mean()
        if model.cfg.normalization_type is not None:
            vector = vector / cache["ln_final.hook_scale"][prompt, last] * model.ln_final.gain
        logits = vector @ model.W_U
        right, wrong = (ids[prompt][ids[prompt] >= 0] for ids in (pairs.right, pairs.wrong))
        shares.append(float(logits[right].mean() - logits[wrong].mean()))
    return float(np.mean(shares))
