"""TransformerLens's bridge under the contract: names, values, edits and gradients are those of our GPT."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.contract import HookedModel, ResumableModel
from interp.errors import LabError, UnknownHookError
from interp.sites import axes_of
from models import GPT, TransformerConfig, load
from models.bridge import Bridge
from models.pretrained.bridged import boot
from models.tokenizers import characters
from tests.checkpoints import tiny_hugging_face_model
from tests.parity.bridge_models import KINDS, VOCAB, Pair, both, saved
from tests.parity.family_models import N_CTX as CONTEXT
from tests.strategies import random_model

# float32 throughout: activations are of order one and differ by a few units in the last place per layer
# (measured: 2e-6); gradients are compared relative to their largest entry (measured: 5e-6).
CLOSE = 2e-5
LAYERS = 2

# What TransformerLens has under no name, computes without passing, or passes with its axes in another order.
UNSERVED = {
    "gpt_neox": ("hook_rot_q", "hook_rot_k"),
    **dict.fromkeys(
        ("gemma3", "olmo2"), tuple(f"{n}_norm.hook_{kind}" for n in "qk" for kind in ("scale", "normalized"))
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def pair(checkpoint: Path) -> Pair:
    return both(checkpoint)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(VOCAB, (3, 9), generator=torch.Generator().manual_seed(1))


def _padding(side: str | None) -> Tensor | None:
    if side is None:
        return None
    lengths = torch.tensor([9, 7, 4])
    position = torch.arange(9)
    return position < lengths[:, None] if side == "right" else position >= 9 - lengths[:, None]


def _real(value: Tensor, name: str, mask: Tensor | None) -> Tensor:
    """The rows of an activation that belong to real tokens: what padding computes is nobody's business."""
    axes = axes_of(name)
    assert axes is not None
    rows = value.movedim(axes.index("q_pos"), 1) if "q_pos" in axes else value
    return rows if mask is None else rows[mask]


def _runs(model: GPT | Bridge) -> list[list[str]]:
    """The hook names in runs that the bridge can serve: hook_attn_in apart from the rest."""
    apart = [name for name in model.hook_dict if name.endswith("hook_attn_in")]
    rest = [name for name in model.hook_dict if name not in apart]
    return [names for names in (rest, apart) if names]


def _everything(model: GPT | Bridge, tokens: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}
    for names in _runs(model):
        kept |= model.run_with_cache(tokens, attention_mask=mask, names_filter=names)[1]
    return kept


def _disturb(name: str) -> Callable[..., Tensor | None]:
    """An edit with an effect everywhere: attention stays a distribution, the rest is scaled in place at random."""

    def edit(value: Tensor, hook: Any) -> Tensor | None:
        assert hook.name == name, "called with another name than the one asked for"
        noise = torch.rand(value.shape[1:], generator=torch.Generator().manual_seed(2)) + 0.5
        if name.endswith("hook_pattern"):
            return value * noise / (value * noise).sum(-1, keepdim=True)
        if name.endswith("hook_attn_scores"):
            return value + noise * (value > torch.finfo(value.dtype).min)
        value.mul_(noise)
        return None

    return edit


def test_the_bridge_is_a_hooked_model_that_cannot_resume(pair: Pair) -> None:
    assert isinstance(pair[1], HookedModel)
    assert not isinstance(pair[1], ResumableModel)


@pytest.mark.parametrize("side", [None, "left", "right"])
def test_logits_are_hugging_faces_however_padded(checkpoint: Path, pair: Pair, tokens: Tensor, side: str) -> None:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    mask = _padding(side)
    logits = pair[1](tokens, attention_mask=mask)
    for row in range(len(tokens)):  # one prompt at a time, without padding
        real = slice(None) if mask is None else mask[row]
        alone = reference(tokens[row][real][None]).logits[0]
        torch.testing.assert_close(logits[row][real], alone, atol=CLOSE, rtol=0)


def test_the_bridge_serves_the_hook_points_of_our_gpt_and_no_other(pair: Pair, checkpoint: Path) -> None:
    ours, bridge = pair
    unserved = UNSERVED.get(family_of(checkpoint), ())
    assert set(bridge.hook_dict) == {name for name in ours.hook_dict if not unserved or not name.endswith(unserved)}
    assert {n for n, p in bridge.hook_dict.items() if p.on_demand} == {
        n for n, p in ours.hook_dict.items() if p.on_demand
    }


def family_of(checkpoint: Path) -> str:
    return checkpoint.name[:-1]  # pytest numbers its directories


def test_a_point_whose_axes_are_in_another_order_is_not_served_though_the_sizes_match(tmp_path: Path) -> None:
    """With as many heads as positions the norms of queries, [batch head pos], would pass for ours, [batch pos head]."""
    from transformers import Qwen3Config

    sizes = {"vocab_size": VOCAB, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 1, "head_dim": 4}
    bridge = _boot(Qwen3Config(**sizes, num_attention_heads=3, num_key_value_heads=3), tmp_path)
    assert "blocks.0.attn.q_norm.hook_normalized" in bridge.inner.hook_dict
    assert not [name for name in bridge.hook_dict if "_norm." in name]


@pytest.mark.parametrize("side", [None, "left", "right"])
def test_every_activation_equals_our_gpts(pair: Pair, tokens: Tensor, side: str | None) -> None:
    mask = _padding(side)
    ours, theirs = (_everything(model, tokens, mask) for model in pair)
    assert set(theirs) == set(pair[1].hook_dict)
    for name in theirs:
        value = ours[name]
        expected, got = _real(value, name, mask), _real(theirs[name], name, mask)
        torch.testing.assert_close(got, expected, atol=CLOSE, rtol=CLOSE, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("side", [None, "left"])
def test_an_edit_at_any_point_has_the_same_effect_as_in_our_gpt(pair: Pair, tokens: Tensor, side: str | None) -> None:
    mask = _padding(side)
    unedited = _real(pair[0](tokens, attention_mask=mask), "unembed.hook_out", mask)
    for name in pair[1].hook_dict:
        hooks = [(name, _disturb(name))]
        expected, got = (
            _real(m.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=hooks), "unembed.hook_out", mask)
            for m in pair
        )
        assert (expected - unedited).abs().max() > 100 * CLOSE, f"the edit of {name} shows nothing"
        torch.testing.assert_close(got, expected, atol=CLOSE, rtol=CLOSE, msg=lambda m, n=name: f"{n}: {m}")


def test_gradients_at_any_point_equal_our_gpts_also_behind_an_edit(pair: Pair, tokens: Tensor) -> None:
    for name in [name for name in pair[1].hook_dict if not name.startswith("blocks.1.")]:  # as block 0, half the work
        gradients = []
        for model in pair:
            kept: list[Tensor] = []
            look = [(name, lambda grad, hook, kept=kept: kept.append(grad.clone()))]
            with model.hooks([(name, _disturb(name))], look):
                model(tokens, return_type="loss").backward()
            model.zero_grad()
            gradients.append(kept[0])
        expected, got = gradients
        scale = float(expected.abs().max())
        torch.testing.assert_close(got, expected, atol=CLOSE * scale, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_the_loss_is_our_gpts(pair: Pair, tokens: Tensor) -> None:
    mask = _padding("left")
    ours, theirs = (m(tokens, attention_mask=mask, return_type="loss") for m in pair)
    torch.testing.assert_close(theirs, ours, atol=CLOSE, rtol=0)


def test_the_weights_are_our_gpts_unfolded(pair: Pair) -> None:
    ours, bridge = pair
    names = ["W_E", "W_U", "b_U", *(f"{kind}_{part}" for kind in "Wb" for part in ("Q", "K", "V", "O", "in", "out"))]
    for name in names:
        torch.testing.assert_close(getattr(bridge, name), getattr(ours, name), atol=0, rtol=0, msg=name)
    stream = torch.randn(2, 5, ours.cfg.d_model)
    torch.testing.assert_close(
        bridge.unembed(bridge.ln_final(stream)), ours.unembed(ours.ln_final(stream)), atol=CLOSE, rtol=CLOSE
    )


def test_a_run_stopped_at_a_layer_returns_the_stream_that_enters_it(pair: Pair, tokens: Tensor) -> None:
    bridge = pair[1]
    _, cache = bridge.run_with_cache(tokens)
    streams = [cache["resid_pre", layer] for layer in range(LAYERS)] + [cache["resid_post", LAYERS - 1]]
    for stop, stream in enumerate(streams):
        resid, stopped = bridge.run_with_cache(tokens, stop_at_layer=stop)
        torch.testing.assert_close(resid, stream, atol=0, rtol=0)
        layers = [int(name.split(".")[1]) for name in stopped if name.startswith("blocks.")]
        assert all(layer < stop for layer in layers)
    torch.testing.assert_close(bridge(tokens, stop_at_layer=-1), streams[-2], atol=0, rtol=0)


def test_the_parts_of_the_stream_sum_to_it_and_their_shares_to_the_logit(pair: Pair, tokens: Tensor) -> None:
    bridge = pair[1]
    logits, cache = bridge.run_with_cache(tokens)
    for neurons in (True, False):
        parts = cache.get_full_resid_decomposition(expand_neurons=neurons)
        torch.testing.assert_close(parts.sum(0), cache["resid_post", -1], atol=CLOSE, rtol=CLOSE)
    if bridge.cfg.output_logits_soft_cap is not None:
        with pytest.raises(LabError, match="caps its logits"):
            cache.logit_attrs(parts, tokens=3)
        return
    shares = cache.logit_attrs(parts, tokens=torch.tensor([3, 4, 5]))
    norm_bias = getattr(bridge.ln_final, "b", None)
    constant = 0 if norm_bias is None else norm_bias @ bridge.W_U[:, [3, 4, 5]]
    expected = logits[range(3), :, [3, 4, 5]] - (constant[:, None] if norm_bias is not None else 0)
    torch.testing.assert_close(shares.sum(0), expected, atol=10 * CLOSE, rtol=10 * CLOSE)  # a sum of 20 terms


def test_an_edit_in_place_leaves_what_was_cached_alone(pair: Pair, tokens: Tensor) -> None:
    bridge = pair[1]
    _, clean = bridge.run_with_cache(tokens)
    kept: dict[str, Tensor] = {}
    for name in (
        "blocks.1.hook_resid_pre",
        "blocks.1.attn.hook_z",
        "blocks.0.hook_resid_mid",
        "blocks.1.hook_attn_out",
    ):
        if name not in bridge.hook_dict:  # parallel blocks have no middle
            continue
        keep = (name, lambda value, hook, kept=kept: kept.update({hook.name: value.detach()}))
        with bridge.hooks([keep, (name, _disturb(name))]):
            bridge(tokens)
        torch.testing.assert_close(kept[name], clean[name], atol=CLOSE, rtol=0)


def test_a_context_removes_what_it_added_and_nothing_else_also_after_an_exception(pair: Pair, tokens: Tensor) -> None:
    bridge = pair[1]
    calls: list[str] = []
    count = [("blocks.0.attn.hook_z", lambda z, hook: calls.append(hook.name))]
    before = {point: len(point.fwd_hooks) for point in bridge.inner.hook_dict.values()}
    with bridge.hooks(count):
        with pytest.raises(ZeroDivisionError), bridge.hooks([("blocks.1.hook_resid_pre", lambda x, hook: 1 // 0)]):
            bridge(tokens)
        calls.clear()
        bridge(tokens)
        assert calls == ["blocks.0.attn.hook_z"]
    bridge(tokens)
    assert len(calls) == 1
    assert {point: len(point.fwd_hooks) for point in bridge.inner.hook_dict.values()} == before


def test_a_hook_that_runs_the_model_again_fires_once_per_run(pair: Pair, tokens: Tensor) -> None:
    bridge = pair[1]
    calls: list[str] = []

    def run_again(resid: Tensor, hook: Any) -> None:
        calls.append(hook.name)
        if len(calls) == 1:
            bridge(tokens)

    bridge.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_pre", run_again)])
    assert len(calls) == 2


def test_optional_points_fire_when_hooked_and_cost_nothing_after(pair: Pair, tokens: Tensor) -> None:
    bridge = pair[1]
    plain = bridge(tokens)
    for name in ("blocks.1.attn.hook_result", "blocks.1.hook_q_input", "blocks.1.hook_mlp_in"):
        _, cache = bridge.run_with_cache(tokens, names_filter=name)
        assert list(cache) == [name]
    assert not any(name.endswith(("hook_result", "_input", "hook_mlp_in")) for name in bridge.run_with_cache(tokens)[1])
    torch.testing.assert_close(bridge(tokens), plain, atol=0, rtol=0)


def test_a_name_that_the_model_lacks_is_refused_before_the_forward(pair: Pair, tokens: Tensor) -> None:
    bridge = pair[1]
    with pytest.raises(UnknownHookError, match=r"closest: 'blocks\.1\.attn\.hook_z'"):
        bridge.run_with_hooks(tokens, fwd_hooks=[("blocks.1.atn.hook_z", lambda z, hook: None)])
    with pytest.raises(UnknownHookError):
        bridge.run_with_cache(
            tokens, names_filter="blocks.0.attn.qkv.hook_out"
        )  # there in TransformerLens, never fires
    absent = "blocks.0.hook_attn_in" if bridge.cfg.n_key_value_heads else "blocks.0.attn.hook_rot_q"
    with pytest.raises(UnknownHookError):
        bridge.add_hook(absent, lambda x, hook: None)


def test_two_kinds_of_attention_input_in_one_run_are_refused(pair: Pair, tokens: Tensor) -> None:
    bridge = pair[1]
    if "blocks.0.hook_attn_in" not in bridge.hook_dict:
        pytest.skip("no hook_attn_in where heads share keys and values")
    with pytest.raises(LabError, match="cannot be hooked in one run"):
        bridge.run_with_cache(tokens, names_filter=["blocks.0.hook_attn_in", "blocks.0.hook_q_input"])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.tensor([[VOCAB]]), "token ids run from"),
        (torch.tensor([[-1]]), "token ids run from"),
        (torch.zeros(1, CONTEXT + 1, dtype=torch.long), "do not fit the context window"),
    ],
)
def test_input_that_does_not_fit_is_refused_in_our_gpts_words(pair: Pair, tokens: Tensor, message: str) -> None:
    for model in pair:
        with pytest.raises(LabError, match=message):
            model(tokens)


def test_no_warning_reaches_the_user(pair: Pair, tokens: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair[1].run_with_hooks(tokens, fwd_hooks=[("ln_final.hook_scale", lambda scale, hook: 2 * scale)])


def test_a_directory_without_safetensors_is_refused(tmp_path: Path) -> None:
    model = tiny_hugging_face_model("gpt2")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(LabError):
        load(str(tmp_path), backend="transformer-lens")


def test_a_model_of_the_labs_own_bridges_too_text_and_all(tmp_path: Path) -> None:
    tokenizer = characters("abcdef ")
    sizes = {"n_layers": 1, "n_heads": 2, "d_model": 12, "d_vocab": len(tokenizer), "n_ctx": 16}
    random_model(TransformerConfig(**sizes, model_name="letters"), dtype=torch.float32).save(tmp_path)
    tokenizer.save(tmp_path)
    ours, theirs = load(str(tmp_path)), load(str(tmp_path), backend="transformer-lens")
    texts = ["cab", "a bad cafe"]
    assert theirs.to_str_tokens(texts) == ours.to_str_tokens(texts)
    assert theirs.cfg.model_name == "letters"
    mask = ours.to_tokens_and_mask(texts)[1]
    torch.testing.assert_close(theirs(texts)[mask], ours(texts)[mask], atol=CLOSE, rtol=CLOSE)


def _boot(config: Any, directory: Path) -> Bridge:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return boot(directory)


def test_an_architecture_that_rescales_what_its_parts_write_is_named_as_such(tmp_path: Path) -> None:
    from transformers import GraniteConfig

    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1}
    config = GraniteConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, residual_multiplier=0.5)
    with pytest.warns(UserWarning, match="it rescales what heads write"):
        _boot(config, tmp_path)


def test_a_model_without_attention_is_refused(tmp_path: Path) -> None:
    from transformers import MambaConfig

    with pytest.raises(LabError, match="blocks without attention or MLP"):
        _boot(MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1), tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.1)])
def test_on_a_gpu_the_logits_are_our_gpts(checkpoint: Path, tokens: Tensor, dtype: str, tolerance: float) -> None:
    """Relative to the largest logit. float32: kernels may round products to TF32; bfloat16 keeps 8 bits."""
    ours, theirs = (load(str(checkpoint), backend, "cuda", dtype) for backend in ("native", "transformer-lens"))
    mask = _padding("left")
    assert mask is not None
    tokens, mask = tokens.cuda(), mask.cuda()
    expected, (got, cache) = ours(tokens, attention_mask=mask), theirs.run_with_cache(tokens, attention_mask=mask)
    assert {value.device.type for value in cache.values()} == {"cuda"}
    assert got.dtype == ours.dtype
    assert (got - expected)[mask].abs().max() <= tolerance * expected[mask].abs().max()


def test_importing_the_bridge_imports_neither_transformer_lens_nor_transformers() -> None:
    code = "import sys, models.bridge; print([m for m in ('transformer_lens', 'transformers') if m in sys.modules])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
