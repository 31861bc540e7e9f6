"""Hooks: called as promised, gone when promised, and never able to corrupt what is not theirs."""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

import pytest
import torch
from einops import repeat
from hypothesis import given, settings
from torch import Tensor

from interp.errors import LabError, UnknownHookError
from interp.hooks import HookedModule, HookPoint
from interp.markers import pure
from interp.sites import axes_of
from models import GPT, TransformerConfig
from models.attention import attention_scores, causal_mask, mix_values
from tests.strategies import configs, models, random_model, token_batches

TOKENS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
# float64 models: only the order of summation differs between two ways to the same number.
EXACT = {"atol": 1e-10, "rtol": 1e-10}


def small(**fixed: Any) -> GPT:
    sizes = {"n_layers": 2, "n_heads": 2, "d_model": 8, "d_vocab": 11, "n_ctx": 8, "d_mlp": 12}
    return random_model(TransformerConfig(**(sizes | fixed)))


@pytest.fixture
def model() -> GPT:
    return small()


def attached(model: HookedModule) -> int:
    return sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in model.hook_points())


def double(tensor: Tensor, hook: HookPoint) -> Tensor:
    return tensor * 2


def double_in_place(tensor: Tensor, hook: HookPoint) -> None:
    tensor *= 2


def ignore(tensor: Tensor, hook: HookPoint) -> None:
    return None


class TestCalling:
    def test_a_hook_gets_the_tensor_and_its_point(self, model: GPT) -> None:
        seen = []
        name = "blocks.1.attn.hook_z"
        model.run_with_hooks(
            TOKENS, fwd_hooks=[(name, lambda z, hook: seen.append((z.shape, hook.name, hook.layer())))]
        )
        assert seen == [((2, 4, 2, 4), name, 1)]

    def test_none_keeps_the_activation_and_a_tensor_replaces_it(self, model: GPT) -> None:
        plain = model(TOKENS)
        assert torch.equal(model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.hook_mlp_out", ignore)]), plain)
        _, cache = model.run_with_cache(TOKENS)
        replaced = model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.hook_mlp_out", double)])
        by_hand = model(cache["resid_post", 0] + cache["mlp_out", 0], start_at_layer=1)
        torch.testing.assert_close(replaced, by_hand, **EXACT)

    def test_writing_in_place_equals_returning_the_edited_tensor(self, model: GPT) -> None:
        for name in model.hook_dict:
            returned = model.run_with_hooks(TOKENS, fwd_hooks=[(name, double)])
            written = model.run_with_hooks(TOKENS, fwd_hooks=[(name, double_in_place)])
            assert torch.equal(returned, written), name

    def test_a_predicate_attaches_to_every_point_that_it_accepts(self, model: GPT) -> None:
        seen = []
        chosen = lambda name: name.endswith("hook_z")  # noqa: E731
        model.run_with_hooks(TOKENS, fwd_hooks=[(chosen, lambda z, hook: seen.append(hook.name))])
        assert seen == ["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"]

    def test_hooks_run_in_the_order_given_and_prepended_ones_first(self, model: GPT) -> None:
        order: list[str] = []
        note = lambda word: lambda tensor, hook: order.append(word)  # noqa: E731
        model.add_hook("hook_embed", note("second"))
        model.add_hook("hook_embed", note("third"))
        model.add_hook("hook_embed", note("first"), prepend=True)
        model(TOKENS)
        assert order == ["first", "second", "third"]

    def test_a_later_hook_sees_what_an_earlier_one_returned(self, model: GPT) -> None:
        seen = []
        hooks = [("hook_embed", double), ("hook_embed", lambda x, hook: seen.append(x))]
        model.run_with_hooks(TOKENS, fwd_hooks=hooks)
        torch.testing.assert_close(seen[0], 2 * model.embed(TOKENS), **EXACT)

    def test_a_points_ctx_is_the_users_until_it_is_cleared(self, model: GPT) -> None:
        def remember(tensor: Tensor, hook: HookPoint) -> None:
            hook.ctx["norm"] = tensor.norm()

        model.run_with_hooks(TOKENS, fwd_hooks=[("hook_embed", remember)])
        assert "norm" in model.hook_dict["hook_embed"].ctx
        model.reset_hooks()
        assert model.hook_dict["hook_embed"].ctx == {}

    def test_a_point_outside_the_blocks_has_no_layer(self, model: GPT) -> None:
        with pytest.raises(LabError, match="'hook_embed' is not inside a block"):
            model.hook_dict["hook_embed"].layer()

    def test_an_unknown_direction_is_refused(self, model: GPT) -> None:
        with pytest.raises(LabError, match="'sideways'; expected 'fwd' or 'bwd'"):
            model.add_hook("hook_embed", ignore, dir="sideways")
        assert attached(model) == 0


class TestLifetime:
    def test_a_context_removes_what_it_added_and_nothing_else(self, model: GPT) -> None:
        model.add_hook("hook_embed", ignore)
        with model.hooks([("hook_embed", double)], [("hook_embed", ignore)]):
            assert attached(model) == 3
            with model.hooks([("blocks.0.attn.hook_z", double)]):
                assert attached(model) == 4
            assert attached(model) == 3
        assert attached(model) == 1

    def test_an_exception_in_a_hook_leaves_nothing_attached(self, model: GPT) -> None:
        plain = model(TOKENS)

        def fail(tensor: Tensor, hook: HookPoint) -> None:
            raise RuntimeError("a bug in the hook")

        with pytest.raises(RuntimeError, match="a bug"), model.hooks([("hook_embed", double)]):
            model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.hook_mlp_out", fail)])
        assert attached(model) == 0
        assert model.context_level == 0
        assert torch.equal(model(TOKENS), plain)

    def test_an_exception_in_a_predicate_leaves_nothing_attached(self, model: GPT) -> None:
        def fail(name: str) -> bool:
            if name.startswith("blocks.1"):
                raise ValueError(name)
            return True

        with pytest.raises(ValueError, match=r"blocks\.1"), model.hooks([("hook_embed", ignore), (fail, ignore)]):
            pass
        assert attached(model) == 0
        assert model.context_level == 0

    def test_permanent_hooks_stay_until_they_are_asked_to_go(self, model: GPT) -> None:
        model.add_perma_hook("hook_embed", double)
        model.add_hook("hook_embed", ignore)
        model.reset_hooks()
        assert attached(model) == 1
        model.reset_hooks(including_permanent=True)
        assert attached(model) == 0

    def test_a_level_limits_what_is_reset(self, model: GPT) -> None:
        model.add_hook("hook_embed", ignore, level=1)
        model.add_hook("hook_embed", ignore, level=2)
        model.reset_hooks(level=2)
        assert [handle.context_level for handle in model.hook_dict["hook_embed"].fwd_hooks] == [1]

    def test_a_direction_limits_what_is_reset(self, model: GPT) -> None:
        model.add_hook("hook_embed", ignore)
        model.add_hook("hook_embed", ignore, dir="bwd")
        model.reset_hooks(direction="fwd")
        assert (len(model.hook_dict["hook_embed"].fwd_hooks), len(model.hook_dict["hook_embed"].bwd_hooks)) == (0, 1)

    def test_resetting_inside_a_context_is_no_error_at_its_end(self, model: GPT) -> None:
        with model.hooks([("hook_embed", ignore)]):
            model.reset_hooks()
        assert attached(model) == 0

    def test_a_hook_may_remove_itself(self, model: GPT) -> None:
        calls = []

        def once(tensor: Tensor, hook: HookPoint) -> None:
            calls.append(hook.name)
            handles[0].remove()

        handles = model.add_hook("hook_embed", once)
        model(TOKENS), model(TOKENS)
        assert calls == ["hook_embed"]

    def test_hooks_stay_when_the_end_of_the_context_does_not_reset_them(self, model: GPT) -> None:
        model.run_with_hooks(TOKENS, fwd_hooks=[("hook_embed", ignore)], reset_hooks_end=False)
        assert attached(model) == 1

    @pytest.mark.parametrize("how", ["hooks", "run_with_hooks", "run_with_cache", "add_hook"])
    def test_an_unknown_name_is_refused_before_anything_is_attached_or_run(self, model: GPT, how: str) -> None:
        ran = []
        model.embed.register_forward_hook(lambda *_: ran.append(1))
        wrong = "blocks.1.atn.hook_z"
        ways = {
            "hooks": lambda: model.hooks([("hook_embed", ignore)], [(wrong, ignore)]).__enter__(),
            "run_with_hooks": lambda: model.run_with_hooks(TOKENS, fwd_hooks=[("hook_embed", ignore), (wrong, ignore)]),
            "run_with_cache": lambda: model.run_with_cache(TOKENS, names_filter=["hook_embed", wrong]),
            "add_hook": lambda: model.add_hook(wrong, ignore),
        }
        with pytest.raises(UnknownHookError, match=r"closest: 'blocks\.1\.attn\.hook_z'") as error:
            ways[how]()
        assert (ran, attached(model)) == ([], 0)
        assert isinstance(error.value, KeyError)
        assert "\n" not in str(error.value)
        assert f"no hook named {wrong!r} (this model has {len(model.hook_dict)})" in str(error.value)


class TestNothingIsCorrupted:
    @pytest.mark.parametrize("promise", [pure, lambda fn: fn])
    def test_an_edit_in_place_leaves_every_tensor_already_cached_alone(self, model: GPT, promise: Any) -> None:
        # resid_post of one block and resid_pre of the next are one tensor in an unhooked run.
        _, clean = model.run_with_cache(TOKENS)
        kept: dict[str, Tensor] = {}

        def keep(tensor: Tensor, hook: HookPoint) -> None:
            kept[str(hook.name)] = tensor.detach()

        with model.hooks([("blocks.0.hook_resid_post", promise(keep)), ("blocks.1.hook_resid_pre", double_in_place)]):
            model(TOKENS)
        torch.testing.assert_close(kept["blocks.0.hook_resid_post"], clean["resid_post", 0], **EXACT)

    def test_a_cache_is_untouched_by_edits_downstream_and_sees_edits_upstream(self, model: GPT) -> None:
        _, clean = model.run_with_cache(TOKENS)
        with model.hooks([("blocks.1.hook_resid_pre", double_in_place)]):
            _, edited = model.run_with_cache(TOKENS)
        assert torch.equal(edited["resid_post", 0], clean["resid_post", 0])  # both runs take the explicit path
        assert torch.equal(edited["resid_pre", 1], 2 * clean["resid_pre", 1])

    def test_in_place_edits_everywhere_leave_the_gradients_right(self, model: GPT) -> None:
        def gradients(edit: Any) -> list[Tensor]:
            model.zero_grad()
            model.run_with_hooks(TOKENS, return_type="loss", fwd_hooks=[(lambda name: True, edit)]).backward()
            return [p.grad for p in model.parameters() if p.grad is not None]

        def shrink(tensor: Tensor, hook: HookPoint) -> Tensor:
            return tensor * 0.9

        def shrink_in_place(tensor: Tensor, hook: HookPoint) -> None:
            tensor *= 0.9

        for returned, written in zip(gradients(shrink), gradients(shrink_in_place), strict=True):
            torch.testing.assert_close(returned, written, **EXACT)

    def test_an_edit_in_place_does_not_reach_the_weights(self, model: GPT) -> None:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.run_with_hooks(TOKENS, fwd_hooks=[(lambda name: True, double_in_place)])
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]), name


class TestBackward:
    def test_a_backward_hook_sees_the_gradient_of_the_edited_activation(self, model: GPT) -> None:
        name, seen, edited = "blocks.0.hook_resid_post", [], []

        def edit(resid: Tensor, hook: HookPoint) -> Tensor:
            edited.append((resid * 3).requires_grad_())
            return edited[0]

        with model.hooks([(name, edit)], [(name, lambda grad, hook: seen.append(grad))]):
            loss = model(TOKENS, return_type="loss")
            expected = torch.autograd.grad(loss, edited[0], retain_graph=True)[0]
            loss.backward()
        torch.testing.assert_close(seen[0], expected, **EXACT)

    @pytest.mark.parametrize("as_tuple", [False, True])
    def test_what_it_returns_replaces_the_gradient(self, model: GPT, as_tuple: bool) -> None:
        def zero(grad: Tensor, hook: HookPoint) -> Any:
            return (torch.zeros_like(grad),) if as_tuple else torch.zeros_like(grad)

        with model.hooks(bwd_hooks=[("blocks.0.hook_resid_post", zero)]):
            model(TOKENS, return_type="loss").backward()
        assert model.blocks[0].mlp.out.weight.grad.abs().max() == 0
        assert model.blocks[1].mlp.out.weight.grad.abs().max() > 0

    def test_a_gradient_edited_in_place_is_replaced_and_what_others_hold_is_not(self, model: GPT) -> None:
        held = []

        def zero(grad: Tensor, hook: HookPoint) -> None:
            grad.zero_()

        name, hold = "blocks.0.hook_resid_post", pure(lambda grad, hook: held.append((grad, grad.clone())))
        with model.hooks(bwd_hooks=[(name, hold), (name, zero)]):
            model(TOKENS, return_type="loss").backward()
        assert torch.equal(*held[0])
        assert held[0][0].abs().max() > 0
        assert model.blocks[0].mlp.out.weight.grad.abs().max() == 0

    def test_two_backward_hooks_run_in_order_each_on_the_result_of_the_one_before(self, model: GPT) -> None:
        seen = []
        record = lambda grad, hook: seen.append(grad.clone())  # noqa: E731
        with model.hooks(bwd_hooks=[("hook_embed", record), ("hook_embed", double), ("hook_embed", record)]):
            model(TOKENS, return_type="loss").backward()
        assert torch.equal(seen[1], 2 * seen[0])

    @pytest.mark.parametrize("edit", [double, double_in_place])
    def test_forward_edit_and_backward_hook_live_on_one_point(self, model: GPT, edit: Any) -> None:
        for name in model.hook_dict:
            seen: list[Tensor] = []
            with model.hooks([(name, edit)], [(name, lambda grad, hook, seen=seen: seen.append(grad))]):
                model(TOKENS, return_type="loss").backward()
            assert len(seen) == 1, name

    def test_the_gradient_at_an_edited_point_reaches_what_came_before_it(self, model: GPT) -> None:
        with model.hooks([("hook_embed", double)], [("hook_embed", ignore)]):
            model(TOKENS, return_type="loss").backward()
        hooked = model.embed.W_E.grad.clone()
        model.zero_grad()
        model.run_with_hooks(TOKENS, return_type="loss", fwd_hooks=[("hook_embed", double)]).backward()
        torch.testing.assert_close(hooked, model.embed.W_E.grad, **EXACT)

    def test_it_fires_after_a_forward_hook_that_returned_a_constant(self, model: GPT) -> None:
        seen = []
        constant = lambda resid, hook: torch.ones_like(resid).detach()  # noqa: E731
        model.requires_grad_(False)
        with model.hooks([("hook_embed", constant)], [("hook_embed", lambda grad, hook: seen.append(grad))]):
            model(TOKENS, return_type="loss").backward()
        assert seen[0].abs().max() > 0

    def test_one_removed_before_the_backward_pass_does_not_fire(self, model: GPT) -> None:
        seen = []
        with model.hooks(bwd_hooks=[("hook_embed", lambda grad, hook: seen.append(grad))]):
            loss = model(TOKENS, return_type="loss")
        loss.backward()
        assert seen == []

    def test_run_with_hooks_keeps_them_for_the_backward_pass_when_asked(self, model: GPT) -> None:
        seen = []
        hooks = [("hook_embed", lambda grad, hook: seen.append(grad))]
        model.run_with_hooks(TOKENS, return_type="loss", bwd_hooks=hooks, reset_hooks_end=False).backward()
        assert len(seen) == 1

    @given(models(), token_batches())
    def test_every_point_sees_the_gradient_that_autograd_gives(self, model: GPT, tokens: Tensor) -> None:
        inputs: dict[str, Tensor] = {}
        gradients: dict[str, Tensor] = {}

        def leaf(tensor: Tensor, hook: HookPoint) -> Tensor:
            # A tensor of its own, so that autograd can be asked for the gradient at this very point.
            inputs[str(hook.name)] = tensor.clone().requires_grad_()
            return inputs[str(hook.name)]

        def keep(grad: Tensor, hook: HookPoint) -> None:
            gradients[str(hook.name)] = grad

        with model.hooks([(lambda name: True, pure(leaf))], [(lambda name: True, keep)]):
            loss = model(tokens, return_type="loss")
            expected = torch.autograd.grad(loss, list(inputs.values()), retain_graph=True, allow_unused=True)
            gradients.clear()
            loss.backward()
        for (name, tensor), grad in zip(inputs.items(), expected, strict=True):
            got = gradients.get(name, torch.zeros_like(tensor))
            torch.testing.assert_close(got, torch.zeros_like(tensor) if grad is None else grad, **EXACT)


class TestWithoutGradients:
    @pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
    def test_hooks_of_both_directions_are_harmless(self, model: GPT, mode: Any) -> None:
        plain, seen = model(TOKENS), []
        with mode():
            everywhere = [(lambda name: True, lambda tensor, hook: seen.append(hook.name))]
            logits = model.run_with_hooks(TOKENS, fwd_hooks=everywhere, bwd_hooks=everywhere)
            edited = model.run_with_hooks(TOKENS, fwd_hooks=[("hook_embed", double_in_place)])
            _, cache = model.run_with_cache(TOKENS)
        assert Counter(seen) == Counter(list(model.hook_dict))
        torch.testing.assert_close(logits, plain, **EXACT)
        torch.testing.assert_close(edited, model.run_with_hooks(TOKENS, fwd_hooks=[("hook_embed", double)]), **EXACT)
        assert torch.equal(cache["hook_embed"], model.embed(TOKENS))


class TestEveryPoint:
    @given(models(), token_batches())
    def test_fires_once_a_forward_with_the_shape_of_the_table(self, model: GPT, tokens: Tensor) -> None:
        cfg = model.cfg
        batch, pos = tokens.shape
        sizes = {
            "batch": batch,
            **dict.fromkeys(["pos", "q_pos", "k_pos"], pos),
            "head": cfg.n_heads,
            "kv_head": cfg.n_kv_heads,
            "d_model": cfg.d_model,
            "d_head": cfg.d_head,
            "d_mlp": cfg.d_mlp,
            "d_vocab": cfg.d_vocab,
            "one": 1,
        }
        calls: Counter[str] = Counter()

        def check(tensor: Tensor, hook: HookPoint) -> None:
            calls[str(hook.name)] += 1
            axes = axes_of(str(hook.name))
            assert axes is not None, hook.name
            assert tensor.shape == tuple(sizes[axis] for axis in axes), hook.name

        model.run_with_hooks(tokens, fwd_hooks=[(lambda name: True, check)])
        assert calls == Counter(list(model.hook_dict))

    @settings(max_examples=5)
    @given(models(), token_batches())
    def test_fires_also_when_nothing_else_is_hooked(self, model: GPT, tokens: Tensor) -> None:
        for name in model.hook_dict:
            calls: list[str] = []
            model.run_with_hooks(tokens, fwd_hooks=[(name, lambda tensor, hook, calls=calls: calls.append(hook.name))])
            assert calls == [name]

    @given(models(), token_batches())
    def test_hooked_and_unhooked_runs_give_the_same_logits(self, model: GPT, tokens: Tensor) -> None:
        plain = model(tokens)
        read, _ = model.run_with_cache(tokens, names_filter=lambda name: True)
        torch.testing.assert_close(read, plain, **EXACT)
        same = model.run_with_hooks(tokens, fwd_hooks=[(lambda name: True, lambda tensor, hook: tensor)])
        torch.testing.assert_close(same, plain, **EXACT)

    @given(models(), token_batches())
    def test_points_on_demand_that_are_only_read_change_not_one_bit(self, model: GPT, tokens: Tensor) -> None:
        names = [name for name, point in model.hook_dict.items() if point.on_demand]
        read, cache = model.run_with_cache(tokens, names_filter=names)
        assert torch.equal(read, model(tokens))
        assert set(cache) == set(names)

    @given(models(), token_batches())
    def test_points_on_demand_are_left_out_of_a_cache_of_everything(self, model: GPT, tokens: Tensor) -> None:
        _, cache = model.run_with_cache(tokens)
        assert set(cache) == {name for name, point in model.hook_dict.items() if not point.on_demand}

    def test_hooks_of_torch_itself_count_as_attached(self, model: GPT) -> None:
        seen = []
        point = model.hook_dict["blocks.0.attn.hook_result"]
        handle = point.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
        model(TOKENS)
        handle.remove()
        model(TOKENS)
        assert seen == [(2, 4, 2, 8)]


class TestEditsOnDemand:
    """Each edit equals the same thing computed by hand from weights and cached activations."""

    @given(configs(attn_only=False), token_batches())
    def test_one_heads_query_input(self, cfg: TransformerConfig, tokens: Tensor) -> None:
        model = random_model(cfg, 1)
        attn, head = model.blocks[0].attn, 1

        def other_stream(stream: Tensor, hook: HookPoint) -> Tensor:
            edited = stream.clone()
            edited[:, :, head] = 1.7 * stream[:, :, head] + 0.3
            return edited

        with model.hooks([("blocks.0.hook_q_input", other_stream)]):
            logits, edited = model.run_with_cache(tokens)
        _, clean = model.run_with_cache(tokens)
        stream = model.blocks[0].ln1(1.7 * clean["resid_pre", 0] + 0.3)
        q = clean["q", 0].clone()
        q[:, :, head] = stream @ attn.W_Q[head] + attn.b_Q[head]
        torch.testing.assert_close(edited["q", 0], q, **EXACT)
        torch.testing.assert_close(edited["k", 0], clean["k", 0], **EXACT)
        by_hand = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_q", lambda old, hook: q)])
        torch.testing.assert_close(logits, by_hand, **EXACT)

    @given(configs(), token_batches())
    def test_one_heads_key_and_value_input(self, cfg: TransformerConfig, tokens: Tensor) -> None:
        model = random_model(cfg, 2)
        attn, head = model.blocks[0].attn, cfg.n_kv_heads - 1
        halve = lambda stream, hook: torch.cat([stream[:, :, :head], stream[:, :, head:] * 0.5 - 0.2], 2)  # noqa: E731
        with model.hooks([("blocks.0.hook_k_input", halve), ("blocks.0.hook_v_input", halve)]):
            _, edited = model.run_with_cache(tokens)
        _, clean = model.run_with_cache(tokens)
        stream = model.blocks[0].ln1(0.5 * clean["resid_pre", 0] - 0.2)
        torch.testing.assert_close(edited["k", 0][:, :, head], stream @ attn.W_K[head] + attn.b_K[head], **EXACT)
        torch.testing.assert_close(edited["v", 0][:, :, head], stream @ attn.W_V[head] + attn.b_V[head], **EXACT)
        torch.testing.assert_close(edited["v", 0][:, :, :head], clean["v", 0][:, :, :head], **EXACT)

    @given(configs(n_key_value_heads=None), token_batches())
    def test_attn_in_feeds_queries_keys_and_values_of_its_head(self, cfg: TransformerConfig, tokens: Tensor) -> None:
        model = random_model(cfg, 3)
        edit = lambda stream, hook: stream * torch.linspace(0.5, 1.5, cfg.n_heads)[:, None] + 0.1  # noqa: E731
        at_once = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_attn_in", edit)])
        split = [(f"blocks.0.hook_{each}_input", edit) for each in "qkv"]
        torch.testing.assert_close(at_once, model.run_with_hooks(tokens, fwd_hooks=split), **EXACT)

    @given(configs(attn_only=False), token_batches())
    def test_mlp_in_changes_what_the_mlp_reads_and_not_the_stream(self, cfg: TransformerConfig, tokens: Tensor) -> None:
        model = random_model(cfg, 4)
        block, read = model.blocks[0], lambda resid: 1.3 * resid - 0.4
        with model.hooks([("blocks.0.hook_mlp_in", lambda resid, hook: read(resid))]):
            _, edited = model.run_with_cache(tokens)
        _, clean = model.run_with_cache(tokens)
        before = clean["resid_pre", 0] if cfg.parallel_attn_mlp else clean["resid_mid", 0]
        mlp_out = block.ln2_post(block.mlp(block.ln2(read(before))))
        torch.testing.assert_close(edited["mlp_out", 0], mlp_out, **EXACT)
        after_attention = clean["resid_pre", 0] + clean["attn_out", 0]
        torch.testing.assert_close(edited["resid_post", 0], after_attention + mlp_out, **EXACT)

    @given(configs(norm_places="pre"), token_batches())
    def test_result_of_one_head_taken_out(self, cfg: TransformerConfig, tokens: Tensor) -> None:
        model = random_model(cfg, 5)
        silence = lambda result, hook: result.index_fill(2, torch.tensor([1]), 0.0)  # noqa: E731
        with model.hooks([("blocks.0.attn.hook_result", silence)]):
            _, edited = model.run_with_cache(tokens)
        _, clean = model.run_with_cache(tokens)
        lost = clean["z", 0][:, :, 1] @ model.blocks[0].attn.W_O[1]
        torch.testing.assert_close(edited["attn_out", 0], clean["attn_out", 0] - lost, **EXACT)

    @given(configs(attn_scale=None, attn_scores_soft_cap=None, attn_types=None), token_batches())
    def test_pattern_and_scores(self, cfg: TransformerConfig, tokens: Tensor) -> None:
        model = random_model(cfg, 6)
        _, clean = model.run_with_cache(tokens)
        q, k = ("rot_q", "rot_k") if cfg.positional_embedding_type == "rotary" else ("q", "k")
        mask = causal_mask(tokens.shape[1], tokens.shape[1], tokens.device)
        scores = attention_scores(clean[q, 0], clean[k, 0], mask)
        torch.testing.assert_close(clean["attn_scores", 0], scores, **EXACT)
        uniform = mask.double() / mask.sum(-1, keepdim=True)
        pattern = repeat(uniform, "1 1 q k -> b h q k", b=tokens.shape[0], h=cfg.n_heads)
        with model.hooks([("blocks.0.attn.hook_attn_scores", lambda s, hook: s.masked_fill(mask, 0.0))]):
            _, edited = model.run_with_cache(tokens)
        torch.testing.assert_close(edited["pattern", 0], pattern, **EXACT)
        torch.testing.assert_close(edited["z", 0], mix_values(pattern, clean["v", 0]), **EXACT)


class TestModules:
    def test_any_module_can_own_hook_points(self) -> None:
        class Doubler(HookedModule):
            def __init__(self) -> None:
                super().__init__()
                self.hook_in = HookPoint()
                self.setup()

            def forward(self, x: Tensor) -> Tensor:
                return 2 * self.hook_in(x)

        doubler = Doubler()
        output, cache = doubler.run_with_cache(torch.ones(1, 3))
        assert torch.equal(output, torch.full((1, 3), 2.0))
        assert torch.equal(cache["hook_in"], torch.ones(1, 3))

    def test_a_replaced_submodule_is_known_after_setup(self, model: GPT) -> None:
        model.blocks[0].attn.hook_z = HookPoint()
        model.setup()
        assert model.hook_dict["blocks.0.attn.hook_z"] is model.blocks[0].attn.hook_z
        assert model.blocks[0].attn.hook_z.name == "blocks.0.attn.hook_z"

    def test_hooks_add_nothing_to_the_state_dict(self, model: GPT) -> None:
        names = set(model.state_dict())
        with model.hooks([(lambda name: True, ignore)]):
            assert set(model.state_dict()) == names

    def test_a_removed_hook_is_not_kept_alive(self, model: GPT) -> None:
        class Big:
            alive = 0

            def __init__(self) -> None:
                Big.alive += 1

            def __del__(self) -> None:
                Big.alive -= 1

            def __call__(self, tensor: Tensor, hook: HookPoint) -> None:
                return None

        model.run_with_hooks(TOKENS, fwd_hooks=[("hook_embed", Big())])
        gc.collect()
        assert Big.alive == 0
