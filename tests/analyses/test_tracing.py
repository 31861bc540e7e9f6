"""Causal tracing against a loop with plain hooks, its identities, and what it finds in the shipped model.

The loop runs one prompt at a time without padding, float64. TOLERANCE is for the rounding of other kernels, relative to
the largest number.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from analyses import activation_patching, causal_trace
from analyses.tracing import CausalTrace
from interp import LabError, PromptPairs, tasks
from interp.results import Result
from interp.sites import Site
from models import GPT, TransformerConfig, load
from tests.analyses.tiny_models import interp
from tests.pairs import alone, random_pairs
from tests.strategies import SEEDS, models, random_model

TOLERANCE = 1e-9
SIZES: dict[str, Any] = {"n_layers": 2, "n_heads": 2, "d_model": 8, "d_head": 4, "d_mlp": 5, "d_vocab": 11, "n_ctx": 8}
MODEL = random_model(TransformerConfig(**SIZES), seed=7)
PAIRS = random_pairs(3, (5, 4), "left")


def assert_close(found: Any, expected: Any) -> None:
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * scale)


def logit_diff(model: GPT, pairs: PromptPairs, prompt: int, tokens: Tensor, hooks: list[Any]) -> float:
    right, wrong = ([i for i in ids[prompt].tolist() if i >= 0] for ids in (pairs.right, pairs.wrong))
    with torch.no_grad():
        end = model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]
    return float(end[right].mean() - end[wrong].mean())


def writes(values: Tensor, pos: int) -> Callable[..., Tensor]:
    def hook(old: Tensor, hook: Any = None) -> Tensor:
        new = old.clone()
        new[:, pos] = values[:, pos]
        return new

    return hook


def adds(noise: Tensor) -> Callable[..., Tensor]:
    return lambda old, hook=None: old + noise


def naive(model: GPT, pairs: PromptPairs, site: str, window: int, noise: Tensor | None) -> tuple[np.ndarray, ...]:
    """The metric of every restored run [layer pos prompt], of the clean and of the corrupted runs.

    noise: [prompt draw pos d_model], zero outside of the subject, or None for a replacement.
    """
    n_layers, (n, n_pos) = model.cfg.n_layers, pairs.clean.shape
    raw, clean, corrupted = np.zeros((n_layers, n_pos, n)), np.zeros(n), np.zeros(n)
    for prompt in range(n):
        ours, theirs, first = alone(pairs, prompt)
        length = ours.shape[1]
        _, cache = model.run_with_cache(ours)
        clean[prompt] = logit_diff(model, pairs, prompt, ours, [])
        if noise is None:
            runs: list[tuple[Tensor, list[Any]]] = [(theirs, [])]
        else:
            runs = [(ours, [("hook_embed", adds(each[first : first + length]))]) for each in noise[prompt]]
        corrupted[prompt] = np.mean([logit_diff(model, pairs, prompt, *run) for run in runs])
        for layer, pos in np.ndindex(n_layers, n_pos):
            layers = [i for i in range(layer - window // 2, layer - window // 2 + window) if 0 <= i < n_layers]
            names = [Site(site, i).hook_name for i in layers] if first <= pos < first + length else []
            restored = [(name, writes(cache[name], pos - first)) for name in names]
            raw[layer, pos, prompt] = np.mean(
                [logit_diff(model, pairs, prompt, tokens, damage + restored) for tokens, damage in runs]
            )
    return raw, clean, corrupted


@settings(max_examples=5)
@given(models(attn_only=False), SEEDS, st.sampled_from(["left", "right"]), st.integers(1, 3), st.data())
def test_tracing_equals_a_loop_with_hooks(model: GPT, seed: int, side: str, window: int, data: st.DataObject) -> None:
    pairs = random_pairs(seed, (4, 3), side)
    site = data.draw(st.sampled_from(["resid_post", "attn_out", "mlp_out", "resid_pre"]))
    noise, extra = None, {}
    if data.draw(st.booleans()):
        extra = {"corruption": "noise", "noise": 0.7, "draws": 2, "seed": seed, "subject": [-2, -1]}
        where = torch.zeros(2, 4, dtype=torch.float64)
        where[:, -2:] = 1
        drawn = (0.7 * torch.randn(4, 4, 12, generator=torch.Generator().manual_seed(seed))).double()
        noise = drawn.reshape(2, 2, 4, 12) * (where * pairs.mask)[:, None, :, None]
    raw, clean, corrupted = naive(model, pairs, site, window, noise)
    found = causal_trace(model, pairs, site, window, normalize=False, **extra)
    assert_close(found.raw, raw)
    assert_close(found.clean, clean)
    assert_close(found.corrupted, corrupted)
    assert_close(found.values, raw.mean(-1) - corrupted.mean())


@settings(max_examples=6)
@given(models(), SEEDS)
def test_replacing_without_a_window_is_activation_patching(model: GPT, seed: int) -> None:
    pairs = random_pairs(seed, (5, 3))
    for site in ("resid_post", "attn_out"):
        patched = activation_patching(model, pairs, site)
        if patched.normalized:
            found = causal_trace(model, pairs, site)
            assert_close(found.values, patched.values)
            assert found.unit == patched.unit


@pytest.mark.parametrize("corruption", ["replacement", "noise"])
def test_restoring_the_last_stream_where_the_answer_is_read_restores_the_answer(corruption: str) -> None:
    found = causal_trace(MODEL, PAIRS, "resid_post", corruption=corruption)
    assert found.values[-1, -1] == pytest.approx(1.0, abs=1e-9)
    assert np.abs(found.values[-1, :-1]).max() < 1e-9


def test_the_noise_is_three_times_as_wide_as_the_prompts_embeddings() -> None:
    _, cache = MODEL.run_with_cache(PAIRS.clean, attention_mask=PAIRS.mask, names_filter=["hook_embed"])
    numbers = cache["hook_embed"][PAIRS.mask].detach().numpy()
    assert causal_trace(MODEL, PAIRS, corruption="noise").noise == pytest.approx(3 * numbers.std(ddof=1), rel=1e-6)


def test_more_draws_and_the_seed_change_the_noise_and_nothing_else() -> None:
    one, again, other = (causal_trace(MODEL, PAIRS, corruption="noise", seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert not np.array_equal(one.raw, other.raw)
    np.testing.assert_array_equal(one.clean, other.clean)
    assert (one.provenance.seed, causal_trace(MODEL, PAIRS).provenance.seed) == (0, None)


def test_the_result_survives_a_file_and_is_a_table_and_a_page(tmp_path: Path) -> None:
    found = causal_trace(MODEL, PAIRS, "mlp_out", 2)
    found.save(tmp_path / "trace.safetensors")
    loaded = Result.load(tmp_path / "trace.safetensors")
    assert isinstance(loaded, CausalTrace)
    assert loaded == found
    assert list(found.to_dataframe().columns)[:3] == ["layer", "pos", "pos_label"]
    assert "Causal tracing" in found.to_html()


def test_the_town_recalls_a_fact_at_the_country_and_moves_it_once() -> None:
    """The first layer's stream at the country, then the last position from the second layer on, bring it all back."""
    model = load("town")
    pairs = tasks.facts(model, n=8)
    for corruption in ("replacement", "noise"):
        found = causal_trace(model, pairs, corruption=corruption, draws=4)
        [country], last = found.subject, pairs.clean.shape[1] - 1
        assert found.values[0, country] > 0.95
        assert (found.values[1:, last] > 0.9).all()
        rest = np.abs(found.values)
        rest[0, country], rest[1:, last] = 0, 0
        assert rest.max() < 0.1
    mlps = causal_trace(model, pairs, "mlp_out").values
    assert mlps[0, country] > 0.5  # the first MLP looks the answer up
    attention = causal_trace(model, pairs, "attn_out").values
    assert attention[1, last] > 0.9  # the second layer's attention moves it


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("settings", "fragments"),
    [
        ({"site": "z"}, ["unknown site 'z'", "resid_post"]),
        ({"corruption": "gaussian"}, ["unknown corruption 'gaussian'", "noise"]),
        ({"window": 0}, ["window=0"]),
        ({"noise": 1.0}, ["go with 'noise'"]),
        ({"subject": [0]}, ["go with 'noise'"]),
        ({"corruption": "noise", "noise": 0.0}, ["noise=0.0", "positive"]),
        ({"corruption": "noise", "noise": float("nan")}, ["positive"]),
        ({"corruption": "noise", "draws": 0}, ["draws=0"]),
        ({"corruption": "noise", "subject": [9]}, ["position 9"]),
        ({"corruption": "noise", "subject": [0]}, ["prompt 1 has no subject"]),
        ({"metric": "logits"}, ["unknown metric 'logits'"]),
        ({"budget": 10}, ["too small for one row"]),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(settings: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(LabError) as caught:
        causal_trace(MODEL, PAIRS, **settings)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_prompts_that_do_not_differ_have_no_subject() -> None:
    same = PromptPairs(PAIRS.clean, PAIRS.clean, PAIRS.mask, PAIRS.right, PAIRS.wrong)
    with pytest.raises(LabError, match="prompt 0 has no subject"):
        causal_trace(MODEL, same)


def test_the_command_prints_the_baselines_the_subject_and_the_grid(town: Path, tmp_path: Path) -> None:
    out = tmp_path / "trace.html"
    result = interp("trace", "--model", town, "-n", 2, "--corruption", "noise", "--draws", 2, "--out", out)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("logit_diff: clean ")
    assert "noise (standard deviation" in lines[1]
    assert lines[3].startswith("layer \\ pos")
    assert out.read_text().startswith("<!doctype html>")


def test_the_command_refuses_noise_without_corruption_by_noise(town: Path) -> None:
    result = interp("trace", "--model", town, "--noise", "2")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--corruption noise" in result.stderr
