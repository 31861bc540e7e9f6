"""Where TransformerLens 4.3 behaves otherwise than its names say, the lab's bridge is right or refuses."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from analyses import attention_patterns, head_scores
from interp import HookPoint
from interp.errors import LabError
from models import load
from models.bridge import Bridge
from tests.parity.bridge_models import VOCAB, Pair, both, saved

TOKENS = torch.randint(VOCAB, (2, 7), generator=torch.Generator().manual_seed(0))
FAMILIES = ("gpt2", "llama", "gemma2")


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def pair(checkpoint: Path) -> Pair:
    return both(checkpoint)


def test_a_hook_is_called_with_the_name_that_was_asked_for(pair: Pair) -> None:
    """TransformerLens's own bridge calls it with the name of the point behind the alias."""
    bridge, called = pair[1], []
    for name in bridge.hook_dict:
        bridge.run_with_hooks(TOKENS, fwd_hooks=[(name, lambda x, hook: called.append(hook.name))])
        assert called.pop() == name
        assert not called, "once"
    inner: list[str] = []
    name = "blocks.1.hook_resid_pre"
    bridge.inner.run_with_hooks(TOKENS, fwd_hooks=[(name, lambda x, hook: inner.append(hook.name))])
    assert inner != [name], "TransformerLens has mended this: the lab's own points may go"


def test_a_run_from_a_layer_is_refused_rather_than_run_from_the_start(pair: Pair) -> None:
    ours, bridge = pair
    stream = ours.run_with_cache(TOKENS)[1]["resid_pre", 1].detach()
    torch.testing.assert_close(ours(stream, start_at_layer=1), ours(TOKENS))
    with pytest.raises(LabError, match=r"start_at_layer=1.*backend='native'"):
        bridge(stream, start_at_layer=1)


def test_a_point_that_was_replaced_fires(checkpoint: Path) -> None:
    """Some scripts put a hook point of their own in the place of one; TransformerLens never passes it."""
    bridge = load(str(checkpoint), backend="transformer-lens")
    assert isinstance(bridge, Bridge)
    name = "blocks.1.hook_resid_pre"
    before = bridge(TOKENS)
    bridge.hook_dict[name] = point = HookPoint()
    point.add_hook(lambda resid, hook: 2 * resid)
    doubled = bridge(TOKENS)
    point.remove_hooks()
    with bridge.hooks([(name, lambda resid, hook: 2 * resid)]):
        torch.testing.assert_close(bridge(TOKENS), doubled, atol=0, rtol=0)
    assert (doubled - before).abs().max() > 0.01
    torch.testing.assert_close(bridge(TOKENS), before, atol=0, rtol=0)


def test_the_weights_are_held_once_and_not_as_the_compatibility_mode_does(checkpoint: Path) -> None:
    """A quarter more than the checkpoint allows for buffers and the last patterns, large beside so small a model.

    (Where a checkpoint joins queries, keys and values in one matrix, as GPT-NeoX's do head by head, TransformerLens
    holds that matrix beside the three.)
    """
    checkpoint_bytes = sum(t.numel() * t.element_size() for t in _parameters(load(str(checkpoint))))
    before = _live_bytes()
    bridge = load(str(checkpoint), backend="transformer-lens")
    for name in ("W_Q", "W_O", "W_U"):  # looking at weights keeps no copies
        getattr(bridge, name)
    with torch.no_grad():  # with gradients the wrapped model keeps the last run's graph
        bridge(TOKENS)
    assert not bridge.inner.compatibility_mode
    assert sum(t.numel() * t.element_size() for t in _parameters(bridge)) == checkpoint_bytes
    assert _live_bytes() - before <= 1.25 * checkpoint_bytes


def _parameters(model: Any) -> list[Tensor]:
    """The parameters, each storage once."""
    return list({p.untyped_storage().data_ptr(): p for p in model.parameters()}.values())


def _live_bytes() -> int:
    gc.collect()
    storages = {}
    for each in gc.get_objects():
        if type(each) in (Tensor, torch.nn.Parameter) and each.device.type == "cpu":
            storage = each.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_cached_score_is_infinite(checkpoint: Path, dtype: str, padded: bool) -> None:
    """So that a mean over them, or a difference of two, is a number."""
    mask = torch.ones_like(TOKENS, dtype=torch.bool)
    mask[0, :3] = not padded
    for backend in ("native", "transformer-lens"):
        model = load(str(checkpoint), backend, dtype=dtype)
        _, cache = model.run_with_cache(TOKENS, attention_mask=mask, names_filter="blocks.*.attn.hook_attn_scores")
        for scores in cache.values():
            assert torch.isfinite(scores).all()
            assert (scores[:, :, 0, 1:] <= torch.finfo(scores.dtype).min / 2).all(), "hidden all the same"


def test_rows_of_attention_sum_to_one_in_bfloat16(checkpoint: Path) -> None:
    """Ours to float32's rounding, as patterns stay in float32. The bridge keeps them as the wrapped model uses them,
    in bfloat16, whose 8 bits let a row be 2^-8 off; what is measured on them is as near to ours."""
    ours, bridge = (load(str(checkpoint), backend, dtype="bfloat16") for backend in ("native", "transformer-lens"))
    found = [attention_patterns(model, TOKENS[0]).values for model in (ours, bridge)]
    off = [np.abs(patterns.sum(-1) - 1).max() for patterns in found]
    assert off[0] < 1e-6
    assert off[1] <= 2**-8
    scores = [head_scores(model, n=4) for model in (ours, bridge)]
    for role in ("previous", "duplicate", "induction"):
        assert np.abs(getattr(scores[0], role) - getattr(scores[1], role)).max() < 0.1


def test_an_edit_of_a_norms_scale_is_no_longer_ignored_when_it_is_in_place(pair: Pair) -> None:
    """TransformerLens takes a returned tensor for the sign of an edit; what is written in place it computes past."""
    bridge = pair[1]
    before, name = bridge(TOKENS), "blocks.1.ln1.hook_scale"

    def in_place(scale: Tensor, hook: Any) -> None:
        scale.mul_(3)

    edited = bridge.run_with_hooks(TOKENS, fwd_hooks=[(name, in_place)])
    returned = bridge.run_with_hooks(TOKENS, fwd_hooks=[(name, lambda scale, hook: 3 * scale)])
    torch.testing.assert_close(edited, returned, atol=0, rtol=0)
    assert (edited - before).abs().max() > 0.01


def test_a_gradient_behind_an_edit_in_place_is_right(pair: Pair) -> None:
    """In place plus a backward hook on one point; held to a returned edit."""
    bridge, name = pair[1], "blocks.1.attn.hook_z"
    found = []
    for edit in (lambda z, hook: 2 * z, lambda z, hook: z.mul_(2)):
        kept: list[Tensor] = []
        with bridge.hooks([(name, edit)], [(name, lambda grad, hook, kept=kept: kept.append(grad.clone()))]):
            bridge(TOKENS, return_type="loss").backward()
        bridge.zero_grad()
        found.append(kept[0])
    torch.testing.assert_close(*found, atol=0, rtol=0)
    assert found[0].abs().max() > 0


def test_a_model_that_it_cannot_run_in_a_dtype_is_refused_when_it_loads(tmp_path: Path) -> None:
    """OLMo 2's norms of queries and keys leave float32 beside bfloat16 values there; the lab's own code runs it."""
    directory = str(saved("olmo2", tmp_path))
    with pytest.raises(LabError, match=r"cannot run .* in torch.bfloat16.*backend='native'"):
        load(directory, "transformer-lens", dtype="bfloat16")
    assert torch.isfinite(load(directory, dtype="bfloat16")(TOKENS)).all()
