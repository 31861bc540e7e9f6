"""TransformerLens 4.3's `ActivationCache` on a run of our GPT gives what ours gives.

It divides by the norm's scale and leaves the gain to weights in which it was folded; ours multiplies with it. So what
it normalises is compared times the gain, and its logit attribution where gains are one. Tolerance: 1e-9 in float64,
as both do the same sums in another order.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from analyses import logit_lens
from interp import ActivationCache
from models import GPT, TransformerConfig
from models.tokenizers import characters
from tests.strategies import random_model

EXACT: Any = {"atol": 1e-9, "rtol": 1e-9}
KINDS: dict[str, dict[str, Any]] = {
    "gpt2-like": {},
    "llama-like": {
        "n_key_value_heads": 2,
        "positional_embedding_type": "rotary",
        "normalization_type": "RMS",
        "gated_mlp": True,
    },
    "attention alone": {"attn_only": True},
    "parallel": {"parallel_attn_mlp": True, "positional_embedding_type": "rotary"},
    "without norms": {"normalization_type": None},
}
TOKENS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 2]])
RIGHT, WRONG = torch.tensor([3, 4]), torch.tensor([5, 6])


def a_model(**shape: Any) -> GPT:
    model = random_model(TransformerConfig(n_layers=2, n_heads=4, d_model=16, d_vocab=28, n_ctx=8, **shape), seed=5)
    model.tokenizer = characters("abcdefghijklmnopqrstuvwxyz ")
    return model


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> GPT:
    return a_model(**KINDS[request.param])


@pytest.fixture
def ours(model: GPT) -> ActivationCache:
    with torch.no_grad():
        return model.run_with_cache(TOKENS)[1]


@pytest.fixture
def theirs(ours: ActivationCache) -> Any:
    from transformer_lens.ActivationCache import ActivationCache as TheirCache

    return TheirCache(dict(ours.items()), ours.model)


def same(found: Any, expected: Any) -> None:
    """Tensors to rounding; with labels, those too."""
    if isinstance(expected, tuple):
        assert list(found[1]) == list(expected[1])
        found, expected = found[0], expected[0]
    torch.testing.assert_close(found.detach(), expected.detach(), **EXACT)


def gain(model: GPT, layer: int | None = None, mlp: bool = False) -> Any:
    if model.cfg.normalization_type is None:
        return 1.0
    norm = model.ln_final if layer is None else model.blocks[layer].ln2 if mlp else model.blocks[layer].ln1
    return norm.gain


SLICES = [None, -1, [0, 2], (1, 4)]


def as_ours(pos: Any) -> Any:
    """It writes a slice as a pair."""
    return slice(*pos) if isinstance(pos, tuple) else pos


@pytest.mark.parametrize("pos", SLICES)
def test_accumulated_streams(ours: ActivationCache, theirs: Any, pos: Any) -> None:
    same(
        theirs.accumulated_resid(pos_slice=pos, return_labels=True),
        ours.accumulated_resid(pos_slice=as_ours(pos), return_labels=True),
    )
    if "blocks.0.hook_resid_mid" in ours:
        same(
            theirs.accumulated_resid(1, incl_mid=True, mlp_input=True, return_labels=True),
            ours.accumulated_resid(1, incl_mid=True, mlp_input=True, return_labels=True),
        )


def test_streams_through_the_final_norm(ours: ActivationCache, theirs: Any) -> None:
    """There the norm is a module, and is run anew on both sides, gain and bias included."""
    same(theirs.accumulated_resid(apply_ln=True), ours.accumulated_resid(apply_ln=True))


@pytest.mark.parametrize("pos", SLICES)
@pytest.mark.parametrize("mode", ["all", "attn", "mlp"])
def test_what_layers_wrote(ours: ActivationCache, theirs: Any, mode: str, pos: Any) -> None:
    same(
        theirs.decompose_resid(mode=mode, pos_slice=pos, return_labels=True),
        ours.decompose_resid(mode=mode, pos_slice=as_ours(pos), return_labels=True),
    )
    scaled = theirs.decompose_resid(1, mode=mode, pos_slice=pos, apply_ln=True) * gain(ours.model, 1)
    same(scaled, ours.decompose_resid(1, mode=mode, pos_slice=as_ours(pos), apply_ln=True))


@pytest.mark.parametrize("pos", SLICES)
@pytest.mark.parametrize("layer", [1, -1])
def test_what_heads_wrote(ours: ActivationCache, theirs: Any, layer: int, pos: Any) -> None:
    how = {"return_labels": True, "incl_remainder": True}
    same(
        theirs.stack_head_results(layer, pos_slice=pos, **how),
        ours.stack_head_results(layer, pos_slice=as_ours(pos), **how),
    )


def test_its_head_results_are_our_hook_points(model: GPT, theirs: Any) -> None:
    theirs.compute_head_results()
    with torch.no_grad():
        _, cache = model.run_with_cache(TOKENS, names_filter="blocks.*.attn.hook_result")
    for name, result in cache.items():
        same(theirs[name], result)


@pytest.mark.parametrize("pos", SLICES)
def test_what_neurons_wrote(ours: ActivationCache, theirs: Any, pos: Any) -> None:
    if ours.model.cfg.attn_only:
        pytest.skip("no MLPs")
    some = [0, 3]
    same(theirs.get_neuron_results(1, some, pos), ours.get_neuron_results(1, some, as_ours(pos)))
    how = {"return_labels": True, "incl_remainder": True}
    found, labels = theirs.stack_neuron_results(2, pos, some, **how)
    same((found, [label.replace("tensor(", "").rstrip(")") for label in labels]), ours.stack_neuron_results(
        2, as_ours(pos), some, **how
    ))  # fmt: skip
    onto = ours.model.W_U[:, :3]
    normed = ours.model.cfg.normalization_type is not None  # see the test of its fault below
    projected = theirs.stack_neuron_results(2, pos, apply_ln=normed, project_output_onto=gain_on(ours.model, onto))
    same(projected, ours.stack_neuron_results(2, as_ours(pos), apply_ln=normed) @ onto)


def gain_on(model: GPT, directions: Tensor) -> Tensor:
    """The final norm's gain in what is read from it, where TransformerLens expects it."""
    scale = gain(model)
    return directions if isinstance(scale, float) else scale[:, None] * directions


@pytest.mark.parametrize("neurons", [True, False])
@pytest.mark.parametrize("pos", SLICES)
def test_everything_that_was_written(ours: ActivationCache, theirs: Any, neurons: bool, pos: Any) -> None:
    found, labels = theirs.get_full_resid_decomposition(expand_neurons=neurons, pos_slice=pos, return_labels=True)
    how: Any = {"expand_neurons": neurons, "pos_slice": as_ours(pos)}
    expected, names = ours.get_full_resid_decomposition(**how, return_labels=True)
    assert [str(label).replace("tensor(", "").rstrip(")") for label in labels] == names
    same(found, expected)
    onto, normed = ours.model.W_U[:, 0], ours.model.cfg.normalization_type is not None
    projected = theirs.get_full_resid_decomposition(
        expand_neurons=neurons,
        pos_slice=pos,
        apply_ln=normed,
        project_output_onto=gain_on(ours.model, onto[:, None])[:, 0],
    )
    same(projected, ours.get_full_resid_decomposition(**how, apply_ln=normed) @ onto)


def test_its_projection_of_normalised_neurons_needs_a_norm() -> None:
    """A fault of its own: without norms it looks for a scale all the same. Ours gives the stack as it is."""
    from transformer_lens.ActivationCache import ActivationCache as TheirCache

    model = a_model(normalization_type=None)
    with torch.no_grad():
        _, ours = model.run_with_cache(TOKENS)
    with pytest.raises((KeyError, IndexError)):
        TheirCache(dict(ours.items()), model).stack_neuron_results(2, apply_ln=True, project_output_onto=model.W_U)
    same(ours.stack_neuron_results(2, apply_ln=True), ours.stack_neuron_results(2))


def test_a_stack_through_any_norm(ours: ActivationCache, theirs: Any) -> None:
    stack = ours.decompose_resid(1)
    same(theirs.apply_ln_to_stack(stack, 1) * gain(ours.model, 1), ours.apply_ln_to_stack(stack, 1))
    if not ours.model.cfg.attn_only:
        expected = ours.apply_ln_to_stack(stack, 1, mlp_input=True)
        same(theirs.apply_ln_to_stack(stack, 1, mlp_input=True) * gain(ours.model, 1, mlp=True), expected)
    one = theirs.apply_ln_to_stack(stack, pos_slice=None, batch_slice=1) * gain(ours.model)
    same(one, ours.apply_ln_to_stack(stack, batch_slice=1))


def test_shares_of_the_logits_where_gains_are_one(model: GPT) -> None:
    from transformer_lens.ActivationCache import ActivationCache as TheirCache

    plain = a_model(**{name: value for name, value in vars(model.cfg).items() if name in SHAPE})
    with torch.no_grad():
        if plain.cfg.normalization_type is not None:
            plain.ln_final.w.fill_(1.0)
        _, ours = plain.run_with_cache(TOKENS)
    theirs, stack = TheirCache(dict(ours.items()), plain), ours.decompose_resid()
    for tokens, others in ((RIGHT, WRONG), (RIGHT, None), (3, 5), ("c", "e")):
        same(theirs.logit_attrs(stack, tokens, others), ours.logit_attrs(stack, tokens, others))


SHAPE = ("n_key_value_heads", "positional_embedding_type", "normalization_type", "gated_mlp", "attn_only",
         "parallel_attn_mlp")  # fmt: skip


def test_with_another_gain_its_shares_do_not_sum_to_the_logit_and_ours_do(model: GPT) -> None:
    from transformer_lens.ActivationCache import ActivationCache as TheirCache

    if model.cfg.normalization_type is None:
        pytest.skip("no gain")
    with torch.no_grad():
        logits, ours = model.run_with_cache(TOKENS)
        parts, bias = ours.get_full_resid_decomposition(), ours.unembed_bias_attrs(3)
    theirs = TheirCache(dict(ours.items()), model)
    same(ours.logit_attrs(parts, 3).sum(0) + bias, logits[..., 3])
    assert (theirs.logit_attrs(parts, 3).sum(0) + bias - logits[..., 3]).abs().max() > 0.05


def test_its_lens_is_ours(model: GPT, theirs: Any) -> None:
    """1e-5: it reads logits in float32."""
    lens = logit_lens(model, TOKENS[1])
    found = theirs.logit_lens(positions=None)
    torch.testing.assert_close(found.values[:, 1].double(), torch.tensor(lens.logits), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.readout.entropy[:, 1].double(), torch.tensor(lens.entropy), atol=1e-5, rtol=1e-5)


def test_its_lens_does_not_read_past_a_cap_on_the_logits() -> None:
    from transformer_lens.ActivationCache import ActivationCache as TheirCache

    model = a_model(output_logits_soft_cap=2.0)
    with torch.no_grad():
        _, ours = model.run_with_cache(TOKENS)
    with pytest.raises(ValueError, match="logit_lens requires"):
        TheirCache(dict(ours.items()), model).logit_lens()


def test_slices_of_the_batch_and_the_names(ours: ActivationCache, theirs: Any) -> None:
    assert list(theirs.keys()) == list(ours.keys()) == list(theirs) == [name for name, _ in theirs.items()]
    assert len(theirs) == len(ours)
    assert all(value is ours[name] for name, value in zip(ours, theirs.values(), strict=True))
    for short in (("z", 1), ("resid_post", 0), ("scale", 1, "ln1"), "embed"):
        if short in ours:
            same(theirs[short], ours[short])
    for chosen in (1, [0], [1, 0]):
        found, expected = theirs.apply_slice_to_batch_dim(chosen), ours.apply_slice_to_batch_dim(chosen)
        for name in ours:
            same(found[name], expected[name])
    alone, expected = (cache.apply_slice_to_batch_dim([1]).remove_batch_dim() for cache in (theirs, ours))
    for name in ours:
        same(alone[name], expected[name])


def test_stacks_of_one_kind_on_a_device_of_choice(ours: ActivationCache, theirs: Any) -> None:
    same(theirs.stack_activation("z"), ours.stack_activation("z"))
    same(theirs.to("cpu").stack_activation("pattern", 1), ours.to("cpu").stack_activation("pattern", 1))
    before = torch.is_grad_enabled()
    theirs.toggle_autodiff(False)
    assert not torch.is_grad_enabled()
    torch.set_grad_enabled(before)


def test_what_it_has_for_state_space_models_finds_none(theirs: Any) -> None:
    assert theirs.ssm_layers() == []
    for method in (theirs.compute_ssm_state, theirs.compute_ssm_effective_attention):
        with pytest.raises(RuntimeError, match="No SSM"):
            method()


def test_every_one_of_its_methods_is_called_here() -> None:
    from pathlib import Path

    from transformer_lens.ActivationCache import ActivationCache as TheirCache

    public = [name for name, value in vars(TheirCache).items() if callable(value) and not name.startswith("_")]
    text = Path(__file__).read_text()
    assert [name for name in public if f".{name}" not in text] == []
