"""One side of an encoder-decoder given the other: analyses find there what a plain loop of hooks on the model finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from analyses import (
    activation_patching,
    attention_patterns,
    compare,
    cross_attention_patterns,
    head_attribution,
    head_scores,
    logit_lens,
)
from interp import PromptPairs, Site
from interp.contract import HookedModel
from interp.errors import LabError
from interp.graph import Graph
from models.encoder_decoder import EncoderDecoder
from models.tokenizers import characters
from tests.models.test_encoder_decoder import D_VOCAB, models, small, tokens

EXACT = 1e-10  # float64, and the same sums in another order

ENCODER = {
    "resid_pre": "encoder.{}.hook_resid_pre",
    "z": "encoder.{}.attn.hook_z",
    "mlp_out": "encoder.{}.hook_mlp_out",
    "cross_k": "decoder.{}.cross_attn.hook_k",
    "cross_v": "decoder.{}.cross_attn.hook_v",
    "cross_z": "decoder.{}.cross_attn.hook_z",
    "cross_attn_out": "decoder.{}.hook_cross_attn_out",
}
DECODER = {
    "resid_pre": "decoder.{}.hook_resid_pre",
    "v": "decoder.{}.attn.hook_v",
    "resid_mid": "decoder.{}.hook_resid_mid",
    "cross_z": "decoder.{}.cross_attn.hook_z",
    "cross_attn_out": "decoder.{}.hook_cross_attn_out",
}


def pairs_of(clean: Tensor, corrupted: Tensor) -> PromptPairs:
    ids = torch.arange(len(clean)) % D_VOCAB
    return PromptPairs.from_tokens(clean, corrupted, ids, (ids + 1) % D_VOCAB)


def naive(model: EncoderDecoder, name: str, index: tuple[Any, ...], clean: Any, corrupted: Any, pairs: Any) -> float:
    """The corrupted run with one part of the clean run's activation, by a hook on the model itself."""
    _, cache = model.run_with_cache(*clean, names_filter=name)

    def patch(activation: Tensor, hook: Any) -> Tensor:
        patched = activation.clone()
        patched[index] = cache[name][index]
        return patched

    last = model.run_with_hooks(*corrupted, fwd_hooks=[(name, patch)])[:, -1]
    rows = torch.arange(len(last))
    return float((last[rows, pairs.right[:, 0]] - last[rows, pairs.wrong[:, 0]]).mean())


@torch.no_grad()
@settings(max_examples=6)
@given(model=models(), sources=tokens(4), target=tokens(1), site=st.sampled_from(sorted(ENCODER)))
def test_patching_the_encoder_is_the_naive_loop_on_the_whole_model(
    model: EncoderDecoder, sources: Tensor, target: Tensor, site: str
) -> None:
    """Where the source crosses into the decoder: each layer and head or position, against a hook on the model."""
    clean, corrupted = sources[:2], sources[2:]
    pairs = pairs_of(clean, corrupted)
    found = activation_patching(model.encoder_given(target[0]), pairs, site=site, normalize=False)
    both = target.expand(2, -1)
    layers = len(model.decoder if site.startswith("cross") else model.encoder)
    assert found.values.shape[0] == layers
    for layer, place in np.ndindex(*found.values.shape):
        index = (slice(None), slice(None), place) if "head" in found.axes else (slice(None), place)
        name = ENCODER[site].format(layer)
        expected = naive(model, name, index, (clean, both), (corrupted, both), pairs)
        assert found.values[layer, place] == pytest.approx(expected, abs=EXACT)


@torch.no_grad()
@settings(max_examples=6)
@given(model=models(), source=tokens(1), targets=tokens(4), site=st.sampled_from(sorted(DECODER)))
def test_patching_the_decoder_is_the_naive_loop_on_the_whole_model(
    model: EncoderDecoder, source: Tensor, targets: Tensor, site: str
) -> None:
    clean, corrupted = targets[:2], targets[2:]
    pairs = pairs_of(clean, corrupted)
    found = activation_patching(model.decoder_given(source[0]), pairs, site=site, normalize=False)
    both = source.expand(2, -1)
    for layer, place in np.ndindex(*found.values.shape):
        index = (slice(None), slice(None), place) if "head" in found.axes else (slice(None), place)
        name = DECODER[site].format(layer)
        expected = naive(model, name, index, (both, clean), (both, corrupted), pairs)
        assert found.values[layer, place] == pytest.approx(expected, abs=EXACT)


@torch.no_grad()
@given(model=models(), source=tokens(1), target=tokens(1))
def test_the_views_give_the_models_own_logits(model: EncoderDecoder, source: Tensor, target: Tensor) -> None:
    expected = model(source, target)
    decoder, encoder = model.decoder_given(source), model.encoder_given(target)
    torch.testing.assert_close(decoder(target), expected, atol=EXACT, rtol=0.0)
    torch.testing.assert_close(encoder(source)[:, -1], expected[:, -1], atol=EXACT, rtol=0.0)
    assert encoder(source)[:, :-1].isnan().all()  # a source predicts none of its own tokens
    assert isinstance(decoder, HookedModel)
    assert isinstance(encoder, HookedModel)


@torch.no_grad()
@given(model=models(), source=tokens(1), target=tokens(1))
def test_the_last_row_of_the_decoders_lens_is_its_logits(model: EncoderDecoder, source: Tensor, target: Tensor) -> None:
    found = logit_lens(model.decoder_given(source), target)
    np.testing.assert_allclose(found.logits[-1], model(source, target)[0], atol=EXACT, rtol=0.0)


@torch.no_grad()
@settings(max_examples=5)
@given(model=models(), source=tokens(1), target=tokens(1))
def test_patterns_are_those_of_the_whole_run(model: EncoderDecoder, source: Tensor, target: Tensor) -> None:
    _, cache = model.run_with_cache(source, target)
    decoder = model.decoder_given(source)
    views = {
        "decoder.{}.attn.hook_pattern": attention_patterns(decoder, target),
        "decoder.{}.cross_attn.hook_pattern": cross_attention_patterns(decoder, target),
        "encoder.{}.attn.hook_pattern": attention_patterns(model.encoder_given(target), source),
    }
    for name, found in views.items():
        for (layer, head), pattern in zip(found.heads, found.values, strict=True):
            expected = cache[name.format(layer)][0, head].float()
            np.testing.assert_allclose(pattern, expected, atol=1e-6, rtol=0.0)  # kept in float32


def test_padded_sources_are_answered_at_their_last_real_token() -> None:
    model = EncoderDecoder(small())
    view, rows = model.encoder_given(torch.tensor([0, 3])), torch.tensor([[1, 2, 3], [4, 5, 0]])
    logits = view(rows, attention_mask=torch.tensor([[True, True, True], [True, True, False]]))
    alone = model(torch.tensor([[4, 5]]), torch.tensor([[0, 3]]))
    torch.testing.assert_close(logits[1, 1], alone[0, -1], atol=1e-5, rtol=0.0)
    assert logits[1, 2].isnan().all()


def test_a_hook_is_told_the_name_that_its_point_has_in_the_view() -> None:
    model = EncoderDecoder(small(n_decoder_layers=2))
    told: list[str] = []
    view = model.decoder_given(torch.tensor([1, 2]))
    view.run_with_hooks(
        torch.tensor([[0, 3]]),
        fwd_hooks=[(lambda name: name.endswith("hook_z"), lambda z, hook: told.append(hook.name))],
    )
    assert told == [f"blocks.{layer}.{attn}.hook_z" for layer in (0, 1) for attn in ("attn", "cross_attn")]
    assert {name: point.name for name, point in model.hook_dict.items()} == {name: name for name in model.hook_dict}
    assert not any(point.has_hooks() for point in model.hook_dict.values())


def test_the_norm_before_the_mlp_is_ln2_in_a_view_as_everywhere() -> None:
    model = EncoderDecoder(small())
    view = model.decoder_given(torch.tensor([1, 2]))
    assert view.hook_dict["blocks.0.ln2.hook_scale"] is model.hook_dict["decoder.0.ln3.hook_scale"]
    assert view.hook_dict["blocks.0.ln_cross.hook_scale"] is model.hook_dict["decoder.0.ln2.hook_scale"]
    assert view.blocks[0].ln2 is model.decoder[0].ln3


def test_two_models_are_compared_by_their_decoders() -> None:
    first, second = EncoderDecoder(small()), EncoderDecoder(small(seed=1))
    source, target = torch.tensor([1, 2, 3]), torch.tensor([[0, 4, 5, 6]])
    same = compare(first.decoder_given(source), first.decoder_given(source), target)
    other = compare(first.decoder_given(source), second.decoder_given(source), target)
    assert same.first_difference() is None
    assert other.first_difference() is not None


def test_head_scores_are_of_the_sides_own_attention() -> None:
    model = EncoderDecoder(small(n_layers=2, n_decoder_layers=1))
    assert head_scores(model.decoder_given(torch.tensor([1, 2]))).previous.shape == (1, 2)
    assert head_scores(model.encoder_given(torch.tensor([0]))).previous.shape == (2, 2)


def undefined() -> dict[str, tuple[Any, str]]:
    model = EncoderDecoder(small())
    decoder, encoder = model.decoder_given(torch.tensor([1, 2])), model.encoder_given(torch.tensor([0]))
    pairs = pairs_of(torch.tensor([[1, 2, 3]]), torch.tensor([[1, 5, 3]]))
    return {
        "shares of the decoder's stream": (lambda: head_attribution(decoder, pairs), "cross-attention writes to the"),
        "a circuit of the decoder": (lambda: Graph.of(decoder), "cross-attention writes to the stream too"),
        "shares of the encoder's stream": (lambda: head_attribution(encoder, pairs), "through the decoder's attention"),
        "a circuit of the encoder": (lambda: Graph.of(encoder), "through the decoder's attention alone"),
        "a lens on the encoder": (lambda: logit_lens(encoder, torch.tensor([1, 2])), "no logits of its own"),
        "a loss of sources": (lambda: encoder(torch.tensor([[1, 2]]), "loss"), "predicts none of its tokens"),
        "a source of no decoder": (lambda: cross_attention_patterns(encoder, torch.tensor([1])), "is no decoder"),
        "the whole model patched": (lambda: activation_patching(model, pairs), "decoder_given"),
        "the whole model's lens": (lambda: logit_lens(model, torch.tensor([1, 2])), "decoder_given"),
        "a site that it lacks": (lambda: activation_patching(decoder, pairs, site="rot_q"), "has no 'rot_q'"),
    }


@pytest.mark.parametrize("case", undefined())
def test_what_is_not_defined_says_so_and_what_to_try(case: str) -> None:
    run, words = undefined()[case]
    with pytest.raises(LabError, match=words):
        run()


def test_texts_of_the_two_sides_get_their_own_start() -> None:
    model = EncoderDecoder(small(d_vocab=7, decoder_start_token_id=6, default_prepend_bos=False), characters("abcdef"))
    decoder, encoder = model.decoder_given("ab"), model.encoder_given("fe")
    assert decoder.to_tokens("cd").tolist() == [[6, 2, 3]]
    assert encoder.to_tokens("cd").tolist() == [[2, 3]]
    assert decoder.cfg.model_name == "encoder-decoder given 'ab'"
    assert encoder.cfg.model_name == "encoder-decoder given 'fe'"
    assert cross_attention_patterns(decoder, "c").labels["source_pos"] == ("a", "b")
    pairs = PromptPairs.from_text(encoder, ["ab"], ["ac"], ["d"], ["e"])
    found = activation_patching(encoder, pairs, site="cross_v", by=("layer", "pos"))
    assert found.labels["pos"] == ("a", "b")
    assert Site("cross_v", 0, head=1, pos=1).hook_name in encoder.hook_dict
