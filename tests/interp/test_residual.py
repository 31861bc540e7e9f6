"""Residual arithmetic: parts sum to the whole on every model, gains, biases and norm scale included.

The models are random, in float64, with unfolded norms whose gains and biases are of order one, so an identity
that forgets one of them is off by far more than the tolerance of 1e-9 (rounding of sums of some hundred terms).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from interp import ActivationCache
from interp.errors import LabError
from interp.stream_points import after_layers
from models import GPT, TransformerConfig
from models.tokenizers import characters
from tests.strategies import ADDITIVE, configs, models, random_model, token_batches

EXACT: Any = {"atol": 1e-9, "rtol": 1e-9}
POSITIONS = st.sampled_from([None, -1, 1, slice(1, None), [0, 1], [1]])


def cached(model: GPT, tokens: Tensor, names: Any = None) -> tuple[Tensor, ActivationCache]:
    with torch.no_grad():
        return model.run_with_cache(tokens, names_filter=names)


def take(tensor: Tensor, positions: Any) -> Tensor:
    return tensor if positions is None else tensor[..., positions, :]


def stream_before(cache: ActivationCache, layer: int) -> Tensor:
    return cache["resid_pre", layer] if layer < cache.model.cfg.n_layers else cache["resid_post", -1]


def reads_attention(cfg: TransformerConfig) -> bool:
    return not cfg.parallel_attn_mlp


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, **EXACT)


def bias_in_the_stream(cache: ActivationCache, layer: int, part: str, pos: Any) -> Any:
    """What the output bias of "attn" or "mlp" adds to the stream: through the norm after it, as that was, if any."""
    block, cfg = cache.model.blocks[layer], cache.model.cfg
    bias, norm, name = {"attn": (block.attn.b_O, block.ln1_post, "ln1_post")}.get(part) or (
        block.mlp.b_out,
        block.ln2_post,
        "ln2_post",
    )
    if cfg.norm_places == "pre" or cfg.normalization_type is None:
        return bias
    if cfg.normalization_type == "LN":
        bias = bias - bias.mean()
    return bias / take(cache[f"blocks.{layer}.{name}.hook_scale"], pos) * norm.gain + getattr(norm, "b", 0.0)


@st.composite
def layers(draw: st.DrawFn, model: GPT) -> int:
    return draw(st.integers(1, model.cfg.n_layers), label="layer")


class TestSums:
    @given(models(**ADDITIVE), token_batches(), POSITIONS, st.data())
    def test_what_layers_wrote_sums_to_the_stream(self, model: GPT, tokens: Tensor, pos: Any, data: Any) -> None:
        _, cache = cached(model, tokens)
        layer = data.draw(layers(model))
        parts, labels = cache.decompose_resid(layer, pos_slice=pos, return_labels=True)
        assert len(labels) == len(parts) == len(set(labels))
        close(parts.sum(0), take(stream_before(cache, layer), pos))

    @given(models(**ADDITIVE), token_batches(), POSITIONS, st.booleans(), st.data())
    def test_the_full_decomposition_sums_to_the_stream(
        self, model: GPT, tokens: Tensor, pos: Any, neurons: bool, data: Any
    ) -> None:
        _, cache = cached(model, tokens)
        layer = data.draw(layers(model))
        parts, labels = cache.get_full_resid_decomposition(
            layer, expand_neurons=neurons, pos_slice=pos, return_labels=True
        )
        assert labels[-1] == "bias"
        assert len(labels) == len(parts) == len(set(labels))
        close(parts.sum(0), take(stream_before(cache, layer), pos))

    @given(configs(attn_only=False, **ADDITIVE), token_batches(), st.data())
    def test_up_to_the_input_of_an_mlp_too(self, cfg: TransformerConfig, tokens: Tensor, data: Any) -> None:
        model = random_model(cfg, 7)
        _, cache = cached(model, tokens)
        layer = data.draw(st.integers(0, cfg.n_layers - 1))
        whole = cache["resid_mid", layer] if reads_attention(cfg) else cache["resid_pre", layer]
        close(cache.decompose_resid(layer, mlp_input=True).sum(0), whole)
        close(cache.get_full_resid_decomposition(layer, mlp_input=True).sum(0), whole)
        close(cache.accumulated_resid(layer, mlp_input=True)[-1], whole)

    @given(models(**ADDITIVE), token_batches(), POSITIONS, st.booleans(), st.data())
    def test_heads_and_their_remainder_sum_to_the_stream(
        self, model: GPT, tokens: Tensor, pos: Any, from_results: bool, data: Any
    ) -> None:
        _, cache = cached(model, tokens, (lambda name: True) if from_results else None)
        layer = data.draw(layers(model))
        parts, labels = cache.stack_head_results(layer, return_labels=True, incl_remainder=True, pos_slice=pos)
        heads = [f"L{i}H{h}" for i in range(layer) for h in range(model.cfg.n_heads)]
        assert labels == [*heads, "remainder"]
        close(parts.sum(0), take(stream_before(cache, layer), pos))
        in_last = parts[-1 - model.cfg.n_heads : -1].sum(0) + bias_in_the_stream(cache, layer - 1, "attn", pos)
        close(in_last, take(cache["attn_out", layer - 1], pos))

    @given(configs(attn_only=False, **ADDITIVE), token_batches(), POSITIONS, st.data())
    def test_neurons_and_their_remainder_sum_to_the_stream(
        self, cfg: TransformerConfig, tokens: Tensor, pos: Any, data: Any
    ) -> None:
        model = random_model(cfg, 8)
        _, cache = cached(model, tokens)
        layer = data.draw(layers(model))
        parts, labels = cache.stack_neuron_results(layer, pos, return_labels=True, incl_remainder=True)
        assert labels[0] == "L0N0"
        assert labels[-2:] == [f"L{layer - 1}N{cfg.mlp_size - 1}", "remainder"]
        close(parts.sum(0), take(stream_before(cache, layer), pos))
        results = cache.get_neuron_results(layer - 1, pos_slice=pos)
        bias = bias_in_the_stream(cache, layer - 1, "mlp", pos)
        close(results.sum(-2) + bias, take(cache["mlp_out", layer - 1], pos))
        few, few_labels = cache.stack_neuron_results(layer, pos, neuron_slice=[3, 5], return_labels=True)
        assert few_labels[:2] == ["L0N3", "L0N5"]
        close(few[0], parts[3])
        close(cache.stack_neuron_results(layer, pos, neuron_slice=slice(3, 6, 2)), few)

    def test_parts_by_mode(self) -> None:
        model = random_model(TransformerConfig(n_layers=2, n_heads=2, d_model=8, d_vocab=11, n_ctx=8))
        _, cache = cached(model, torch.tensor([[1, 2, 3]]))
        names = lambda **how: cache.decompose_resid(**how, return_labels=True)[1]  # noqa: E731
        embeds = ["embed", "pos_embed"]
        assert names() == [*embeds, "0_attn_out", "0_mlp_out", "1_attn_out", "1_mlp_out"]
        assert names(mode="attn", layer=1) == [*embeds, "0_attn_out"]
        assert names(mode="mlp", incl_embeds=False) == ["0_mlp_out", "1_mlp_out"]
        assert names(layer=0) == embeds
        with pytest.raises(LabError, match="unknown mode 'heads'"):
            cache.decompose_resid(mode="heads")


class TestAccumulated:
    @given(models(), token_batches(), POSITIONS, st.booleans())
    def test_each_row_is_the_stream_that_its_label_names(self, model: GPT, tokens: Tensor, pos: Any, mid: bool) -> None:
        _, cache = cached(model, tokens)
        rows, labels = cache.accumulated_resid(incl_mid=mid, pos_slice=pos, return_labels=True)
        assert labels[0] == "0_pre"
        assert labels[-1] == "final_post"
        assert any(label.endswith("mid") for label in labels) == (
            mid and not model.cfg.attn_only and not model.cfg.parallel_attn_mlp
        )
        for row, label in zip(rows, labels, strict=True):
            layer, kind = label.split("_")
            stream = cache[after_layers(model.cfg), -1] if layer == "final" else cache[f"resid_{kind}", int(layer)]
            assert torch.equal(row, take(stream, pos))

    @given(models(output_logits_soft_cap=None), token_batches(), POSITIONS)
    def test_its_last_row_through_the_final_norm_gives_the_logits(self, model: GPT, tokens: Tensor, pos: Any) -> None:
        logits, cache = cached(model, tokens)
        rows = cache.accumulated_resid(apply_ln=True, pos_slice=pos)
        close(rows[-1] @ model.W_U + model.b_U, take(logits, pos))

    @given(models(), token_batches(), st.data())
    def test_stopping_at_a_layer_ends_with_its_input(self, model: GPT, tokens: Tensor, data: Any) -> None:
        _, cache = cached(model, tokens)
        layer = data.draw(st.integers(0, model.cfg.n_layers - 1))
        rows, labels = cache.accumulated_resid(layer, return_labels=True)
        assert labels == [f"{i}_pre" for i in range(layer + 1)]
        assert torch.equal(rows[-1], cache["resid_pre", layer])


class TestNorm:
    @given(models(**ADDITIVE), token_batches(), POSITIONS, st.data())
    def test_applied_to_the_parts_it_sums_to_the_norm_of_the_whole(
        self, model: GPT, tokens: Tensor, pos: Any, data: Any
    ) -> None:
        _, cache = cached(model, tokens)
        layer = data.draw(layers(model))
        norm = model.ln_final if layer == model.cfg.n_layers else model.blocks[layer].ln1
        whole = norm(take(stream_before(cache, layer), pos)) - getattr(norm, "b", 0.0)
        for parts in (
            cache.decompose_resid(layer, apply_ln=True, pos_slice=pos),
            cache.stack_head_results(layer, apply_ln=True, pos_slice=pos, incl_remainder=True),
            cache.get_full_resid_decomposition(layer, apply_ln=True, pos_slice=pos),
        ):
            close(parts.sum(0), whole)

    @given(configs(attn_only=False, **ADDITIVE), token_batches(), st.data())
    def test_of_an_mlp_too(self, cfg: TransformerConfig, tokens: Tensor, data: Any) -> None:
        model = random_model(cfg, 9)
        _, cache = cached(model, tokens)
        layer = data.draw(st.integers(0, cfg.n_layers - 1))
        norm = model.blocks[layer].ln2
        whole = norm(cache["resid_mid" if reads_attention(cfg) else "resid_pre", layer]) - getattr(norm, "b", 0.0)
        close(cache.decompose_resid(layer, mlp_input=True, apply_ln=True).sum(0), whole)
        close(
            cache.stack_neuron_results(cfg.n_layers, apply_ln=True, incl_remainder=True).sum(0),
            model.ln_final(cache["resid_post", -1]) - getattr(model.ln_final, "b", 0.0),
        )

    @given(models(**ADDITIVE), token_batches())
    def test_batch_slice_takes_prompts_of_stack_and_scale(self, model: GPT, tokens: Tensor) -> None:
        _, cache = cached(model, tokens)
        parts = cache.decompose_resid()
        whole = cache.apply_ln_to_stack(parts)
        close(cache.apply_ln_to_stack(parts, batch_slice=slice(0, 1)), whole[:, :1])
        close(cache.apply_ln_to_stack(parts, batch_slice=0), whole[:, 0])
        close(cache.apply_ln_to_stack(parts[:, 0], batch_slice=0, has_batch_dim=False), whole[:, 0])

    def test_the_norm_of_a_stack_fires_no_hook(self) -> None:
        model = random_model(TransformerConfig(n_layers=1, n_heads=2, d_model=8, d_vocab=11, n_ctx=8))
        _, cache = cached(model, torch.tensor([[1, 2, 3]]))
        seen = []
        with model.hooks([("ln_final.hook_scale", lambda scale, hook: seen.append(scale))]):
            cache.accumulated_resid(apply_ln=True)
        assert seen == []


class TestLogits:
    @given(models(**ADDITIVE), token_batches(), st.data())
    def test_attributed_parts_and_biases_sum_to_the_logit(self, model: GPT, tokens: Tensor, data: Any) -> None:
        logits, cache = cached(model, tokens)
        right = data.draw(st.integers(0, model.cfg.d_vocab - 1))
        for parts in (cache.get_full_resid_decomposition(), cache.decompose_resid()):
            shares = cache.logit_attrs(parts, right)
            assert shares.shape == parts.shape[:-1]
            close(shares.sum(0) + cache.unembed_bias_attrs(right), logits[..., right])

    @given(models(**ADDITIVE), token_batches(), POSITIONS, st.data())
    def test_and_to_the_logit_difference(self, model: GPT, tokens: Tensor, pos: Any, data: Any) -> None:
        logits, cache = cached(model, tokens)
        batch = tokens.shape[0]
        ids = st.lists(st.integers(0, model.cfg.d_vocab - 1), min_size=batch, max_size=batch).map(torch.tensor)
        right, wrong = data.draw(ids), data.draw(ids)
        parts = cache.get_full_resid_decomposition(pos_slice=pos)
        shares = cache.logit_attrs(parts, right, wrong, pos_slice=pos)
        bias = cache.unembed_bias_attrs(right, wrong)
        if shares.ndim == 3:
            bias = rearrange(bias, "batch -> batch 1")
        each = torch.arange(batch)
        difference = logits[each, :, right] - logits[each, :, wrong]
        expected = difference if pos is None else difference[:, pos]
        close(shares.sum(0) + bias, expected)

    @given(models(**ADDITIVE), token_batches(min_pos=3))
    def test_one_answer_per_position(self, model: GPT, tokens: Tensor) -> None:
        logits, cache = cached(model, tokens)
        shares = cache.logit_attrs(cache.decompose_resid(), tokens)
        expected = logits.gather(-1, rearrange(tokens, "batch pos -> batch pos 1")).squeeze(-1)
        close(shares.sum(0) + cache.unembed_bias_attrs(tokens), expected)

    @given(models(**ADDITIVE), token_batches(max_batch=1))
    def test_without_a_batch_axis(self, model: GPT, tokens: Tensor) -> None:
        logits, batched = cached(model, tokens)
        cache = batched.remove_batch_dim()
        for pos in (None, -1, [0, 1]):
            parts = cache.get_full_resid_decomposition(pos_slice=pos)
            close(parts, batched.get_full_resid_decomposition(pos_slice=pos)[:, 0])
            shares = cache.logit_attrs(parts, 3, 5, pos_slice=pos, has_batch_dim=False)
            expected = logits[0, :, 3] - logits[0, :, 5]
            close(shares.sum(0) + cache.unembed_bias_attrs(3, 5), expected if pos is None else expected[pos])

    def test_answers_may_be_text(self) -> None:
        model = random_model(TransformerConfig(n_layers=1, n_heads=2, d_model=8, d_vocab=5, n_ctx=8))
        model.tokenizer = characters("abcd")
        logits, cache = cached(model, torch.tensor([[1, 2, 3]]))
        shares = cache.logit_attrs(cache.decompose_resid(), "a", "d")
        close(shares.sum(0) + cache.unembed_bias_attrs("a", "d"), logits[..., 0] - logits[..., 3])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_models_are_attributed_in_float32(self, dtype: torch.dtype) -> None:
        cfg = TransformerConfig(n_layers=2, n_heads=2, d_model=8, d_vocab=11, n_ctx=8)
        model = random_model(cfg, dtype=dtype)
        logits, cache = cached(model, torch.tensor([[1, 2, 3]]))
        shares = cache.logit_attrs(cache.get_full_resid_decomposition(), 1, 2)
        assert shares.dtype == torch.float32
        total = shares.sum(0) + cache.unembed_bias_attrs(1, 2)
        # Half-precision products of order one, a few dozen of them: errors of a few units in the last place.
        torch.testing.assert_close(total, (logits[..., 1] - logits[..., 2]).float(), atol=0.1, rtol=0.05)


class TestRefusals:
    @pytest.fixture
    def cache(self) -> ActivationCache:
        model = random_model(TransformerConfig(n_layers=2, n_heads=2, d_model=8, d_vocab=11, n_ctx=8, attn_only=True))
        return cached(model, torch.tensor([[1, 2, 3]]))[1]

    @pytest.mark.parametrize("layer", [3, -2])
    def test_a_layer_out_of_range(self, cache: ActivationCache, layer: int) -> None:
        for method in (cache.accumulated_resid, cache.decompose_resid, cache.stack_head_results):
            with pytest.raises(LabError, match=f"layer {layer} is out of range; expected 0 to 2"):
                method(layer)

    def test_no_components(self, cache: ActivationCache) -> None:
        with pytest.raises(LabError, match="leaves no components"):
            cache.stack_head_results(0)
        with pytest.raises(LabError, match="leaves no components"):
            cache.stack_neuron_results()

    def test_the_input_of_an_mlp_that_is_not_there(self, cache: ActivationCache) -> None:
        with pytest.raises(LabError, match="has an MLP"):
            cache.decompose_resid(1, mlp_input=True)

    def test_an_activation_that_was_not_kept_is_named(self, cache: ActivationCache) -> None:
        _, partial = cached(cache.model, torch.tensor([[1, 2, 3]]), "blocks.*.hook_resid_pre")
        with pytest.raises(LabError, match=r"no hook named 'blocks\.0\.attn\.hook_z'"):
            partial.stack_head_results()


@given(
    st.sampled_from(["post", "both"]).flatmap(lambda places: models(norm_places=places, **ADDITIVE)),
    token_batches(),
    st.data(),
)
def test_biases_written_through_norms_count_at_every_place(model: GPT, tokens: Tensor, data: Any) -> None:
    """Heads, neurons and biases of norms after them sum to the stream, and their shares to the logits.

    1e-10 of the largest part, in float64: a few hundred parts are summed.
    """
    logits, cache = cached(model, tokens)
    for neurons in (True, False):
        parts = cache.get_full_resid_decomposition(expand_neurons=neurons)
        within_rounding(parts.sum(0), cache["resid_post", -1], parts)
        shares = cache.logit_attrs(parts, 3)
        within_rounding(shares.sum(0) + cache.unembed_bias_attrs(3), logits[..., 3], shares)
    layer = data.draw(layers(model))
    expected = sum(bias_in_the_stream(cache, each, "attn", None) for each in range(layer))
    like = cache["resid_pre", 0]
    found = cache.output_biases(layer, include_mlp_biases=False)
    within_rounding(found.expand_as(like), torch.as_tensor(expected).expand_as(like), like)


@pytest.mark.parametrize("norm", ["LN", "RMS"])
def test_a_sum_of_raw_biases_is_refused_where_norms_come_after_them(norm: str) -> None:
    cfg = TransformerConfig(
        n_layers=1, n_heads=2, d_model=8, d_vocab=11, n_ctx=8, norm_places="both", normalization_type=norm
    )
    with pytest.raises(LabError, match=r"cache\.output_biases"):
        random_model(cfg).accumulated_bias(1)


def within_rounding(found: Tensor, expected: Tensor, parts: Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-10 * max(1.0, float(parts.abs().max()))


def test_a_step_that_the_lab_does_not_know_leaves_parts_without_shares() -> None:
    model = random_model(TransformerConfig(n_layers=2, n_heads=2, d_model=8, d_vocab=11, n_ctx=8))
    _, cache = cached(model, torch.tensor([[1, 2, 3]]))
    model.unaccounted = {"heads": "what heads write is not all that attention writes"}
    for parts in (cache.stack_head_results, cache.stack_neuron_results, cache.get_full_resid_decomposition):
        with pytest.raises(LabError, match="what heads write is not all"):
            parts()
    model.unaccounted = {"logits": "the logits are scaled"}
    with pytest.raises(LabError, match="the logits are scaled"):
        cache.logit_attrs(cache.decompose_resid(), 3)


@given(models(norm_places="stream", parallel_attn_mlp=False, normalization_type="LN"), token_batches())
def test_where_norms_stand_on_the_stream_it_is_no_sum_and_parts_are_refused(model: GPT, tokens: Tensor) -> None:
    _, cache = cached(model, tokens)
    refused: list[Callable[[], Any]] = [
        cache.decompose_resid,
        cache.stack_head_results,
        cache.get_full_resid_decomposition,
        cache.output_biases,
        lambda: model.accumulated_bias(1),
        lambda: cache.logit_attrs(cache.accumulated_resid(), 1),
    ]
    for ask in refused:
        with pytest.raises(LabError, match=r"a norm stands on the stream .* activation_patching|caps its logits"):
            ask()


@given(
    st.sampled_from(["LN", "RMS", None]).flatmap(
        lambda norm: models(norm_places="stream", normalization_type=norm, parallel_attn_mlp=False, attn_only=False)
    ),
    token_batches(),
)
def test_where_norms_stand_on_the_stream_it_is_read_as_it_stands(model: GPT, tokens: Tensor) -> None:
    """By attention and the unembedding as the layer before left it, by an MLP through its layer's first norm."""
    logits, cache = cached(model, tokens)
    rows = cache.accumulated_resid(apply_ln=True)
    close(model.unembed(rows[-1]), logits)
    assert torch.equal(rows[1], cache["normalized_resid_post", 0])
    last = model.cfg.n_layers - 1
    mlp_in = cache.accumulated_resid(last, mlp_input=True, apply_ln=True)[-1]
    bias = getattr(model.blocks[last].ln1, "b", None)
    close(model.blocks[last].mlp(mlp_in if bias is None else mlp_in + bias), cache["mlp_out", last])


def test_shares_of_capped_logits_are_refused() -> None:
    cfg = TransformerConfig(n_layers=1, n_heads=2, d_model=8, d_vocab=11, n_ctx=8, output_logits_soft_cap=5.0)
    _, cache = cached(random_model(cfg), torch.tensor([[1, 2, 3]]))
    with pytest.raises(LabError, match=r"caps its logits \(output_logits_soft_cap=5.0\)"):
        cache.logit_attrs(cache.decompose_resid(), 3)
