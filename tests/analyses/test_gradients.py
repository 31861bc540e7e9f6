"""Attribution patching against finite differences, against exact patching where both must agree, and what it refuses.

Everything is float64 unless said. EXACT is for the rounding of different kernels.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analyses import activation_patching, attribution_patching
from analyses.agreement import agreement
from analyses.first_order import batches_of
from analyses.gradients import AttributionPatchingResult
from interp import LabError, PromptPairs, metrics, tasks
from interp.markers import pure
from interp.results import Result
from interp.sites import KINDS, Site
from models import GPT, TransformerConfig, load
from tests.checkpoints import FAMILIES, VOCAB, saved
from tests.pairs import pairs, random_pairs
from tests.strategies import models, random_model

EXACT = 1e-9
STEP = 1e-4

SIZES: dict[str, Any] = {"n_layers": 2, "n_heads": 2, "d_model": 8, "d_head": 4, "d_mlp": 10, "d_vocab": 11, "n_ctx": 8}
CONFIGS = {
    "plain": TransformerConfig(**SIZES),
    "shared-rotary-gated": TransformerConfig(
        **SIZES,
        n_key_value_heads=1,
        positional_embedding_type="rotary",
        normalization_type="RMS",
        gated_mlp=True,
        attn_bias=False,
    ),
    "parallel-sinusoidal-no-norm": TransformerConfig(
        **SIZES, parallel_attn_mlp=True, normalization_type=None, positional_embedding_type="sinusoidal"
    ),
    "attention-only-two-way": TransformerConfig(
        **SIZES, attn_only=True, attention_dir="bidirectional", positional_embedding_type="none"
    ),
}
MODELS = {name: random_model(cfg, seed=7) for name, cfg in CONFIGS.items()}
PLAIN = MODELS["plain"]
PRESENT = [
    (name, kind)
    for name, model in MODELS.items()
    for kind in KINDS
    if KINDS[kind].per_layer and Site(kind, 0).hook_name in model.hook_dict
]
ONE_LAYER: dict[str, Any] = {
    "n_layers": 1,
    "attn_only": True,
    "normalization_type": None,
    "output_logits_soft_cap": None,
}
DOT_PRODUCTS: dict[str, Any] = {"attn_scale": None, "attn_scores_soft_cap": None, "qk_norm": None}
LINEAR_SITES = st.sampled_from(["v", "pattern", "z", "result", "attn_out", "resid_post"])
SETTINGS = st.sampled_from([{"direction": "denoise"}, {"direction": "noise", "normalize": False}])

# Random pairs may share their baselines (prompts of one token, say); then values are raw, which is no news here.
pytestmark = pytest.mark.filterwarnings("ignore:the clean baseline")


def slope(
    model: GPT, pairs: PromptPairs, site: Site, other: torch.Tensor, metric: metrics.AnyMetric = metrics.logit_diff
) -> np.ndarray:
    """d/dt of the metric of the clean prompts, with the site moved by the share t of the way to the other run's values.

    By central differences: off by the third derivative times STEP²/6, and by rounding over STEP.
    """

    def at(share: float) -> torch.Tensor:
        @pure
        def move(activation: torch.Tensor, hook: Any) -> torch.Tensor:
            moved = activation.clone()
            moved[site.index] += share * (other[site.index] - activation[site.index])
            return moved

        with torch.no_grad(), model.hooks([(site.hook_name, move)]):
            return metric(model(pairs.clean, attention_mask=pairs.mask), pairs)

    return ((at(STEP) - at(-STEP)) / (2 * STEP)).numpy()


@pytest.mark.usefixtures("unchecked")  # for speed; the other tests check annotations
@pytest.mark.parametrize(("name", "kind"), PRESENT)
def test_the_estimate_is_the_slope_of_the_exact_patch(name: str, kind: str) -> None:
    model, pairs = MODELS[name], random_pairs(3, (4, 2), "left")
    found = attribution_patching(model, pairs, kind, direction="noise", normalize=False, qk_fix=False, checks=1)
    names = [Site(kind, layer).hook_name for layer in range(model.cfg.n_layers)]
    with torch.no_grad():
        other = model.run_with_cache(pairs.corrupted, attention_mask=pairs.mask, names_filter=names)[1]
    for place in product(*(range(size) for size in found.values.shape)):
        site = Site(kind, **dict(zip(found.axes, place, strict=True)))
        expected = slope(model, pairs, site, other[site.hook_name])
        np.testing.assert_allclose(found.raw[place] - found.clean, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["logit", "prob", "prob_diff", "log_prob", "cross_entropy", "kl"])
def test_the_estimate_is_the_slope_of_every_metric_with_a_gradient(name: str) -> None:
    pairs = random_pairs(3, (4, 6), "right")
    found = attribution_patching(PLAIN, pairs, "mlp_out", name, by=("layer", "pos"))
    sites = [Site("mlp_out", layer) for layer in range(2)]
    with torch.no_grad():
        names = [site.hook_name for site in sites]
        logits, clean = PLAIN.run_with_cache(pairs.clean, attention_mask=pairs.mask, names_filter=names)
    metric = metrics.kl(logits, pairs) if name == "kl" else metrics.get(name)
    for site in sites:
        expected = slope(PLAIN, pairs.swapped(), site, clean[site.hook_name], metric)
        effect = (found.raw[site.layer] - found.corrupted).sum(0)  # to first order, positions add up
        np.testing.assert_allclose(effect, expected, atol=1e-5, rtol=1e-5)


@given(models(**ONE_LAYER), pairs(), LINEAR_SITES, SETTINGS)
def test_where_the_model_is_linear_the_estimate_is_exact(
    model: GPT, pairs: PromptPairs, site: str, settings: dict[str, Any]
) -> None:
    """One layer of attention without norms: the logits are linear in everything after the softmax, and in values."""
    assert_exact(model, pairs, site, **settings)


@given(
    models(**ONE_LAYER, **DOT_PRODUCTS),
    pairs(),
    st.sampled_from([("layer", "head"), ("head", "pos"), ("layer",)]),
    SETTINGS,
)
def test_where_only_the_softmax_is_not_linear_the_qk_fix_is_exact(
    model: GPT, pairs: PromptPairs, by: tuple[str, ...], settings: dict[str, Any]
) -> None:
    """For queries and for keys, each position alone and all together; shared key heads and rotations included."""
    turned = ("rot_q", "rot_k") if model.cfg.positional_embedding_type == "rotary" else ()
    for site in ("q", "k", *turned):
        assert_exact(model, pairs, site, by=by, **settings)


def assert_exact(model: GPT, pairs: PromptPairs, site: str, **settings: Any) -> None:
    exact = activation_patching(model, pairs, site, **settings)
    found = attribution_patching(model, pairs, site, **settings)
    tolerance = EXACT * max(1.0, np.abs(exact.raw).max())
    for name in ("raw", "clean", "corrupted"):
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), atol=tolerance, rtol=0)
    assert (found.axes, found.normalized, found.labels) == (exact.axes, exact.normalized, exact.labels)
    unit = abs(exact.clean.mean() - exact.corrupted.mean()) if exact.normalized else 1.0
    np.testing.assert_allclose(found.values, exact.values, atol=tolerance / unit, rtol=0)
    assert found.agreement.worst <= tolerance / unit


@pytest.mark.parametrize("site", ["q", "k"])
def test_without_the_fix_a_saturated_softmax_hides_queries_and_keys(site: str) -> None:
    """Attention ten times as sharp: no slope is left in the softmax, yet patching moves it."""
    cfg = TransformerConfig(**SIZES | ONE_LAYER)
    model = random_model(cfg, seed=1)
    with torch.no_grad():
        for linear in (model.blocks[0].attn.q, model.blocks[0].attn.k):
            linear.weight *= 10
    prompts = random_pairs(3, (6, 5, 6))
    linear, fixed = (attribution_patching(model, prompts, site, qk_fix=fix) for fix in (False, True))
    assert fixed.agreement.worst < EXACT * 1e3
    assert linear.agreement.worst > 0.05
    assert (fixed.qk_fix, linear.qk_fix) == (True, False)


def sizes_with_layers_dropped(model: GPT, pairs: PromptPairs, kind: str) -> np.ndarray:
    """|estimate| [dropped layer head_or_pos prompt], each from a run that detaches what the dropped layer writes."""
    n_layers = model.cfg.n_layers
    names = [Site(kind, layer).hook_name for layer in range(n_layers)]
    other = model.run_with_cache(pairs.corrupted, attention_mask=pairs.mask, names_filter=names)[1]
    sizes = []
    for dropped in range(n_layers):
        seen: dict[str, torch.Tensor] = {}

        @pure
        def keep(activation: torch.Tensor, hook: Any, seen: dict[str, torch.Tensor] = seen) -> torch.Tensor:
            seen[hook.name] = activation.clone()
            return seen[hook.name]

        @pure
        def hold_back(activation: torch.Tensor, hook: Any) -> torch.Tensor:
            return activation.detach()

        written = [n for k in ("attn_out", "mlp_out") if (n := Site(k, dropped).hook_name) in model.hook_dict]
        with model.hooks([(n, keep) for n in names] + [(n, hold_back) for n in written]):
            scores = metrics.logit_diff(model(pairs.clean, attention_mask=pairs.mask), pairs)
        gradients = torch.autograd.grad(scores.sum(), list(seen.values()), allow_unused=True)
        estimates = [
            (other[name] - seen[name].detach()) * (0 if gradient is None else gradient)
            for name, gradient in zip(names, gradients, strict=True)
        ]
        summed = [e.sum((1, 3)) if e.ndim == 4 else e.sum(2) for e in estimates]
        sizes.append(torch.stack(summed).abs().mT.numpy())
    return np.stack(sizes)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["z", "attn_out", "resid_pre"])
def test_grad_drop_is_the_mean_size_over_dropped_layers(name: str, kind: str) -> None:
    model, prompts = random_model(replace(CONFIGS[name], n_layers=3), 7), random_pairs(4, (4, 3))
    found = attribution_patching(model, prompts, kind, direction="noise", grad_drop=True, checks=2)
    sizes = sizes_with_layers_dropped(model, prompts, kind)
    expected = sizes.mean(0) * (1 if kind == "resid_pre" else 3 / 2)  # a head has no gradient once its layer is dropped
    np.testing.assert_allclose(found.raw, expected, atol=EXACT)
    span = abs(found.clean.mean() - found.corrupted.mean())
    np.testing.assert_allclose(found.values, expected.mean(-1) / span, atol=EXACT)
    exact = activation_patching(model, prompts, kind, direction="noise")
    checked = ~np.isnan(found.exact)
    change = np.abs(exact.raw - exact.clean).mean(-1) / span
    np.testing.assert_allclose(found.exact[checked], change[checked], atol=EXACT)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_largest_estimates_are_checked_and_the_agreement_is_what_it_says(direction: str, normalize: bool) -> None:
    prompts, settings = random_pairs(5, (4, 6, 3)), {"direction": direction, "normalize": normalize}
    found = attribution_patching(PLAIN, prompts, "mlp_post", by=("layer", "neuron"), checks=7, **settings)
    exact = activation_patching(PLAIN, prompts, "mlp_post", by=("layer", "neuron"), **settings)

    base = found.corrupted if direction == "denoise" else found.clean
    top = np.argsort(-np.abs((found.raw - base).mean(-1)), axis=None)[:7]
    checked = np.flatnonzero(~np.isnan(found.exact))
    assert set(checked) == set(top)
    one, other = found.values.flat[checked], exact.values.flat[checked]
    np.testing.assert_allclose(found.exact.flat[checked], other, atol=1e-7)

    middle = base.mean() if not normalize else 0.0 if direction == "denoise" else 1.0
    agreement = found.agreement
    assert agreement.n == 7
    assert agreement.pearson == pytest.approx(np.corrcoef(one, other)[0, 1], abs=1e-6)
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    assert agreement.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-6)
    assert agreement.same_sign == int(((one > middle) == (other > middle)).sum())
    assert agreement.worst == pytest.approx(np.abs(one - other).max(), abs=1e-6)


def test_the_agreement_needs_three_sites_that_differ_and_ties_share_their_rank() -> None:
    few = agreement(np.array([1.0, 2.0]), np.array([1.0, -2.0]))
    assert np.isnan([few.pearson, few.spearman]).all()
    assert (few.same_sign, few.worst) == (1, 4.0)
    assert "Pearson not defined" in str(few)
    tied = agreement(np.array([1.0, 1.0, 2.0]), np.array([3.0, 3.0, 9.0]))
    assert tied.spearman == pytest.approx(1.0)
    assert np.isnan(agreement(np.ones(4), np.arange(4.0)).pearson)


def test_the_agreement_is_told_wherever_the_result_is_shown(tmp_path: Path) -> None:
    found = attribution_patching(PLAIN, random_pairs(5, (4, 6, 3)), "z", by=("layer", "head", "pos"), checks=3)
    said = str(found.agreement)
    assert "of 3" in said
    assert said in repr(found)
    assert said in found.caveat
    assert said in found.to_html()
    assert any(said in note.text for note in found.plot().layout.annotations)
    assert found.to_dict()["agreement"]["n"] == 3
    assert list(found.to_dataframe().columns) == ["layer", "head", "pos", "pos_label", "values", "exact"]
    found.save(tmp_path / "found.safetensors")
    loaded = Result.load(tmp_path / "found.safetensors")
    assert isinstance(loaded, AttributionPatchingResult)
    assert loaded == found
    assert loaded.agreement == found.agreement
    assert loaded.provenance.settings == {"qk_fix": False, "grad_drop": False, "checks": 3}


def test_with_fewer_sites_than_checks_all_are_checked() -> None:
    found = attribution_patching(PLAIN, random_pairs(5, (4, 6, 3)), "z", checks=99)
    exact = activation_patching(PLAIN, random_pairs(5, (4, 6, 3)), "z")
    np.testing.assert_allclose(found.exact, exact.values, atol=1e-9)


@given(models(**DOT_PRODUCTS), pairs(), st.sampled_from(["resid_mid", "z", "q", "k"]), st.booleans())
def test_prompts_do_not_notice_each_other_nor_the_budget(
    model: GPT, pairs: PromptPairs, site: str, grad_drop: bool
) -> None:
    if Site(site, 0).hook_name not in model.hook_dict or (grad_drop and model.cfg.n_layers == 1):
        return
    settings: dict[str, Any] = {"normalize": False, "grad_drop": grad_drop, "checks": 1}
    together = attribution_patching(model, pairs, site, **settings)
    size = max(1.0, np.abs(together.raw).max())
    for prompt in range(len(pairs)):
        alone = attribution_patching(model, pairs[prompt], site, **settings)
        np.testing.assert_allclose(alone.raw[..., 0], together.raw[..., prompt], atol=1e-8 * size, rtol=0)


def test_a_small_budget_changes_no_number() -> None:
    prompts = random_pairs(5, (4, 6, 3))
    whole, split = (attribution_patching(PLAIN, prompts, "z", "kl", budget=b) for b in (None, 100_000))
    assert len(list(batches_of(PLAIN, prompts, 100_000))) == 2
    np.testing.assert_allclose(split.raw, whole.raw, atol=1e-9)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_changes_nothing(context: Any) -> None:
    prompts = random_pairs(5, (4, 6, 3))
    usual = attribution_patching(PLAIN, prompts, "z", "kl")
    with context():
        inside = attribution_patching(PLAIN, random_pairs(5, (4, 6, 3)), "z", "kl")
    assert inside == usual


@pytest.mark.parametrize("site", ["resid_pre", "mlp_post", "k"])
def test_frozen_parameters_change_nothing_and_no_gradient_is_left(site: str) -> None:
    prompts, model = random_pairs(5, (4, 6, 3)), random_model(CONFIGS["plain"], 7)
    usual = attribution_patching(model, prompts, site, grad_drop=True)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(point.has_hooks() for point in model.hook_dict.values())
    model.requires_grad_(False)
    assert attribution_patching(model, prompts, site, grad_drop=True) == usual
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.3)])
@pytest.mark.parametrize("site", ["resid_pre", "q", "k"])
def test_other_dtypes_give_the_same_numbers_within_their_rounding(
    site: str, dtype: torch.dtype, tolerance: float
) -> None:
    """Relative to the largest effect, with weights that bfloat16 holds exactly. Bfloat16 keeps 8 bits of each of a few
    dozen numbers on the way from a site to the logits and back."""
    prompts = random_pairs(5, (4, 6, 3))
    model = random_model(CONFIGS["plain"], 7).bfloat16().double()
    exact = attribution_patching(model, prompts, site, normalize=False)
    found = attribution_patching(model.to(dtype), prompts, site, normalize=False)
    effects, rounded = (r.raw - r.corrupted for r in (exact, found))
    assert np.abs(effects - rounded).max() < tolerance * np.abs(effects).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bridge_gives_the_same_numbers(family: str, tmp_path: Path) -> None:
    """Float32; 1e-4 as in tests/parity/test_bridge_analyses.py."""
    directory = str(saved(family, tmp_path))
    ours, theirs = load(directory), load(directory, backend="transformer-lens")
    prompts = random_pairs(3, lengths=(5, 4), side="left", d_vocab=VOCAB)
    for site, grad_drop in (("resid_mid", True), ("z", False), ("q", False), ("k", True), ("mlp_post", False)):
        one, other = (
            attribution_patching(m, prompts, site, normalize=False, grad_drop=grad_drop) for m in (ours, theirs)
        )
        assert np.abs(one.raw).max() > 1e-3
        np.testing.assert_allclose(other.raw, one.raw, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_in_the_town_the_three_strongest_heads_are_those_of_exact_patching(direction: str) -> None:
    model = load("town")
    prompts = tasks.ioi(model, n=16, seed=0)
    exact = activation_patching(model, prompts, "z", direction=direction)
    found = attribution_patching(model, prompts, "z", direction=direction)
    assert {extreme.index for extreme in exact.top(3)} == {extreme.index for extreme in found.top(3)}
    assert found.agreement.spearman > 0.8


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_metric_that_is_stationary_at_the_patched_run_is_refused(dtype: torch.dtype) -> None:
    prompts, model = random_pairs(5, (6,)), random_model(CONFIGS["plain"], 7, dtype)
    with torch.no_grad():
        logits = model(prompts.clean, attention_mask=prompts.mask)
    clean = metrics.at_last(logits, prompts)

    def from_clean(logits: torch.Tensor, pairs: PromptPairs) -> torch.Tensor:
        return (metrics.at_last(logits, pairs) - clean).pow(2).sum(-1)

    for metric in ("kl", metrics.kl(logits, prompts), from_clean):
        with pytest.raises(LabError, match="direction"):
            attribution_patching(model, prompts, metric=metric, direction="noise")
        attribution_patching(model, prompts, metric=metric, direction="denoise")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "rank"}, "'rank' counts, so it has no gradient; try 'logit_diff'"),
        ({"metric": metrics.rank}, "'rank' counts"),
        ({"metric": lambda logits: logits[:, -1].argmax(-1).double()}, "has no gradient; try 'logit_diff'"),
        ({"metric": lambda logits: logits[:, -1, 0].sign()}, "vanishes at the run that is patched"),
        ({"metric": "logit_dif"}, "closest: 'logit_diff'"),
        ({"site": "resid_per"}, "closest: 'resid_pre'"),
        ({"site": "rot_q"}, "has no 'rot_q'"),
        ({"direction": "backwards"}, "denoise, noise"),
        ({"by": ["head"]}, "cannot be told apart by head"),
        ({"checks": 0}, "checks=0; expected at least 1"),
    ],
)
def test_what_gradients_cannot_answer_is_refused_in_words(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        attribution_patching(PLAIN, random_pairs(9, (4, 3)), **arguments)


def test_grad_drop_on_one_layer_is_refused() -> None:
    with pytest.raises(LabError, match="one; expected at least 2 layers"):
        attribution_patching(random_model(replace(CONFIGS["plain"], n_layers=1)), random_pairs(9, (4,)), grad_drop=True)


def test_a_model_without_gradients_is_refused() -> None:
    class Detached(GPT):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs).detach()

    with pytest.raises(LabError, match="gives logits without a gradient"):
        attribution_patching(Detached(CONFIGS["plain"]), random_pairs(9, (4,)))


def test_the_fix_is_refused_where_scores_follow_another_formula() -> None:
    """Here a hook stands for an architecture with a formula of its own."""
    model, prompts = random_model(CONFIGS["plain"], 7), random_pairs(9, (4, 3))
    model.add_hook("blocks.1.attn.hook_pattern", lambda pattern, hook: pattern / 2)
    with pytest.raises(LabError, match=r"its scores follow another formula\. qk_fix=False"):
        attribution_patching(model, prompts, "k")
    assert np.isfinite(attribution_patching(model, prompts, "k", qk_fix=False).values).all()
