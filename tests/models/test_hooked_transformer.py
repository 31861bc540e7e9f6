"""What scripts written for HookedTransformer find when they meet the lab's layer of that name.

Tolerance: models in float64 unless told; 1e-9 is a thousand roundings of numbers of order one to a hundred.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from analyses import activation_patching
from interp import tasks
from interp.errors import LabError, UnknownHookError
from interp.hook_point import HookPoint
from models import GPT, TransformerConfig, load
from models.hooked_transformer import HookedTransformer, HookedTransformerConfig, KeyValueCache, utils
from models.hooked_transformer.cache import HookedCache
from models.pretrained.places import ZOO
from models.tokenizers import characters
from tests.strategies import configs, random_model, token_batches

CLOSE: Any = {"atol": 1e-9, "rtol": 1e-9}
LETTERS = "abcd e"
SIZES: dict[str, Any] = {"n_layers": 2, "d_model": 16, "n_ctx": 12, "d_head": 4, "d_vocab": 7, "act_fn": "gelu"}
GROUPED = TransformerConfig(
    n_layers=2, n_heads=4, n_key_value_heads=2, d_model=8, d_vocab=7, n_ctx=12, positional_embedding_type="rotary"
)
TOKENS = torch.tensor([[1, 2, 3, 4], [3, 0, 5, 2]])


def of(cfg: TransformerConfig | None = None, tokenizer: Any = None, **options: Any) -> HookedTransformer:
    cfg = cfg or TransformerConfig(n_layers=2, n_heads=4, d_model=16, d_vocab=7, n_ctx=12)
    return HookedTransformer.of(random_model(cfg), tokenizer, **options)


@pytest.fixture
def model() -> HookedTransformer:
    return of()


@pytest.fixture
def speaker() -> HookedTransformer:
    return of(tokenizer=characters(LETTERS))


class TestConfig:
    def test_a_config_has_the_defaults_of_its_namesake(self) -> None:
        cfg = HookedTransformerConfig(**SIZES)
        assert (cfg.n_heads, cfg.d_mlp, cfg.d_vocab_out, cfg.default_prepend_bos) == (4, 64, 7, True)
        assert cfg.initializer_range == cfg.init_range == pytest.approx(0.8 / 16**0.5)
        assert not any((cfg.use_attn_result, cfg.use_split_qkv_input, cfg.use_hook_mlp_in, cfg.use_attn_in))
        assert cfg.n_params == 2 * (4 * 16 * 16 + 2 * 16 * 64)

    def test_a_model_is_built_from_a_config_or_a_dictionary_and_keeps_the_very_config(self) -> None:
        cfg = HookedTransformerConfig(**SIZES, seed=3, device="cpu")
        first, second = HookedTransformer(cfg), HookedTransformer(SIZES | {"seed": 3, "device": "cpu"})
        assert first.cfg is cfg
        assert torch.equal(first(TOKENS), second(TOKENS))

    def test_fresh_weights_are_as_wide_as_the_config_says_and_biases_zero(self) -> None:
        torch.manual_seed(0)
        model = HookedTransformer(SIZES | {"d_model": 64, "d_head": 16, "initializer_range": 0.3, "device": "cpu"})
        assert (model.b_in == 0).all()
        # 8192 and 4096 draws: the standard deviation is within 5 % with all but certainty.
        assert model.W_in[0].std().item() == pytest.approx(0.3, rel=0.05)
        assert model.W_O[0].std().item() == pytest.approx(0.3, rel=0.05)

    def test_before_a_model_is_built_its_shape_can_be_assigned(self) -> None:
        cfg = HookedTransformerConfig(**SIZES)
        cfg.n_layers = 3
        assert HookedTransformer(cfg).cfg.n_layers == 3
        with pytest.raises(LabError, match="expected a positive integer"):
            HookedTransformerConfig(**SIZES).n_layers = 0

    def test_afterwards_it_cannot_and_a_flag_that_is_none_is_named(self, model: HookedTransformer) -> None:
        with pytest.raises(LabError, match="the model was built with 2"):
            model.cfg.n_layers = 3
        with pytest.raises(LabError, match="closest: 'use_attn_result'"):
            model.cfg.use_atn_result = True
        assert model.cfg.n_layers == 2

    def test_what_can_be_assigned_takes_effect(self, speaker: HookedTransformer) -> None:
        speaker.cfg.default_prepend_bos = False
        assert speaker.to_tokens("ab").tolist() == [[0, 1]]
        speaker.cfg.dtype = torch.float32
        assert speaker.W_E.dtype == speaker.cfg.dtype == torch.float32
        speaker.cfg.dtype = "float64"
        assert speaker.W_E.dtype == torch.float64
        speaker.cfg.device = "cpu"
        assert speaker.cfg.device == torch.device("cpu")

    @pytest.mark.parametrize(
        ("flag", "short"),
        [
            ("use_attn_result", "result"),
            ("use_split_qkv_input", "q_input"),
            ("use_attn_in", "attn_in"),
            ("use_hook_mlp_in", "mlp_in"),
        ],
    )
    def test_a_flag_says_what_an_unfiltered_cache_keeps_and_never_what_fires(
        self, model: HookedTransformer, flag: str, short: str
    ) -> None:
        assert (short, 1) not in model.run_with_cache(TOKENS)[1]
        assert list(model.run_with_cache(TOKENS, names_filter=f"blocks.1.*hook_{short}")[1])
        setattr(model.cfg, flag, True)
        assert (short, 1) in model.run_with_cache(TOKENS)[1]
        getattr(model, f"set_{flag}")(False)
        assert getattr(model.cfg, flag) is False
        assert (short, 1) not in model.run_with_cache(TOKENS)[1]

    @pytest.mark.parametrize("flag", ["use_attn_in", "ungroup_grouped_query_attention"])
    def test_flags_for_axes_that_shared_keys_do_not_have_are_refused(self, flag: str) -> None:
        with pytest.raises(LabError, match="share keys and values"):
            setattr(of(GROUPED).cfg, flag, True)

    def test_a_copied_model_has_a_config_of_its_own(self, model: HookedTransformer) -> None:
        twin = copy.deepcopy(model)
        twin.cfg.use_attn_result = True
        assert ("result", 0) in twin.run_with_cache(TOKENS)[1]
        assert not model.cfg.use_attn_result
        assert ("result", 0) not in model.run_with_cache(TOKENS)[1]

    def test_a_dictionary_gives_the_config_back(self) -> None:
        for cfg in (HookedTransformerConfig(**SIZES), HookedTransformerConfig.of(GROUPED)):
            again = HookedTransformerConfig.from_dict(cfg.to_dict())
            assert again.to_dict() == cfg.to_dict()
        assert HookedTransformerConfig.unwrap(SIZES).to_dict() == HookedTransformerConfig(**SIZES).to_dict()

    def test_fields_of_what_the_lab_does_not_compute_are_there_and_off(self) -> None:
        cfg = HookedTransformerConfig(**SIZES)
        assert (cfg.final_rms, cfg.num_experts, cfg.use_qk_norm, cfg.use_local_attn) == (False, None, False, False)
        assert cfg.use_attn_scale is True
        assert (cfg.init_mode, cfg.n_devices, cfg.tokenizer_name) == ("gpt2", 1, None)
        with pytest.raises(LabError, match="num_experts"):
            HookedTransformerConfig(**SIZES, num_experts=4)


class TestHooks:
    def test_a_predicate_means_the_points_of_an_ordinary_run(self, model: HookedTransformer) -> None:
        _, cache = model.run_with_cache(TOKENS, names_filter=lambda name: "hook_q" in name)
        assert list(cache) == ["blocks.0.attn.hook_q", "blocks.1.attn.hook_q"]
        _, cache = model.run_with_cache(TOKENS, names_filter=lambda name: name.endswith("result"))
        assert list(cache) == ["blocks.0.attn.hook_result", "blocks.1.attn.hook_result"]
        seen: list[str] = []
        note = lambda tensor, hook: seen.append(hook.name)  # noqa: E731
        model.run_with_hooks(TOKENS, fwd_hooks=[(lambda name: "hook_k" in name, note)])
        assert seen == ["blocks.0.attn.hook_k", "blocks.1.attn.hook_k"]

    def test_a_bad_name_is_an_error_with_the_nearest_names(self, model: HookedTransformer) -> None:
        with pytest.raises(UnknownHookError, match=r"closest: 'blocks\.1\.attn\.hook_z'"):
            model.add_hook("blocks.1.attn.hok_z", lambda z, hook: z)

    def test_a_point_replaced_by_its_dotted_name_fires_after_setup(self, model: HookedTransformer) -> None:
        class Doubling(HookPoint):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x * 2)

        name = "blocks.0.attn.hook_z"
        before = model.run_with_cache(TOKENS)[1]["z", 0]
        with model.hooks([(name, lambda z, hook: 2 * z)]):
            expected = model(TOKENS)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, Doubling())
        model.setup()
        assert model.mod_dict[name] is model.hook_dict[name] is model.blocks[0].attn.hook_z
        assert model.hook_dict[name].name == name
        logits, cache = model.run_with_cache(TOKENS)
        assert torch.equal(cache["z", 0], 2 * before)
        torch.testing.assert_close(logits, expected, **CLOSE)

    def test_points_know_their_hooks_by_direction_permanence_and_level(self, model: HookedTransformer) -> None:
        point = model.hook_dict["blocks.1.attn.hook_z"]
        point.add_hook(lambda z, hook: None, level=2)
        point.add_perma_hook(lambda grad, hook: None, dir="bwd")
        assert point.has_hooks()
        assert point.has_hooks("fwd", including_permanent=False)
        assert not point.has_hooks("bwd", including_permanent=False)
        assert point.has_hooks(level=2)
        assert not point.has_hooks(level=1)
        assert point.layer() == 1
        model.reset_hooks()
        assert not point.has_hooks("fwd")
        assert point.has_hooks("bwd")

    def test_a_subclass_may_refuse_a_hook_before_it_is_attached(self) -> None:
        class Careful(HookedTransformer):
            def check_hooks_to_add(self, hook_point: HookPoint, hook_point_name: str, *rest: Any) -> None:
                if hook_point_name.endswith("hook_z"):
                    raise LabError("not here")

        model = Careful.of(of())
        model.add_hook("hook_embed", lambda x, hook: None)
        with pytest.raises(LabError, match="not here"):
            model.run_with_hooks(TOKENS, fwd_hooks=[(lambda name: True, lambda x, hook: None)])
        assert list(model.list_hooks()) == ["hook_embed"]

    def test_contexts_are_cleared_alone(self, model: HookedTransformer) -> None:
        point = model.hook_dict["hook_embed"]
        point.ctx["seen"] = 1
        point.add_hook(lambda x, hook: None)
        model.remove_all_hook_fns()
        assert point.ctx == {"seen": 1}
        model.clear_contexts()
        assert point.ctx == {}

    def test_caching_hooks_fill_the_dict_that_they_were_given(self, model: HookedTransformer) -> None:
        cache: dict[str, Tensor] = {}
        model.cache_some(cache, lambda name: name.endswith("hook_z"))
        model(TOKENS)
        assert list(cache) == ["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"]
        model.reset_hooks()
        model.cache_all(cache, incl_bwd=True)
        model(TOKENS, return_type="loss").backward()
        assert "blocks.0.hook_resid_pre_grad" in cache
        kept, forward, backward = model.get_caching_hooks("hook_embed", remove_batch_dim=True, pos_slice=(1, 3))
        assert backward == []
        model.reset_hooks()
        model.run_with_hooks(TOKENS[:1], fwd_hooks=forward)
        assert kept["hook_embed"].shape == (2, 16)


class TestCache:
    def test_it_changes_in_place_and_gives_itself_back(self, model: HookedTransformer) -> None:
        _, cache = model.run_with_cache(TOKENS[:1])
        assert isinstance(cache, HookedCache)
        assert cache.to("cpu") is cache
        assert cache.remove_batch_dim() is cache
        assert cache["resid_post", -1].shape == (4, 16)
        assert cache.remove_batch_dim() is cache
        assert (cache.has_embed, cache.has_pos_embed) == (True, True)
        with pytest.raises(LabError, match="holds 2 prompts"):
            model.run_with_cache(TOKENS)[1].remove_batch_dim()

    def test_results_of_heads_are_added_on_request(self, model: HookedTransformer) -> None:
        _, cache = model.run_with_cache(TOKENS)
        cache.compute_head_results()
        attn_out = cache["result", 1].sum(2) + model.blocks[1].attn.b_O
        torch.testing.assert_close(attn_out, cache["attn_out", 1], **CLOSE)
        assert cache.apply_slice_to_batch_dim((0, 1))["result", 0].shape == (1, 4, 4, 16)

    @pytest.mark.parametrize(
        ("key", "name"),
        [
            ("k1", "blocks.1.attn.hook_k"),
            ("pre1", "blocks.1.mlp.hook_pre"),
            ("scale1ln1", "blocks.1.ln1.hook_scale"),
            (("scale", 0, "ln2"), "blocks.0.ln2.hook_scale"),
            (("normalized", -1, "ln1"), "blocks.1.ln1.hook_normalized"),
            (("pattern", 0, "attn"), "blocks.0.attn.hook_pattern"),
            (("attn", 0), "blocks.0.attn.hook_pattern"),
            (("post", 1), "blocks.1.mlp.hook_post"),
            (("q", 0, "a"), "blocks.0.attn.hook_q"),
            ("scale", "ln_final.hook_scale"),
            ("embed", "hook_embed"),
        ],
    )
    def test_short_names(self, model: HookedTransformer, key: Any, name: str) -> None:
        _, cache = model.run_with_cache(TOKENS)
        assert cache[key] is cache[name]
        if key != ("normalized", -1, "ln1"):
            assert utils.get_act_name(*(key if isinstance(key, tuple) else (key,))) == name

    def test_a_tuple_of_positions_bounds_a_slice_and_a_list_names_them(self, model: HookedTransformer) -> None:
        _, cache = model.run_with_cache(TOKENS)
        heads = cache.stack_head_results()
        assert torch.equal(cache.stack_head_results(pos_slice=(1, 3)), heads[:, :, 1:3])
        assert torch.equal(cache.stack_head_results(pos_slice=[0, 3]), heads[:, :, [0, 3]])
        neurons = cache.stack_neuron_results(neuron_slice=(2, 5), return_labels=True)[1]
        assert neurons[:3] == ["L0N2", "L0N3", "L0N4"]
        _, kept = model.run_with_cache(TOKENS, pos_slice=(1, 3))
        assert torch.equal(kept["z", 0], cache["z", 0][:, 1:3])

    def test_stacks_can_be_had_along_directions(self, model: HookedTransformer) -> None:
        _, cache = model.run_with_cache(TOKENS)
        one, several = model.W_U[:, 0], model.W_U[:, :3]
        stack, labels = cache.stack_neuron_results(apply_ln=True, return_labels=True)
        along, same = cache.stack_neuron_results(apply_ln=True, return_labels=True, project_output_onto=several)
        assert same == labels
        torch.testing.assert_close(along, stack @ several, **CLOSE)
        torch.testing.assert_close(
            cache.get_full_resid_decomposition(project_output_onto=one).sum(0), cache["resid_post", -1] @ one, **CLOSE
        )
        assert cache.get_neuron_results(1, project_output_onto=one).shape == (2, 4, 64)

    def test_gradients_can_be_switched_off_for_all(self, model: HookedTransformer) -> None:
        _, cache = model.run_with_cache(TOKENS)
        try:
            cache.toggle_autodiff()
            assert not torch.is_grad_enabled()
        finally:
            cache.toggle_autodiff(mode=True)
        assert torch.is_grad_enabled()


class TestWeights:
    @settings(max_examples=8)
    @given(configs(output_logits_soft_cap=None), token_batches())
    def test_a_layer_over_a_model_computes_what_the_model_computes(
        self, cfg: TransformerConfig, tokens: Tensor
    ) -> None:
        plain = random_model(cfg)
        hooked = HookedTransformer.of(plain)
        assert torch.equal(hooked(tokens), plain(tokens))
        assert all(ours is theirs for ours, theirs in zip(hooked.parameters(), plain.parameters(), strict=True))

    def test_a_state_dict_goes_round_and_has_the_names_and_shapes_of_its_namesake(
        self, model: HookedTransformer
    ) -> None:
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert state["blocks.1.attn.W_Q"].shape == (4, 16, 4)
        assert state["unembed.W_U"].shape == (16, 7)
        other = HookedTransformer(SIZES | {"dtype": torch.float64, "act_fn": "gelu_new", "device": "cpu"})
        buffers = {"blocks.0.attn.mask": torch.ones(12, 12), "blocks.0.attn.IGNORE": torch.tensor(-torch.inf)}
        keys = other.load_state_dict(state | buffers)
        assert (keys.missing_keys, keys.unexpected_keys) == ([], [])
        torch.testing.assert_close(other(TOKENS), model(TOKENS), **CLOSE)

    def test_what_does_not_fit_is_listed_and_nothing_is_changed(self, model: HookedTransformer) -> None:
        state, before = dict(model.state_dict()), model(TOKENS)
        state["blocks.7.attn.W_Q"] = state.pop("blocks.1.attn.W_Q")
        with pytest.raises(LabError) as caught:
            model.load_state_dict(state)
        assert "blocks.1.attn.W_Q" in str(caught.value)
        assert "blocks.7.attn.W_Q" in str(caught.value)
        keys = model.load_state_dict(state, strict=False)
        assert keys.missing_keys == ["blocks.1.attn.W_Q"]
        assert keys.unexpected_keys == ["blocks.7.attn.W_Q"]
        with pytest.raises(LabError, match=r"\[3, 3\].*\[7, 16\]"):
            model.load_state_dict(dict(model.state_dict()) | {"embed.W_E": torch.zeros(3, 3)})
        assert torch.equal(model(TOKENS), before)

    def test_inside_another_module_its_weights_have_their_own_names(self, model: HookedTransformer) -> None:
        holder = nn.ModuleDict({"lm": model})
        assert "lm.blocks.0.attn.q.weight" in holder.state_dict()
        holder.load_state_dict(holder.state_dict())

    def test_processing_keeps_the_predictions_and_the_config_object(self, model: HookedTransformer) -> None:
        cfg, before = model.cfg, model(TOKENS).log_softmax(-1)
        model.process_weights_()
        torch.testing.assert_close(model(TOKENS).log_softmax(-1), before, **CLOSE)
        assert model.cfg is cfg
        assert cfg.normalization_type == "LNPre"

    def test_loading_and_processing_is_loading_then_processing(self, model: HookedTransformer) -> None:
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        other = HookedTransformer(SIZES | {"dtype": torch.float64, "act_fn": "gelu_new", "device": "cpu"})
        other.load_and_process_state_dict(state, fold_ln=False, center_unembed=True)
        model.process_weights_(fold_ln=False)
        for name, weight in model.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], weight, **CLOSE)

    def test_shared_keys_are_repeated_for_every_head(self) -> None:
        model = of(GROUPED)
        assert model.W_K.shape == model.W_V.shape == (2, 4, 8, 2)
        assert model.b_K.shape == model.b_V.shape == (2, 4, 2)
        assert torch.equal(model.W_K[:, 0], model.W_K[:, 1])
        assert torch.equal(model.W_K[1, 2], model.blocks[1].attn.W_K[1])
        torch.testing.assert_close(model.QK[0, 3].AB, model.W_Q[0, 3] @ model.W_K[0, 3].T, **CLOSE)

    def test_small_things_that_scripts_ask_for(self, model: HookedTransformer) -> None:
        assert model.all_head_labels() == [f"L{layer}H{head}" for layer in range(2) for head in range(4)]
        assert model.W_E_pos.shape == (7 + 12, 16)
        assert model.n_params_total == sum(p.numel() for p in model.parameters())
        assert model.to(torch.float32, print_details=False) is model
        assert model.cfg.dtype == torch.float32
        assert model.cpu() is model

    def test_it_is_saved_and_loaded_as_any_model_of_the_lab(self, speaker: HookedTransformer, tmp_path: Path) -> None:
        speaker.process_weights_()
        again = load(speaker.save(tmp_path / "model"))
        assert type(again) is GPT
        assert torch.equal(again(TOKENS), speaker(TOKENS))

    def test_an_analysis_takes_it_for_any_model_of_the_lab(self) -> None:
        plain = load("town")
        hooked = HookedTransformer.of(plain)
        pairs = tasks.ioi(plain, n=4, seed=0)
        ours, theirs = (activation_patching(each, pairs, site="z").values for each in (plain, hooked))
        assert (ours == theirs).all()


class TestFromPretrained:
    def test_the_weights_are_processed_and_the_predictions_kept(self) -> None:
        plain, hooked = load("induction-2l"), HookedTransformer.from_pretrained("induction-2l")
        raw = HookedTransformer.from_pretrained_no_processing("induction-2l")
        assert hooked.cfg.normalization_type == "LNPre"
        assert torch.equal(raw(TOKENS), plain(TOKENS))
        # float32, logits of order ten: 1e-4 is a hundred roundings.
        expected = plain(TOKENS).log_softmax(-1)
        torch.testing.assert_close(hooked(TOKENS).log_softmax(-1), expected, atol=1e-4, rtol=1e-4)
        assert hooked.W_U.mean(-1).abs().max() < 1e-6
        assert hooked.W_O.mean(-1).abs().max() < 1e-6

    def test_options_are_those_of_its_namesake(self) -> None:
        model = HookedTransformer.from_pretrained(
            "induction-2l", fold_ln=False, dtype=torch.float64, default_prepend_bos=False, default_padding_side="left"
        )
        assert model.cfg.normalization_type == "LN"
        assert model.cfg.dtype == torch.float64
        assert model.to_tokens(["ab", "a"]).shape == (2, 2)
        assert model.tokenizer is not None
        assert model.tokenizer.padding_side == "left"
        early = HookedTransformer.from_pretrained_no_processing("induction-2l", checkpoint_value=400)
        assert torch.equal(early(TOKENS), load("induction-2l", revision="step-400")(TOKENS))

    def test_less_of_a_model(self) -> None:
        whole = HookedTransformer.from_pretrained("town", fold_ln=False, center_unembed=False)
        part = HookedTransformer.from_pretrained(
            "town", fold_ln=False, center_unembed=False, first_n_layers=2, n_ctx=10
        )
        assert (part.cfg.n_layers, part.cfg.n_ctx, len(part.blocks)) == (2, 10, 2)
        assert torch.equal(part(TOKENS, stop_at_layer=2), whole(TOKENS, stop_at_layer=2))
        with pytest.raises(LabError, match="first_n_layers=9; expected 1 to 4"):
            HookedTransformer.from_pretrained("town", first_n_layers=9)
        with pytest.raises(LabError, match="n_ctx=1000"):
            HookedTransformer.from_pretrained("town", n_ctx=1000)

    @pytest.mark.parametrize("kind", ["gpt2", "llama"])
    def test_a_model_of_transformers_gives_its_weights(self, kind: str) -> None:
        torch.manual_seed(0)
        theirs: Any = (
            GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=7, n_positions=12))
            if kind == "gpt2"
            else LlamaForCausalLM(
                LlamaConfig(
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    hidden_size=16,
                    intermediate_size=24,
                    vocab_size=7,
                    max_position_embeddings=12,
                )
            )
        )
        model = HookedTransformer.from_pretrained(kind, hf_model=theirs.double().eval(), dtype="float64")
        expected = theirs(TOKENS).logits.log_softmax(-1)
        # The RMS norms of transformers run in float32, whatever the dtype.
        torch.testing.assert_close(model(TOKENS).log_softmax(-1), expected, atol=1e-6, rtol=1e-6)
        assert model.cfg.model_name == kind

    def test_a_step_of_the_processing_that_is_left_out_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        theirs = LlamaForCausalLM(
            LlamaConfig(num_hidden_layers=1, num_attention_heads=2, hidden_size=8, intermediate_size=8, vocab_size=7)
        )
        HookedTransformer.from_pretrained("llama", hf_model=theirs)
        assert "center_writing_weights was left out" in caplog.text

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"n_devices": 2}, "one device"), ({"load_in_4bit": True}, "full-precision"), ({"dtype": "int8"}, "dtype")],
    )
    def test_what_the_lab_does_not_do_is_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(LabError, match=message):
            HookedTransformer.from_pretrained("induction-2l", **options)


class TestText:
    def test_a_start_token_goes_before_every_text_when_wanted(self, speaker: HookedTransformer) -> None:
        assert speaker.to_tokens("ab").tolist() == [[6, 0, 1]]
        assert speaker.to_tokens("<|endoftext|>ab").tolist() == [[6, 6, 0, 1]]
        assert speaker.to_tokens("<|endoftext|>ab", prepend_bos=False).tolist() == [[6, 0, 1]]
        assert speaker.to_tokens(["ab", "a"], padding_side="left").tolist() == [[6, 0, 1], [6, 6, 0]]
        assert speaker.to_tokens("abcdabcdabcdabcd").shape == (1, 12)
        assert speaker.to_tokens("abcdabcdabcdabcd", truncate=False).shape == (1, 17)

    def test_the_side_of_the_tokenizer_holds_where_none_is_given(self, speaker: HookedTransformer) -> None:
        assert speaker.tokenizer is not None
        assert speaker.to_tokens(["ab", "a"])[1].tolist() == [6, 0, 6]
        speaker.tokenizer.padding_side = "left"
        assert speaker.to_tokens(["ab", "a"])[1].tolist() == [6, 6, 0]
        assert speaker.to_tokens(["ab", "a"], padding_side="right")[1].tolist() == [6, 0, 6]
        with pytest.raises(LabError, match="unknown padding side 'top'"):
            speaker.tokenizer.padding_side = "top"

    @pytest.mark.parametrize("bos", [True, False])
    def test_ids_that_are_padded_on_the_left_are_masked_by_themselves(
        self, speaker: HookedTransformer, bos: bool
    ) -> None:
        speaker.set_tokenizer(characters(LETTERS), default_padding_side="left")
        texts = ["abcab", "ad", "c"]
        tokens = speaker.to_tokens(texts, prepend_bos=bos)
        together = speaker(tokens, prepend_bos=bos)
        for text, row in zip(texts, together, strict=True):
            alone = speaker(speaker.to_tokens(text, prepend_bos=bos), prepend_bos=bos)[0]
            torch.testing.assert_close(row[-len(alone) :], alone, **CLOSE)

    @given(st.lists(st.text(alphabet=LETTERS, min_size=1, max_size=6), min_size=1, max_size=3))
    @settings(max_examples=6)
    def test_a_stream_and_its_mask_resume_what_a_text_started(self, texts: list[str]) -> None:
        speaker = of(tokenizer=characters(LETTERS), default_padding_side="left")
        resid, tokens, shortformer, mask = speaker.input_to_embed(texts)
        assert shortformer is None
        assert torch.equal(tokens, speaker.to_tokens(texts))
        loss = speaker(resid, start_at_layer=0, tokens=tokens, attention_mask=mask, return_type="loss")
        torch.testing.assert_close(loss, speaker(texts, return_type="loss"), **CLOSE)

    def test_texts_tokens_and_numbers_are_read_back(self, speaker: HookedTransformer) -> None:
        assert speaker.to_str_tokens("ab") == ["<|endoftext|>", "a", "b"]
        assert speaker.to_str_tokens(["a", "bc"], prepend_bos=False) == [["a"], ["b", "c"]]
        assert speaker.to_str_tokens([torch.tensor([0]), torch.tensor([1, 2])]) == [["a"], ["b", "c"]]
        assert speaker.to_string(speaker.to_tokens("ab")) == ["<|endoftext|>ab"]
        assert speaker.to_string(torch.tensor(2)) == "c"
        assert speaker.to_single_token("d") == 3
        assert speaker.to_single_str_token(3) == "d"
        with pytest.raises(LabError, match="is 2 tokens"):
            speaker.to_single_token("da")

    def test_where_a_token_stands(self, speaker: HookedTransformer) -> None:
        assert speaker.get_token_position("a", "aba") == 1
        assert speaker.get_token_position("a", "aba", mode="last") == 3
        assert speaker.get_token_position(1, torch.tensor([[0, 1]])) == 1
        assert speaker.get_token_position("a", "aba", prepend_bos=False) == 0
        with pytest.raises(LabError, match="'d' is not among"):
            speaker.get_token_position("d", "aba")

    def test_one_token_has_one_direction(self, speaker: HookedTransformer) -> None:
        for token in ("c", 2, torch.tensor(2), torch.tensor([2]), torch.tensor([[2]])):
            assert torch.equal(speaker.tokens_to_residual_directions(token), speaker.W_U[:, 2])
        assert speaker.tokens_to_residual_directions(TOKENS).shape == (2, 4, 16)

    def test_a_tokenizer_of_transformers_does_as_well(self) -> None:
        theirs = PreTrainedTokenizerFast.from_pretrained(ZOO / "town")
        model = HookedTransformer.from_pretrained("town", tokenizer=theirs, default_padding_side="left")
        assert model.to_tokens("Mary gave").tolist() == load("town").to_tokens("Mary gave").tolist()
        assert model.tokenizer is not None
        assert model.tokenizer.decode(torch.tensor([0, 1265]), skip_special_tokens=True) == "Mary"
        assert model.tokenizer.batch_decode([[0, 1265]]) == ["<|endoftext|>Mary"]
        assert model.tokenizer.vocab_size == len(model.tokenizer.vocab) == 1495
        model.tokenizer = theirs
        assert model.to_single_token("Mary") == 1265
        with pytest.raises(LabError, match=r"expected a models\.tokenizers\.Tokenizer"):
            model.set_tokenizer("gpt2")

    def test_logits_and_loss_come_back_by_name(self, model: HookedTransformer) -> None:
        both = model(TOKENS, return_type="both")
        assert torch.equal(both.logits, model(TOKENS))
        assert torch.equal(both.loss, model.loss_fn(both.logits, TOKENS))
        with pytest.raises(LabError, match="shortformer_pos_embed"):
            model(TOKENS, shortformer_pos_embed=torch.zeros(1))


class TestGenerate:
    def test_greedy_writes_what_the_naive_loop_writes(self, speaker: HookedTransformer) -> None:
        row = speaker.to_tokens("ab")
        for _ in range(5):
            row = torch.cat([row, speaker(row)[:, -1:].argmax(-1)], 1)
        options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "stop_at_eos": False, "verbose": False}
        assert torch.equal(speaker.generate(speaker.to_tokens("ab"), **options), row)
        text = speaker.tokenizer.decode(row[0], skip_special_tokens=True)  # type: ignore[union-attr]
        assert speaker.generate("ab", **options) == speaker.generate(["ab"], **options) == text
        assert torch.equal(speaker.generate("ab", return_type="tokens", use_past_kv_cache=False, **options), row)
        assert speaker.generate(row[:, :3], return_type="str", **options) == text
        assert len(speaker.generate(["ab", "c"], **options)) == 2

    def test_draws_follow_torchs_own_state(self, speaker: HookedTransformer) -> None:
        rows = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            rows.append(speaker.generate(TOKENS, max_new_tokens=8, temperature=3.0, stop_at_eos=False))
        assert torch.equal(rows[0], rows[1])
        assert not torch.equal(rows[0], rows[2])

    def test_a_large_penalty_on_frequency_writes_every_token_once(self, speaker: HookedTransformer) -> None:
        torch.manual_seed(0)
        row = torch.tensor([[6]])
        written = speaker.generate(row, max_new_tokens=6, freq_penalty=1e4, stop_at_eos=False, prepend_bos=True)
        assert sorted(written[0].tolist()) == list(range(7))

    def test_it_stops_at_the_tokens_that_it_is_given(self, speaker: HookedTransformer) -> None:
        free = speaker.generate(TOKENS[:1], max_new_tokens=6, do_sample=False, stop_at_eos=False)
        stop = int(free[0, 5])
        halted = speaker.generate(TOKENS[:1], max_new_tokens=6, do_sample=False, eos_token_id=[stop])
        assert halted[0, -1] == stop
        assert halted.shape[1] <= 6

    def test_what_it_cannot_do_is_said(self, model: HookedTransformer) -> None:
        with pytest.raises(LabError, match="give eos_token_id"):
            model.generate(TOKENS)
        with pytest.raises(LabError, match="unknown return_type 'embeds'"):
            model.generate(TOKENS, return_type="embeds")
        with pytest.raises(LabError, match="has no tokenizer"):
            model.generate(TOKENS, stop_at_eos=False, return_type="str")


class TestHelpers:
    def test_a_cache_of_keys_goes_on_where_it_stopped_and_frozen_ones_stay(self, model: HookedTransformer) -> None:
        past = KeyValueCache.init_cache(model.cfg, model.cfg.device, 2)
        model(TOKENS[:, :2], past_kv_cache=past)
        past.freeze()
        first = model(TOKENS[:, 2:], past_kv_cache=past)
        again = model(TOKENS[:, 2:], past_kv_cache=past)
        assert torch.equal(first, again)
        torch.testing.assert_close(first, model(TOKENS)[:, 2:], **CLOSE)
        past.unfreeze()
        model(TOKENS[:, 2:], past_kv_cache=past)
        assert len(past) == 4

    def test_numbers_and_corners(self, model: HookedTransformer) -> None:
        assert utils.to_numpy(torch.ones(2, dtype=torch.bfloat16)).dtype == "float32"
        assert utils.to_numpy([1, 2]).tolist() == [1, 2]
        assert utils.get_corner(torch.arange(25).reshape(5, 5), 2).tolist() == [[0, 1], [5, 6]]
        assert utils.get_corner(model.OV[0, 0], 2).shape == (2, 2)
        assert utils.remove_batch_dim(torch.ones(1, 3)).shape == (3,)
        assert torch.equal(utils.transpose(TOKENS.float()), TOKENS.float().T)

    def test_accuracy_and_loss(self, model: HookedTransformer) -> None:
        logits = nn.functional.one_hot(TOKENS.roll(-1, 1), 7).double() * 100
        assert utils.lm_accuracy(logits, TOKENS) == 1
        assert utils.lm_accuracy(logits, TOKENS, per_token=True).shape == (2, 3)
        assert utils.lm_cross_entropy_loss(logits, TOKENS) < 1e-9

    @pytest.mark.parametrize("answer", ["Mary", ["Mary", "John"]])
    def test_an_answer_is_ranked_in_print(self, answer: Any, capsys: pytest.CaptureFixture[str]) -> None:
        model = HookedTransformer.from_pretrained("town")
        utils.test_prompt("When Mary and John went to the store, John gave a drink to", answer, model, top_k=3)
        printed = capsys.readouterr().out
        assert "answer, rank 0" in printed
        assert "(' Mary', 0)" in printed
        assert printed.count("top 0") == (1 if answer == "Mary" else 2)


class _Sizes(TorchDispatchMode):
    """Notes how many numbers each tensor holds that an operation makes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {each.untyped_storage().data_ptr() for each in args if isinstance(each, Tensor)}
        if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in given:
            self.largest = max(self.largest, made.numel())
        return made


class TestTraps:
    """What goes wrong in TransformerLens 3 and 4, and does not here."""

    def test_starting_at_a_layer_runs_no_block_before_it(self) -> None:
        model = of(TransformerConfig(n_layers=4, n_heads=2, d_model=8, d_vocab=7, n_ctx=8))
        resid, whole = model(TOKENS, stop_at_layer=3), model(TOKENS)
        ran: list[int] = []
        for layer, block in enumerate(model.blocks):
            block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
        torch.testing.assert_close(model(resid, start_at_layer=3), whole, **CLOSE)
        assert ran == [3]

    def test_a_hook_is_called_with_the_name_that_was_asked_for(self, model: HookedTransformer) -> None:
        called: list[str] = []
        names = [name for name in model.hook_dict if "resid" in name or name.endswith("_in")]
        note = lambda tensor, hook: called.append(hook.name)  # noqa: E731
        for name in names:
            model.run_with_hooks(TOKENS, fwd_hooks=[(name, note)])
        assert called == names

    def test_results_of_heads_never_hold_an_axis_of_d_head_and_one_of_d_model(self) -> None:
        model = of(TransformerConfig(n_layers=1, n_heads=4, d_model=64, d_head=16, d_vocab=7, n_ctx=8, attn_only=True))
        model.cfg.use_attn_result = True
        tokens = TOKENS.repeat(8, 1)
        with _Sizes() as sizes:
            model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_result", lambda result, hook: 2 * result)])
        assert sizes.largest == tokens.numel() * 4 * 64  # [batch pos head d_model]; with d_head 16 times as many

    def test_a_forward_copies_no_weights(self) -> None:
        model = of(TransformerConfig(n_layers=1, n_heads=4, d_model=64, d_vocab=100, n_ctx=8))
        with torch.no_grad(), _Sizes() as sizes:
            model(TOKENS)
            model.run_with_cache(TOKENS)
        assert model.W_Q.numel() == 64 * 64 > sizes.largest

    def test_no_cache_keeps_the_logits(self, model: HookedTransformer) -> None:
        logits, cache = model.run_with_cache(TOKENS)
        assert all(tensor.shape[-1] != model.cfg.d_vocab for tensor in cache.values())
        assert logits.untyped_storage().data_ptr() not in {t.untyped_storage().data_ptr() for t in cache.values()}

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_attention_of_half_precision_sums_to_one(self, dtype: torch.dtype) -> None:
        model = of(TransformerConfig(n_layers=2, n_heads=2, d_model=16, d_vocab=7, n_ctx=12)).to(dtype)
        _, cache = model.run_with_cache(torch.randint(7, (4, 12)))
        for layer in range(2):
            rows = cache["pattern", layer].sum(-1)
            # A float32 softmax of 12 entries: 1e-6 is ten roundings.
            torch.testing.assert_close(rows, torch.ones_like(rows), atol=1e-6, rtol=0)
            assert torch.isfinite(cache["attn_scores", layer]).all()

    def test_an_edit_in_place_under_a_backward_hook_leaves_the_cache_and_the_gradient_right(
        self, model: HookedTransformer
    ) -> None:
        name, grads = "blocks.1.hook_resid_pre", []

        def silence(resid: Tensor, hook: HookPoint) -> Tensor:
            resid[:, 0] = 0
            return resid

        before = model.run_with_cache(TOKENS, names_filter=name)[1][name].clone()
        cache, forward, _ = model.get_caching_hooks(name)
        with model.hooks([*forward, (name, silence)], [(name, lambda grad, hook: grads.append(grad))]):
            model(TOKENS, return_type="loss").backward()
        assert torch.equal(cache[name], before)
        assert torch.isfinite(grads[0]).all()
        assert grads[0][:, 0].abs().sum() > 0  # of what comes after the edit, where position 0 is still read

    def test_parts_sum_to_the_logit_difference_whether_or_not_the_norm_is_folded(
        self, model: HookedTransformer
    ) -> None:
        answers = (torch.tensor([1, 2]), torch.tensor([3, 0]))
        for _ in range(2):
            logits, cache = model.run_with_cache(TOKENS)
            stack = cache.get_full_resid_decomposition(pos_slice=-1)
            parts = cache.logit_attrs(stack, *answers, pos_slice=-1).sum(0)
            right, wrong = logits[:, -1].gather(1, torch.stack(answers, 1)).unbind(1)
            torch.testing.assert_close(parts + cache.unembed_bias_attrs(*answers), right - wrong, **CLOSE)
            model.process_weights_()
