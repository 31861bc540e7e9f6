"""`run_with_cache` keeps what was asked for, where it was asked for, and no byte more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from interp import ActivationCache, Site
from interp.errors import LabError, UnknownHookError
from interp.sites import axes_of
from models import GPT, TransformerConfig
from tests.strategies import models, random_model, token_batches

TOKENS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
# float64 models: only the order of summation differs between two ways to the same number.
EXACT: Any = {"atol": 1e-10, "rtol": 1e-10}


@pytest.fixture
def model() -> GPT:
    return random_model(TransformerConfig(n_layers=3, n_heads=2, d_model=8, d_vocab=11, n_ctx=8, d_mlp=12))


def position_axis(name: str) -> int | None:
    axes = axes_of(name)
    assert axes is not None
    return next((i for i, axis in enumerate(axes) if axis in ("pos", "q_pos")), None)


class TestNames:
    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            ("blocks.1.attn.hook_z", ["blocks.1.attn.hook_z"]),
            ("blocks.*.hook_resid_pre", [f"blocks.{layer}.hook_resid_pre" for layer in range(3)]),
            (["blocks.2.hook_resid_post", "hook_embed"], ["hook_embed", "blocks.2.hook_resid_post"]),
            (["hook_embed", "blocks.[01].attn.hook_q"], ["hook_embed", "blocks.0.attn.hook_q", "blocks.1.attn.hook_q"]),
            (lambda name: name.endswith("scale") and "ln1" in name, [f"blocks.{i}.ln1.hook_scale" for i in range(3)]),
            ([], []),
        ],
        ids=["string", "glob", "list", "list of globs", "predicate", "nothing"],
    )
    def test_a_filter_keeps_what_it_names_in_the_order_of_the_forward(
        self, model: GPT, names: Any, expected: list[str]
    ) -> None:
        _, cache = model.run_with_cache(TOKENS, names_filter=names)
        assert list(cache) == expected

    def test_a_glob_that_matches_nothing_is_refused(self, model: GPT) -> None:
        with pytest.raises(UnknownHookError, match=r"no hook named 'blocks\.\*\.hook_resid_pro'"):
            model.run_with_cache(TOKENS, names_filter="blocks.*.hook_resid_pro")

    def test_what_is_kept_does_not_depend_on_the_filter(self, model: GPT) -> None:
        _, everything = model.run_with_cache(TOKENS)
        for name in everything:
            _, one = model.run_with_cache(TOKENS, names_filter=name)
            torch.testing.assert_close(one[name], everything[name], **EXACT)


class TestKeys:
    @pytest.mark.parametrize(
        ("key", "name"),
        [
            (("resid_post", 2), "blocks.2.hook_resid_post"),
            (("resid_post", -1), "blocks.2.hook_resid_post"),
            (("attn", 0), "blocks.0.attn.hook_pattern"),
            (("pattern", 0, "attn"), "blocks.0.attn.hook_pattern"),
            (("scale", 0, "ln1"), "blocks.0.ln1.hook_scale"),
            (("normalized", 1, "ln2"), "blocks.1.ln2.hook_normalized"),
            (("pre", 1, "mlp"), "blocks.1.mlp.hook_pre"),
            (("post", 1), "blocks.1.mlp.hook_post"),
            (("scale",), "ln_final.hook_scale"),
            (("embed",), "hook_embed"),
            ("embed", "hook_embed"),
            ("blocks.1.attn.hook_z", "blocks.1.attn.hook_z"),
            (Site("z", 1), "blocks.1.attn.hook_z"),
        ],
        ids=str,
    )
    def test_each_short_form_is_its_hook_name(self, model: GPT, key: Any, name: str) -> None:
        _, cache = model.run_with_cache(TOKENS)
        assert torch.equal(cache[key], cache.cache_dict[name])
        assert key in cache

    def test_a_site_indexes_its_head_and_position(self, model: GPT) -> None:
        _, cache = model.run_with_cache(TOKENS)
        assert torch.equal(cache[Site("z", 1, head=1, pos=2)], cache["z", 1][:, 2, 1])
        assert torch.equal(cache[Site("pattern", 1, head=1, pos=2)], cache["pattern", 1][:, 1, 2])
        single = cache.apply_slice_to_batch_dim(0)
        assert torch.equal(single[Site("z", 1, head=1, pos=2)], cache["z", 1][0, 2, 1])

    @pytest.mark.parametrize("key", [("resid_post", 9), ("resid_pots", 1), "nonsense", "blocks.0.hook_nothing", 3])
    def test_what_is_not_there_is_not_contained(self, model: GPT, key: Any) -> None:
        _, cache = model.run_with_cache(TOKENS)
        assert key not in cache

    @pytest.mark.parametrize("key", [("resid_post", 9), ("resid_pots", 1), "nonsense", "blocks.0.hook_nothing"])
    def test_asking_for_what_is_not_there_is_a_key_error_in_words(self, model: GPT, key: Any) -> None:
        _, cache = model.run_with_cache(TOKENS)
        with pytest.raises(UnknownHookError) as error:
            cache[key]
        assert "\n" not in str(error.value)
        assert cache.get(key) is None

    def test_the_error_lists_the_nearest_cached_names(self, model: GPT) -> None:
        _, cache = model.run_with_cache(TOKENS, names_filter="blocks.*.hook_resid_pre")
        with pytest.raises(UnknownHookError, match=r"this cache holds 3.*closest: 'blocks\.1\.hook_resid_pre'"):
            cache["resid_post", 1]

    def test_a_cache_is_a_mapping(self, model: GPT) -> None:
        _, cache = model.run_with_cache(TOKENS)
        assert len(cache) == len(list(cache)) == len(dict(cache.items()))
        assert set(cache.keys()) == set(cache.cache_dict)


class TestPositions:
    @given(
        models(),
        token_batches(min_pos=3),
        st.sampled_from([0, -1, slice(1, None), slice(None, None, 2), slice(-2, None), [0, 2], [2, 0]]),
    )
    def test_pos_slice_keeps_those_positions_and_frees_the_rest(self, model: GPT, tokens: Tensor, pos: Any) -> None:
        _, whole = model.run_with_cache(tokens, names_filter=lambda name: True)
        _, part = model.run_with_cache(tokens, names_filter=lambda name: True, pos_slice=pos)
        kept = torch.arange(tokens.shape[1])[[pos] if isinstance(pos, int) else pos]  # an integer keeps its axis
        for name, tensor in part.items():
            axis = position_axis(name)
            expected = whole[name] if axis is None else whole[name].index_select(axis, kept)
            assert torch.equal(tensor, expected), name
            assert tensor.untyped_storage().nbytes() == tensor.nbytes, name

    def test_positions_of_gradients_are_sliced_too(self, model: GPT) -> None:
        _, cache = model.run_with_cache(TOKENS, return_type="loss", incl_bwd=True, pos_slice=-1)
        assert cache["blocks.0.attn.hook_z_grad"].shape == (2, 1, 2, 4)
        assert cache["blocks.0.attn.hook_pattern_grad"].shape == (2, 2, 1, 4)


class TestBatchAxis:
    def test_remove_batch_dim_drops_the_axis_of_one_prompt(self, model: GPT) -> None:
        _, batched = model.run_with_cache(TOKENS[:1])
        _, cache = model.run_with_cache(TOKENS[:1], remove_batch_dim=True)
        assert cache["resid_post", 0].shape == (4, 8)
        assert not cache.has_batch_dim
        for other in (batched.remove_batch_dim(), batched.apply_slice_to_batch_dim(0)):
            assert all(torch.equal(cache[name], other[name]) for name in cache)
        assert cache.remove_batch_dim() is cache

    def test_it_is_refused_for_several_prompts(self, model: GPT) -> None:
        with pytest.raises(LabError, match="holds 2 prompts, expected 1"):
            model.run_with_cache(TOKENS, remove_batch_dim=True)
        assert all(not point.fwd_hooks for point in model.hook_points())
        _, cache = model.run_with_cache(TOKENS)
        with pytest.raises(LabError, match="holds 2 prompts, expected 1"):
            cache.remove_batch_dim()

    def test_slices_of_the_batch_keep_the_axis(self, model: GPT) -> None:
        _, cache = model.run_with_cache(TOKENS)
        assert cache.apply_slice_to_batch_dim(slice(1, 2))["z", 0].shape == (1, 4, 2, 4)
        assert torch.equal(cache.apply_slice_to_batch_dim([1, 0])["z", 0], cache["z", 0].flip(0))

    def test_a_batch_axis_that_is_gone_cannot_be_sliced(self, model: GPT) -> None:
        _, cache = model.run_with_cache(TOKENS[:1], remove_batch_dim=True)
        with pytest.raises(LabError, match="no batch axis"):
            cache.apply_slice_to_batch_dim(0)


class TestWhatIsKept:
    @given(models(), token_batches())
    def test_tensors_are_detached_and_hold_no_more_bytes_than_their_numbers(self, model: GPT, tokens: Tensor) -> None:
        _, cache = model.run_with_cache(tokens, names_filter=lambda name: True)
        for name, tensor in cache.items():
            assert not tensor.requires_grad, name
            assert tensor.untyped_storage().nbytes() <= tensor.nbytes, name

    def test_a_bare_dict_on_request(self, model: GPT) -> None:
        _, cache = model.run_with_cache(TOKENS, return_cache_object=False)
        assert type(cache) is dict
        assert isinstance(model.run_with_cache(TOKENS)[1], ActivationCache)

    def test_logits_come_back_with_their_graph(self, model: GPT) -> None:
        logits, _ = model.run_with_cache(TOKENS)
        assert logits.requires_grad

    @given(models(), token_batches(), st.data())
    def test_stopping_at_a_layer_keeps_what_came_before_it(
        self, model: GPT, tokens: Tensor, data: st.DataObject
    ) -> None:
        stop = data.draw(st.integers(0, model.cfg.n_layers), label="stop")
        resid, cache = model.run_with_cache(tokens, stop_at_layer=stop)
        _, whole = model.run_with_cache(tokens)
        layers = {int(name.split(".")[1]) for name in cache if name.startswith("blocks.")}
        assert layers == set(range(stop))
        assert "ln_final.hook_scale" not in cache
        assert all(torch.equal(cache[name], whole[name]) for name in cache)
        last = whole["resid_post", stop - 1] if stop else whole["resid_pre", 0]
        assert torch.equal(resid, last)

    @given(models(), token_batches())
    def test_gradients_are_those_of_autograd(self, model: GPT, tokens: Tensor) -> None:
        inputs: dict[str, Tensor] = {}

        def own_tensor(tensor: Tensor, hook: Any) -> Tensor:
            own = tensor + 0.0
            inputs[hook.name] = own if own.requires_grad else own.requires_grad_()
            return inputs[hook.name]

        ordinary = model.select_hooks(None)
        with model.hooks([(name, own_tensor) for name in ordinary]):
            loss = model(tokens, return_type="loss")
        expected = torch.autograd.grad(loss, [inputs[name] for name in ordinary])
        kept_loss, cache = model.run_with_cache(tokens, return_type="loss", incl_bwd=True)
        torch.testing.assert_close(kept_loss, loss, **EXACT)
        assert set(cache) == {*ordinary, *(f"{name}_grad" for name in ordinary)}
        for name, grad in zip(ordinary, expected, strict=True):
            torch.testing.assert_close(cache[f"{name}_grad"], grad, msg=name, **EXACT)

    def test_gradients_of_frozen_weights_too(self, model: GPT) -> None:
        _, trained = model.run_with_cache(TOKENS, return_type="loss", incl_bwd=True)
        _, frozen = model.requires_grad_(False).run_with_cache(TOKENS, return_type="loss", incl_bwd=True)
        for name in trained:
            torch.testing.assert_close(frozen[name], trained[name], msg=name, **EXACT)

    def test_a_backward_pass_needs_a_scalar(self, model: GPT) -> None:
        with pytest.raises(LabError, match="needs a scalar"):
            model.run_with_cache(TOKENS, incl_bwd=True)
        with pytest.raises(LabError, match="needs a scalar"), torch.no_grad():
            model.run_with_cache(TOKENS, return_type="loss", incl_bwd=True)
        assert all(not (point.fwd_hooks or point.bwd_hooks) for point in model.hook_points())


class TestDevices:
    def test_on_the_cpu_the_numbers_are_the_same(self, model: GPT) -> None:
        _, here = model.run_with_cache(TOKENS)
        _, there = model.run_with_cache(TOKENS, device="cpu")
        assert all(torch.equal(here[name], there[name]) for name in here)
        moved = here.to("cpu")
        assert all(torch.equal(here[name], moved[name]) for name in here)

    @pytest.mark.gpu
    def test_from_a_gpu_every_copy_is_complete_when_the_cache_returns(self) -> None:
        cfg = TransformerConfig(n_layers=2, n_heads=4, d_model=64, d_vocab=97, n_ctx=256)
        model = random_model(cfg, dtype=torch.float32).to("cuda")
        tokens = torch.randint(97, (16, 256), device="cuda")
        _, there = model.run_with_cache(tokens)
        _, here = model.run_with_cache(tokens, device="cpu", pos_slice=slice(5, 9))
        assert {tensor.device.type for tensor in here.values()} == {"cpu"}
        for name in here:
            axis = position_axis(name)
            expected = there[name] if axis is None else there[name].narrow(axis, 5, 4)
            assert torch.equal(here[name], expected.cpu()), name


class TestStacking:
    def test_one_kind_of_every_layer(self, model: GPT) -> None:
        _, cache = model.run_with_cache(TOKENS)
        stacked = cache.stack_activation("z")
        assert torch.equal(stacked, torch.stack([cache["z", layer] for layer in range(3)]))
        assert torch.equal(cache.stack_activation("scale", 2, "ln1")[1], cache["scale", 1, "ln1"])
        scores = rearrange(cache.stack_activation("attn_scores"), "layer b head q k -> b q (layer head) k")
        assert scores.shape == (2, 4, 6, 4)

    def test_a_cache_says_how_large_it_is(self, model: GPT) -> None:
        _, cache = model.run_with_cache(TOKENS, names_filter="hook_embed")
        assert repr(cache) == "ActivationCache(1 activations, 0.0 MiB)"
