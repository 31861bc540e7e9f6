"""The GPT is causal, indifferent to padding and to batches, and resumes anywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from interp.contract import HookedModel, ResumableModel
from interp.errors import LabError
from interp.kv_cache import KeyValueCache
from models import GPT, TransformerConfig
from models.attention import padding_mask
from models.positions import position_ids
from tests.strategies import D_VOCAB, N_CTX, configs, models, padding_masks, random_model, token_batches

# float64 models: masks and batches only change the order of summation.
EXACT: Any = {"atol": 1e-9, "rtol": 1e-9}


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, **EXACT)


def small(**fixed: Any) -> GPT:
    sizes = {"n_layers": 2, "n_heads": 2, "d_model": 8, "d_vocab": D_VOCAB, "n_ctx": 8}
    return random_model(TransformerConfig(**(sizes | fixed)))


@st.composite
def padded_batches(draw: st.DrawFn, side: str | None = None) -> tuple[Tensor, Tensor]:
    tokens = draw(token_batches())
    return tokens, draw(padding_masks(*tokens.shape, side=side))


class TestCausality:
    @given(models(), token_batches(), st.data())
    def test_a_later_token_changes_nothing_earlier(self, model: GPT, tokens: Tensor, data: Any) -> None:
        pos = data.draw(st.integers(1, tokens.shape[1] - 1))
        changed = tokens.clone()
        changed[:, pos] = (tokens[:, pos] + 1) % D_VOCAB
        _, before = model.run_with_cache(tokens)
        _, after = model.run_with_cache(changed)
        for name in before:
            if "attn_scores" in name or "pattern" in name:
                assert torch.equal(before[name][:, :, :pos], after[name][:, :, :pos]), name
            else:
                assert torch.equal(before[name][:, :pos], after[name][:, :pos]), name
        close(model(tokens)[:, :pos], model(changed)[:, :pos])

    @given(configs(attention_dir="bidirectional"), token_batches())
    def test_without_causality_the_first_position_sees_the_last(self, cfg: TransformerConfig, tokens: Tensor) -> None:
        model = random_model(cfg, 3)
        changed = tokens.clone()
        changed[:, -1] = (tokens[:, -1] + 1) % D_VOCAB
        assert not torch.allclose(model(tokens)[:, 0], model(changed)[:, 0])


class TestInvariance:
    @given(models(), padded_batches())
    def test_padding_on_either_side_changes_no_real_position(self, model: GPT, padded: tuple[Tensor, Tensor]) -> None:
        tokens, mask = padded
        logits = model(tokens, attention_mask=mask)
        hooked, cache = model.run_with_cache(tokens, attention_mask=mask)
        close(hooked, logits)
        for row, real in enumerate(mask):
            close(logits[row, real], model(tokens[row, real])[0])
            _, alone = model.run_with_cache(tokens[row, real])
            close(cache["resid_post", -1][row, real], alone["resid_post", -1][0])

    @given(configs(attention_dir="bidirectional"), padded_batches())
    def test_nor_in_a_bidirectional_model(self, cfg: TransformerConfig, padded: tuple[Tensor, Tensor]) -> None:
        model, (tokens, mask) = random_model(cfg, 4), padded
        logits = model(tokens, attention_mask=mask)
        for row, real in enumerate(mask):
            close(logits[row, real], model(tokens[row, real])[0])

    @given(models(), padded_batches())
    def test_what_stands_in_the_padding_does_not_matter(self, model: GPT, padded: tuple[Tensor, Tensor]) -> None:
        tokens, mask = padded
        other = torch.where(mask, tokens, (tokens + 1) % D_VOCAB)
        close(model(tokens, attention_mask=mask)[mask], model(other, attention_mask=mask)[mask])
        losses = [model(t, attention_mask=mask, return_type="loss", loss_per_token=True) for t in (tokens, other)]
        close(*losses)

    @given(models(), token_batches())
    def test_batches_do_not_matter_and_a_full_mask_is_no_mask(self, model: GPT, tokens: Tensor) -> None:
        logits = model(tokens)
        close(torch.cat([model(row) for row in tokens]), logits)
        close(model(tokens, attention_mask=torch.ones_like(tokens)), logits)

    @given(models(), padded_batches(), st.booleans())
    def test_no_number_is_ever_undefined(self, model: GPT, padded: tuple[Tensor, Tensor], empty_row: bool) -> None:
        """Not even in a row that holds padding alone, as a part of a run may (a whole run is refused with one)."""
        tokens, mask = padded
        if empty_row:
            mask[0] = False
        given = lambda: {"attention_mask": mask} | ({"past_kv_cache": KeyValueCache()} if empty_row else {})  # noqa: E731
        loss, cache = model.run_with_cache(tokens, **given(), return_type="loss", incl_bwd=True)
        for name, tensor in cache.items():
            assert torch.isfinite(tensor).all(), name
        assert torch.isfinite(loss)
        assert torch.isfinite(model(tokens, **given())).all()
        for name, parameter in model.named_parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name

    def test_positions_count_real_tokens(self) -> None:
        mask = torch.tensor([[False, False, True, True], [True, True, True, False]])
        assert position_ids(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


class TestResuming:
    @given(models(), token_batches(), st.data())
    def test_chunks_of_any_size_through_a_cache_give_one_pass(self, model: GPT, tokens: Tensor, data: Any) -> None:
        cuts = sorted(data.draw(st.sets(st.integers(1, tokens.shape[1] - 1)), label="cuts"))
        past = KeyValueCache()
        chunks = torch.tensor_split(tokens, cuts, dim=1)
        close(torch.cat([model(chunk, past_kv_cache=past) for chunk in chunks], 1), model(tokens))
        assert len(past) == tokens.shape[1]

    @given(models(), padded_batches(), st.data())
    def test_with_padding_too(self, model: GPT, padded: tuple[Tensor, Tensor], data: Any) -> None:
        tokens, mask = padded
        cuts = sorted(data.draw(st.sets(st.integers(1, tokens.shape[1] - 1)), label="cuts"))
        past = KeyValueCache()
        chunks = zip(torch.tensor_split(tokens, cuts, 1), torch.tensor_split(mask, cuts, 1), strict=True)
        logits = torch.cat([model(chunk, attention_mask=real, past_kv_cache=past) for chunk, real in chunks], 1)
        close(logits[mask], model(tokens, attention_mask=mask)[mask])

    @given(models(), padded_batches(side="left"))
    def test_after_left_padding_new_tokens_need_no_mask(self, model: GPT, padded: tuple[Tensor, Tensor]) -> None:
        tokens, mask = padded
        new = tokens[:, :2]
        past = KeyValueCache()
        model(tokens, attention_mask=mask, past_kv_cache=past)
        resumed = [model(new[:, i : i + 1], past_kv_cache=past) for i in range(2)]
        whole = model(torch.cat([tokens, new], 1), attention_mask=torch.cat([mask, torch.ones_like(new).bool()], 1))
        close(torch.cat(resumed, 1), whole[:, -2:])

    @given(models(), token_batches())
    def test_with_patterns_hooked_too(self, model: GPT, tokens: Tensor) -> None:
        past = KeyValueCache()
        model(tokens[:, :1], past_kv_cache=past)
        logits, cache = model.run_with_cache(tokens[:, 1:], past_kv_cache=past)
        whole, whole_cache = model.run_with_cache(tokens)
        close(logits, whole[:, 1:])
        close(cache["pattern", -1], whole_cache["pattern", -1][:, :, 1:])

    @given(models(), token_batches(max_batch=3))
    def test_rows_of_a_cache_can_be_chosen(self, model: GPT, tokens: Tensor) -> None:
        past = KeyValueCache()
        model(tokens[:, :1], past_kv_cache=past)
        rows = torch.tensor([tokens.shape[0] - 1, 0])
        past.select_batch(rows)
        close(model(tokens[rows, 1:], past_kv_cache=past), model(tokens)[rows, 1:])

    @given(models(), padded_batches(), st.data())
    def test_stopping_at_a_layer_and_starting_there_is_the_whole_run(
        self, model: GPT, padded: tuple[Tensor, Tensor], data: Any
    ) -> None:
        tokens, mask = padded
        middle = data.draw(st.integers(0, model.cfg.n_layers))
        resid = model(tokens, attention_mask=mask, stop_at_layer=middle)
        logits = model(resid, attention_mask=mask, start_at_layer=middle)
        assert torch.equal(logits, model(tokens, attention_mask=mask))
        loss = model(resid, attention_mask=mask, start_at_layer=middle, tokens=tokens, return_type="loss")
        assert torch.equal(loss, model(tokens, attention_mask=mask, return_type="loss"))

    @given(models(n_layers=3), token_batches())
    def test_only_the_layers_in_between_run(self, model: GPT, tokens: Tensor) -> None:
        resid = model(tokens, stop_at_layer=1)
        stopped, cache = model.run_with_cache(resid, start_at_layer=1, stop_at_layer=-1)
        assert {name.split(".")[1] for name in cache} == {"1"}
        close(stopped, model(tokens, stop_at_layer=2))


class TestLoss:
    @given(models(), padded_batches())
    def test_it_is_the_mean_of_the_losses_per_token_that_count(self, model: GPT, padded: tuple[Tensor, Tensor]) -> None:
        tokens, mask = padded
        counted = mask[:, 1:] & mask[:, :-1]
        assume(counted.any())
        per_token = model(tokens, attention_mask=mask, return_type="loss", loss_per_token=True)
        log_probs = model(tokens, attention_mask=mask).log_softmax(-1)
        expected = -log_probs[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
        close(per_token[counted], expected[counted])
        assert (per_token[~counted] == 0).all()
        close(model(tokens, attention_mask=mask, return_type="loss"), expected[counted].mean())

    @given(models(), token_batches())
    def test_return_types(self, model: GPT, tokens: Tensor) -> None:
        logits, loss = model(tokens, return_type="both")
        assert torch.equal(logits, model(tokens))
        assert torch.equal(loss, model(tokens, return_type="loss"))
        assert torch.equal(loss, model.loss_fn(logits, tokens))
        assert model(tokens, return_type=None) is None

    def test_a_prompt_that_predicts_nothing(self) -> None:
        with pytest.raises(LabError, match="needs at least 2 positions, given 1"):
            small()(torch.tensor([[1]]), return_type="loss")


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"input": torch.tensor([[0, 11]])}, r"token ids run from 0 to 11; expected 0 to 10 \(d_vocab=11\)"),
            ({"input": torch.tensor([[-1, 3]])}, r"token ids run from -1 to 3; expected 0 to 10"),
            ({"input": torch.zeros(1, 9, dtype=torch.long)}, r"9 positions do not fit the context window of 8"),
            ({"input": torch.zeros(1, 0, dtype=torch.long)}, r"shape \(1, 0\).*expected token ids \[batch pos\]"),
            ({"input": torch.zeros(0, dtype=torch.long)}, r"shape \(1, 0\).*expected token ids \[batch pos\]"),
            ({"input": torch.zeros(1, 2, 3, dtype=torch.long)}, r"shape \(1, 2, 3\)"),
            ({"input": torch.zeros(1, 2, 8)}, r"dtype torch.float32; .*a residual stream needs start_at_layer"),
            ({"attention_mask": torch.ones(1, 4)}, r"attention_mask has shape \(1, 4\), expected the input's \(1, 3\)"),
            ({"attention_mask": torch.ones(3)}, r"attention_mask has shape \(3,\), expected the input's \(1, 3\)"),
            ({"return_type": "logit"}, r"return_type='logit'; expected 'logits', 'loss', 'both' or None"),
            ({"stop_at_layer": 3}, r"stop_at_layer=3; expected 0 <= start <= stop <= 2"),
            ({"input": torch.zeros(1, 2, 8), "start_at_layer": 2, "stop_at_layer": 1}, r"start_at_layer=2, stop"),
            ({"input": torch.zeros(1, 2, 8), "start_at_layer": 1, "return_type": "loss"}, r"a loss needs token ids"),
            ({"start_at_layer": 1}, r"start_at_layer was given \(1, 3\); expected a residual stream \[batch pos 8\]"),
            ({"input": "text", "start_at_layer": 1}, r"start_at_layer was given str; expected a residual stream"),
            ({"input": "text"}, r"has no tokenizer, so it takes token ids and no text"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_what_cannot_be_run_is_refused_in_one_line(self, arguments: dict[str, Any], message: str) -> None:
        model = small().float()
        with pytest.raises(LabError, match=message) as error:
            model(**({"input": torch.tensor([[1, 2, 3]])} | arguments))
        assert "\n" not in str(error.value)

    def test_a_refusal_comes_before_the_forward(self) -> None:
        model, ran = small(), []
        with pytest.raises(LabError), model.hooks([("hook_embed", lambda x, hook: ran.append(1))]):
            model(torch.tensor([[1, 2]]), return_type="logit")
        assert ran == []

    def test_a_context_window_that_a_cache_filled(self) -> None:
        model, past = small(), KeyValueCache()
        model(torch.ones(1, 6, dtype=torch.long), past_kv_cache=past)
        with pytest.raises(LabError, match="9 positions do not fit"):
            model(torch.ones(1, 3, dtype=torch.long), past_kv_cache=past)
        assert len(past) == 6

    def test_the_longest_input_fits(self) -> None:
        assert small(n_ctx=N_CTX)(torch.ones(1, N_CTX, dtype=torch.long)).shape == (1, N_CTX, D_VOCAB)


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @given(cfg=configs(), tokens=token_batches(), data=st.data())
    def test_norms_and_softmax_run_in_float32(
        self, dtype: torch.dtype, cfg: TransformerConfig, tokens: Tensor, data: Any
    ) -> None:
        model = random_model(cfg, 5, dtype)
        mask = data.draw(padding_masks(*tokens.shape))
        logits, cache = model.run_with_cache(tokens, attention_mask=mask)
        assert logits.dtype == cache["resid_post", 0].dtype == dtype
        pattern = cache["pattern", 0]
        assert pattern.dtype == torch.float32
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]), atol=1e-6, rtol=0)
        if cfg.normalization_type is not None:
            normalized, stream = cache["ln_final.hook_normalized"], cache["resid_post", -1].float()
            assert normalized.dtype == torch.float32
            wide = model.ln_final.double()(stream.double()) if cfg.normalization_type == "RMS" else None
            if wide is not None:
                torch.testing.assert_close(normalized * model.ln_final.gain.float(), wide.float(), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @given(
        cfg=st.sampled_from(["LN", "RMS"]).flatmap(lambda norm: configs(normalization_type=norm)),
        tokens=token_batches(),
    )
    def test_lower_precision_stays_near_float64(
        self, dtype: torch.dtype, cfg: TransformerConfig, tokens: Tensor
    ) -> None:
        model = random_model(cfg, 6).to(dtype)  # both have the rounded weights, so that only the arithmetic differs
        exact = random_model(cfg, 6).to(dtype).double()(tokens)
        # Relative to the size of the logits: some dozen roundings of the stream, each by half a unit in the last place.
        error = (model(tokens).double() - exact).norm() / exact.norm()
        assert error < 40 * torch.finfo(dtype).eps

    def test_the_config_tells_the_current_dtype_and_device(self) -> None:
        model = small()
        assert (model.cfg.dtype, model.cfg.device) == (torch.float64, torch.device("cpu"))
        assert model.to(torch.bfloat16).cfg.dtype == torch.bfloat16


class TestConstruction:
    def test_a_seed_fixes_the_weights_and_no_seed_does_not(self) -> None:
        sizes: dict[str, Any] = {"n_layers": 1, "n_heads": 2, "d_model": 8, "d_vocab": 11, "n_ctx": 8}
        first, second = (GPT(TransformerConfig(**sizes, seed=3)) for _ in range(2))
        assert torch.equal(first.W_Q, second.W_Q)
        assert not torch.equal(GPT(TransformerConfig(**sizes)).W_Q, GPT(TransformerConfig(**sizes)).W_Q)

    def test_fresh_weights_have_the_spread_that_was_asked_for(self) -> None:
        cfg = TransformerConfig(n_layers=2, n_heads=4, d_model=128, d_vocab=50, n_ctx=16, init_range=0.1, seed=0)
        model = GPT(cfg)
        # 16384 draws: the standard deviation is known to about half a percent; 5 % is nine sigma.
        assert model.blocks[0].attn.q.weight.std().item() == pytest.approx(0.1, rel=0.05)
        assert model.blocks[0].attn.o.weight.std().item() == pytest.approx(0.1 / 2, rel=0.05)
        assert model.b_in.abs().max() == 0

    @given(models(), token_batches())
    def test_named_weights_are_those_that_run(self, model: GPT, tokens: Tensor) -> None:
        _, cache = model.run_with_cache(tokens)
        block, cfg = model.blocks[0], model.cfg
        normalized = block.read_through(cache["resid_pre", 0])
        group = cfg.n_heads // cfg.n_kv_heads
        for head in range(cfg.n_heads):
            close(cache["q", 0][:, :, head], normalized @ model.W_Q[0, head] + model.b_Q[0, head])
            kv = head // group
            close(cache["k", 0][:, :, kv], normalized @ model.W_K[0, kv] + model.b_K[0, kv])
            close(cache["v", 0][:, :, kv], normalized @ model.W_V[0, kv] + model.b_V[0, kv])
        heads = torch.einsum("bphd,hdm->bpm", cache["z", 0], model.W_O[0])
        close(cache["attn_out", 0], block.ln1_post(heads + model.b_O[0]))
        if not cfg.attn_only:
            close(cache["mlp_out", 0], block.ln2_post(cache["post", 0] @ model.W_out[0] + model.b_out[0]))
        close(cache["hook_embed"], model.W_E[tokens] * (cfg.embed_scale or 1.0))
        if cfg.positional_embedding_type in ("learned", "sinusoidal"):
            close(cache["hook_pos_embed"][0], model.W_pos[: tokens.shape[1]])

    def test_weights_by_name_are_views(self) -> None:
        model = small()
        attn = model.blocks[0].attn
        assert attn.W_Q.untyped_storage().data_ptr() == attn.q.weight.untyped_storage().data_ptr()
        assert attn.W_O.untyped_storage().data_ptr() == attn.o.weight.untyped_storage().data_ptr()
        assert model.W_U.untyped_storage().data_ptr() == model.unembed.weight.untyped_storage().data_ptr()

    def test_tied_embeddings_are_one_parameter(self) -> None:
        model = small(tie_embeddings=True).to(torch.float32)
        assert model.unembed.weight is model.embed.W_E
        assert torch.equal(model.W_U, model.W_E.T)

    def test_other_outputs_than_inputs(self) -> None:
        model = small(d_vocab_out=3)
        assert model(torch.tensor([[1, 2]])).shape == (1, 2, 3)
        assert model.b_U.shape == (3,)

    def test_it_satisfies_the_contract(self) -> None:
        assert isinstance(small(), HookedModel)
        assert isinstance(small(), ResumableModel)

    @given(models())
    def test_the_state_dict_round_trips(self, model: GPT) -> None:
        other = random_model(model.cfg, 99)
        other.load_state_dict(model.state_dict())
        tokens = torch.tensor([[1, 2, 3]])
        assert torch.equal(other(tokens), model(tokens))


@given(padding_masks(3, 5), st.booleans())
def test_a_padding_query_sees_itself_and_no_padding_key_is_seen_by_others(mask: Tensor, causal: bool) -> None:
    allowed = padding_mask(mask, 5, causal)[:, 0]
    assert allowed.any(-1).all()
    seen_by_others = allowed & ~torch.eye(5, dtype=torch.bool)
    assert not (seen_by_others & ~mask[:, None, :]).any()
    assert causal == (not allowed.triu(1).any()) or not mask.sum(-1).gt(1).any()
