"""Every analysis gives the same numbers on TransformerLens's bridge and on our GPT of the same weights.

Tolerance: 1e-4 absolute and relative, in float32. Activations agree to 2e-6 (tests/models/test_bridge.py); an
analysis sums some hundred of them, and a normalised effect divides by a difference of two logits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import analyses
from analyses.patching import patching_plan
from interp import Site
from interp.contract import ResumableModel
from interp.errors import LabError
from interp.sampling import Sampling
from interp.shares import gain_of
from models.bridge import Bridge
from tests.pairs import random_pairs
from tests.parity.bridge_models import KINDS, VOCAB, Pair, both, saved
from tests.parity.test_bridge_circuits import CIRCUIT_ANALYSES
from tests.parity.test_bridge_embeddings import EMBEDDING_ANALYSES

SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern", "mlp_post")
PROMPTS = random_pairs(3, lengths=(5, 4), side="left", d_vocab=VOCAB)
TOKENS = torch.randint(VOCAB, (9,), generator=torch.Generator().manual_seed(4))
WAYS = [Sampling(0), Sampling(2), Sampling(top_k=3), Sampling(top_p=0.5)]
RECEIVERS = ["logits", *(Site(kind, 1) for kind in ("q", "k", "v", "mlp_in")), (Site("q", 0), Site("v", 1))]


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none of these has a step that the lab does not account for
        return both(saved(request.param, tmp_path_factory.mktemp(request.param)))


def patching(site: str, direction: str = "denoise") -> Callable[[Any], Any]:
    return lambda model: analyses.activation_patching(model, PROMPTS, site, direction=direction, normalize=False)


def ablation(of: str, value: str) -> Callable[[Any], Any]:
    return lambda model: analyses.ablation(model, PROMPTS, of, value)


# The analysis -> its runs, and the arrays that must be the same.
RUNS: dict[str, tuple[list[Callable[[Any], Any]], tuple[str, ...]]] = {
    "activation_patching": (
        [*map(patching, SITES), patching("z", "noise")],
        ("values", "raw", "clean", "corrupted"),
    ),
    "attribution_patching": (
        [
            lambda model, site=site, drop=drop: analyses.attribution_patching(
                model, PROMPTS, site, normalize=False, grad_drop=drop, qk_fix=False
            )
            for site, drop in (("resid_post", True), ("z", False), ("q", False), ("k", True), ("mlp_post", False))
        ],
        ("raw",),
    ),
    "path_patching": ([lambda model: analyses.path_patching(model, PROMPTS, RECEIVERS, normalize=False)], ("raw",)),
    "ablation": (
        [ablation(of, value) for of in ("head", "attn", "mlp", "layer", "neuron") for value in ("zero", "mean")]
        + [ablation("head", "resample")],
        ("values", "raw", "base"),
    ),
    "cumulative_ablation": (
        [lambda model: analyses.cumulative_ablation(model, PROMPTS, order=[(0, 1), (1, 2), (0, 0)], of="head")],
        ("values", "raw"),
    ),
    "attention_knockout": (
        [
            lambda model, asked=asked: analyses.attention_knockout(model, PROMPTS, -1, [-2, -3], **asked)
            for asked in ({"window": 2}, {"by": ("layer", "head")})
        ],
        ("values", "raw"),
    ),
    "logit_lens": ([lambda model: analyses.logit_lens(model, TOKENS)], ("logits", "entropy", "kl")),
    "component_lens": (
        [
            lambda model, part=part: analyses.component_lens(model, TOKENS, part)
            for part in ("attn_out", "mlp_out", "result")
        ],
        ("logits",),
    ),
    "head_attribution": (
        [lambda model: analyses.head_attribution(model, PROMPTS)],
        ("values", "mlp", "by_prompt", "logit_diff"),
    ),
    "neuron_attribution": ([lambda model: analyses.neuron_attribution(model, PROMPTS)], ("values",)),
    "source_attribution": ([lambda model: analyses.source_attribution(model, PROMPTS)], ("values",)),
    "head_scores": ([lambda model: analyses.head_scores(model, n=4)], ("previous", "duplicate", "induction")),
    "attention_patterns": ([lambda model: analyses.attention_patterns(model, TOKENS)], ("values",)),
    "sampling_effects": (
        [lambda model: analyses.sampling_effects(model, TOKENS, WAYS, n=2, max_new_tokens=4)],
        ("tokens", "entropy", "log_prob", "distinct"),
    ),
    "context_losses": (
        [lambda model, sinks=s: analyses.context_losses(model, PROMPTS.clean[:1], [2, 3], sinks=sinks) for s in (0, 1)],
        ("values",),
    ),
}
OF_THE_LOGITS = ("component_lens", "head_attribution", "neuron_attribution", "source_attribution")


# Of two models: the analysis -> its run of one model beside our GPT.
BESIDE: dict[str, Callable[[Any, Any], Any]] = {
    "compare_predictions": lambda ours, model: analyses.compare_predictions(ours, model, TOKENS),
    "head_matching": lambda ours, model: analyses.head_matching(ours, model, TOKENS),
    "layer_similarity": lambda ours, model: analyses.layer_similarity(ours, model, TOKENS),
    "lens_trajectories": lambda ours, model: analyses.lens_trajectories(ours, model, TOKENS),
    "compare_losses": lambda ours, model: analyses.compare_losses(ours, model, TOKENS),
    "training_course": lambda ours, model: analyses.training_course(ours, [("step", model)]),
}


def test_every_analysis_is_held_to_the_bridge() -> None:
    below, of_logits_alone = {"compare", "write_report"}, {"modular_spectrum"}
    elsewhere = CIRCUIT_ANALYSES | EMBEDDING_ANALYSES
    of_encoder_decoders = {"accuracy_by_length", "cross_attention_patterns"}  # which the bridge does not hold
    of_losses_alone = {"scaling_law"}  # which takes no model
    held = set(RUNS) | set(BESIDE) | elsewhere | below | of_logits_alone | of_losses_alone
    missing = set(analyses.__all__) - held - of_encoder_decoders
    assert not missing, f"give {missing} a run here"


@pytest.mark.filterwarnings("ignore:zero ablation")
@pytest.mark.parametrize("analysis", RUNS)
def test_it_gives_the_same_numbers(pair: Pair, analysis: str) -> None:
    runs, names = RUNS[analysis]
    refused = analysis in OF_THE_LOGITS and pair[0].cfg.output_logits_soft_cap is not None
    for run in runs:
        if refused:
            for model in pair:
                with pytest.raises(LabError, match="caps its logits"):
                    run(model)
            continue
        ours, theirs = (run(model) for model in pair)
        for name in names:
            expected, got = getattr(ours, name), getattr(theirs, name)
            assert np.abs(expected).max() > 1e-3, f"{name} is nothing to compare"
            np.testing.assert_allclose(got, expected, atol=1e-4, rtol=1e-4, err_msg=name)
        assert ours.labels == theirs.labels


def test_the_stream_between_attention_and_mlp_is_patched_where_there_is_one(pair: Pair) -> None:
    if pair[0].cfg.parallel_attn_mlp:
        for model in pair:
            with pytest.raises(LabError, match="no 'resid_mid'"):
                patching("resid_mid")(model)
        return
    expected, got = (patching("resid_mid")(model).raw for model in pair)
    np.testing.assert_allclose(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("site", ["q", "k"])
def test_the_softmax_is_recomputed_alike_or_refused(pair: Pair, site: str) -> None:
    """Refused where scores are capped, or the bridge does not show queries and keys as the scores read them."""

    def estimate(model: Any) -> Any:
        return analyses.attribution_patching(model, PROMPTS, site, normalize=False, qk_fix=True).raw

    ours, bridge = pair
    if ours.cfg.attn_scores_soft_cap is not None:
        refusing = [ours, bridge]
    elif "blocks.0.attn.hook_rot_q" in ours.hook_dict and "blocks.0.attn.hook_rot_q" not in bridge.hook_dict:
        refusing = [bridge]
    else:
        expected, got = estimate(ours), estimate(bridge)
        np.testing.assert_allclose(got, expected, atol=1e-4, rtol=1e-4)
        refusing = []
    for model in refusing:
        with pytest.raises(LabError, match="qk_fix=False"):
            estimate(model)


def test_the_bridge_knows_the_caps_and_where_norms_are(pair: Pair) -> None:
    ours, bridge = pair
    for entry in ("output_logits_soft_cap", "attn_scores_soft_cap", "norm_places"):
        assert getattr(bridge.cfg, entry) == getattr(ours.cfg, entry)
    assert not bridge.unaccounted


def test_attributed_parts_sum_to_the_logit_difference(pair: Pair) -> None:
    """1e-4 of the largest part: a sum of some twenty float32 parts."""
    bridge = pair[1]
    if bridge.cfg.output_logits_soft_cap is not None:
        pytest.skip("its logits are capped, and refused above")
    found = analyses.head_attribution(bridge, PROMPTS)
    assert abs(found.total() - found.logit_diff.mean()) < 1e-4 * max(1.0, np.abs(found.values).max())


def test_the_gain_is_what_the_norm_multiplies_with(pair: Pair) -> None:
    """Gemma's norms multiply with 1 + w; exact, as both sides read the same checkpoint."""
    ours, bridge = pair
    norms = [(ours.ln_final, bridge.ln_final)]
    for own, other in zip(ours.blocks, bridge.blocks, strict=True):
        norms += [(getattr(own, name), getattr(other, name)) for name in ("ln1", "ln1_post", "ln2", "ln2_post")]
    for own, other in norms:
        if (gain := gain_of(own)) is None:
            assert other is None
        else:
            torch.testing.assert_close(gain_of(other), gain, atol=0, rtol=0)


def test_the_bridge_does_not_resume_and_says_so(pair: Pair) -> None:
    ways = ["resumed", "batched hooks"]
    assert [isinstance(model, ResumableModel) for model in pair] == [True, False]
    assert [analyses.activation_patching(model, PROMPTS, by="layer").way for model in pair] == ways
    ahead = [patching_plan(model, PROMPTS, by="layer") for model in pair]
    assert [plan.way for plan in ahead] == ways
    assert "cannot resume a run" in str(ahead[1])


def test_mlps_that_cannot_be_run_by_themselves_are_refused(pair: Pair) -> None:
    with pytest.raises(LabError, match="load the model with backend='native'"):
        analyses.path_patching(pair[1], PROMPTS, freeze_mlps=False)


@pytest.mark.parametrize("analysis", BESIDE)
def test_beside_our_gpt_it_is_as_our_gpt_is(pair: Pair, analysis: str) -> None:
    ours, bridge = pair
    expected, got = (BESIDE[analysis](ours, model) for model in (ours, bridge))
    arrays = [field.name for field in fields(expected) if isinstance(getattr(expected, field.name), np.ndarray)]
    for name in arrays:
        close = {"atol": 1e-4, "rtol": 1e-4, "err_msg": name}
        if getattr(expected, name).dtype.kind == "f":
            np.testing.assert_allclose(getattr(got, name), getattr(expected, name), **close)


def test_the_comparison_of_the_two_finds_no_difference(pair: Pair) -> None:
    assert analyses.compare(*pair, TOKENS).first_difference(1e-4) is None


def test_the_report_is_written_of_a_bridge_too_without_shares_where_logits_are_capped(
    pair: Pair, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    ours, theirs = (analyses.write_report(model, PROMPTS, path) for model in pair)
    assert path.stat().st_size > 10_000
    assert theirs.heads == ours.heads
    capped = pair[1].cfg.output_logits_soft_cap is not None
    assert [found.attribution is None for found in (ours, theirs)] == [capped, capped]


def test_a_cap_that_its_config_does_not_tell_is_found_by_numbers(tmp_path: Path) -> None:
    """The lens and shares would silently miss it, so they refuse; what takes any model goes on."""
    ours, bridge = both(saved("gemma3", tmp_path, seed=2))
    assert bridge.cfg.output_logits_soft_cap == ours.cfg.output_logits_soft_cap == 3.0
    bridge.inner.cfg.output_logits_soft_cap = -1.0  # TransformerLens's "none"
    with pytest.warns(UserWarning, match="it rescales the logits"):
        untold = Bridge(bridge.inner)
    expected, got = (patching("z")(model).values for model in (ours, untold))
    np.testing.assert_allclose(got, expected, atol=1e-4, rtol=1e-4)
    for refused in ("logit_lens", *OF_THE_LOGITS):
        for run in RUNS[refused][0]:
            with pytest.raises(LabError, match="it rescales the logits"):
                run(untold)
