"""Activation patching against a naive loop, and what it refuses.

The loop runs one prompt at a time, without padding, patches one site at a time by PyTorch's own forward hooks, and
reads the metric by its formula. Everything is float64; TOLERANCE is for the rounding of different kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analyses import activation_patching
from analyses.labels import position_labels
from analyses.patching import PatchingResult, patching_plan
from interp import LabError, PromptPairs
from interp.results import Result
from interp.sites import KINDS
from models import GPT, TransformerConfig
from tests.pairs import alone, pairs, random_pairs
from tests.strategies import models, random_model
from tests.sweeps import least_budget

TOLERANCE = 1e-8

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
PER_LAYER = [name for name, kind in KINDS.items() if kind.per_layer]
PRESENT = [
    (name, kind)
    for name in CONFIGS
    for kind in PER_LAYER
    if KINDS[kind].template.format(layer=0) in MODELS[name].hook_dict
]


@contextmanager
def torch_hooks(model: GPT, hooks: list[tuple[str, Callable[..., Any]]]) -> Iterator[None]:
    handles = [model.hook_dict[name].register_forward_hook(fn) for name, fn in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def activations(model: GPT, tokens: torch.Tensor, names: list[str]) -> dict[str, torch.Tensor]:
    kept = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, given, out: kept.update({name: out.clone()})

    with torch.no_grad(), torch_hooks(model, [(name, keep(name)) for name in names]):
        model(tokens)
    return kept


def part(shape: tuple[int, ...], kind: str, head: int | None, pos: int | None) -> tuple[Any, ...]:
    """Index of a head and a position: scores and patterns are [batch head q k], the rest [batch pos head? width]."""
    everything = slice(None)
    heads, positions = (everything if value is None else value for value in (head, pos))
    if kind in ("pattern", "attn_scores"):
        return (everything, heads, positions)
    return (everything, positions, heads) if len(shape) == 4 else (everything, positions)


def last_logits_patched(
    model: GPT, tokens: torch.Tensor, sources: dict[str, torch.Tensor], kind: str, head: Any, pos: Any
) -> torch.Tensor:
    """Logits at the end of `tokens`, with the values of a head and a position taken from `sources`."""

    def patch(values: torch.Tensor) -> Callable[..., torch.Tensor]:
        def hook(module: Any, given: Any, out: torch.Tensor) -> torch.Tensor:
            out, where = out.clone(), part(out.shape, kind, head, pos)
            out[where] = values[where]
            return out

        return hook

    with torch.no_grad(), torch_hooks(model, [(name, patch(values)) for name, values in sources.items()]):
        return model(tokens)[0, -1]


def logit_diff(logits: torch.Tensor, right: list[int], wrong: list[int], clean: torch.Tensor) -> float:
    return float(logits[right].mean() - logits[wrong].mean())


def n_heads(model: GPT, kind: str) -> int:
    return model.cfg.n_kv_heads if "kv_head" in KINDS[kind].axes else model.cfg.n_heads


Measure = Callable[[torch.Tensor, list[int], list[int], torch.Tensor], float]


def naive(
    model: GPT, pairs: PromptPairs, kind: str, by: tuple[str, ...], direction: str, measure: Measure = logit_diff
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """raw[*axes, prompt], clean[prompt], corrupted[prompt]; measure(logits, right, wrong, logits of the clean run)."""
    n_pos = pairs.clean.shape[1]
    sizes = {"layer": model.cfg.n_layers, "head": n_heads(model, kind), "pos": n_pos}
    names = [KINDS[kind].template.format(layer=layer) for layer in range(model.cfg.n_layers)]
    raw = np.empty([*(sizes[axis] for axis in by), len(pairs)])
    baselines = np.empty((2, len(pairs)))
    for prompt in range(len(pairs)):
        clean, corrupted, first = alone(pairs, prompt)
        right, wrong = ([i for i in ids[prompt].tolist() if i >= 0] for ids in (pairs.right, pairs.wrong))
        with torch.no_grad():
            ends = [model(tokens)[0, -1] for tokens in (clean, corrupted)]
        baselines[:, prompt] = [measure(end, right, wrong, ends[0]) for end in ends]
        run, other = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
        sources = activations(model, other, names)
        for place in product(*(range(sizes[axis]) for axis in by)):
            at = dict(zip(by, place, strict=True))
            patched_names = [names[at["layer"]]] if "layer" in at else names
            pos = at["pos"] - first if "pos" in at else None
            if pos is not None and not 0 <= pos < run.shape[1]:  # padding: nothing reads it
                raw[(*place, prompt)] = baselines[int(direction == "denoise"), prompt]
                continue
            values = {name: sources[name] for name in patched_names}
            patched = last_logits_patched(model, run, values, kind, at.get("head"), pos)
            raw[(*place, prompt)] = measure(patched, right, wrong, ends[0])
    return raw, baselines[0], baselines[1]


def assert_equal_to_naive(result: PatchingResult, expected: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    raw, clean, corrupted = expected
    np.testing.assert_allclose(result.raw, raw, atol=TOLERANCE)
    np.testing.assert_allclose(result.clean, clean, atol=TOLERANCE)
    np.testing.assert_allclose(result.corrupted, corrupted, atol=TOLERANCE)
    values = raw.mean(-1)
    if result.normalized:
        values = (values - corrupted.mean()) / (clean.mean() - corrupted.mean())
    np.testing.assert_allclose(result.values, values, atol=1e-6)


@pytest.mark.usefixtures("unchecked")  # for speed: thousands of tiny forwards; all other tests check annotations
@pytest.mark.parametrize(("name", "kind"), PRESENT)
def test_patching_equals_a_naive_loop_for_every_site_kind(name: str, kind: str) -> None:
    model, has_heads = MODELS[name], any("head" in axis for axis in KINDS[kind].axes)
    left, right = random_pairs(3, (4, 2), "left"), random_pairs(4, (2, 3), "right")

    usual = ("layer", "head") if has_heads else ("layer", "pos")
    result = activation_patching(model, left, kind)
    assert (result.axes, result.normalized) == (usual, True)
    assert_equal_to_naive(result, naive(model, left, kind, usual, "denoise"))

    by = ("head", "pos") if has_heads else ("pos",)
    result = activation_patching(model, right, kind, direction="noise", by=by, normalize=False)
    assert (result.axes, result.normalized) == (by, False)
    assert_equal_to_naive(result, naive(model, right, kind, by, "noise"))


@pytest.mark.parametrize("by", [("layer",), ("head",), ("pos",), ("layer", "pos"), ("layer", "head", "pos")])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_patching_equals_a_naive_loop_for_every_choice_of_axes(by: tuple[str, ...], direction: str) -> None:
    model, pairs = MODELS["plain"], random_pairs(5, (4, 2))
    result = activation_patching(model, pairs, "z", direction=direction, by=list(reversed(by)))
    assert result.axes == by
    assert_equal_to_naive(result, naive(model, pairs, "z", by, direction))


def probability(logits: torch.Tensor) -> torch.Tensor:
    return logits.exp() / logits.exp().sum()


FORMULAS: dict[str, Measure] = {
    "logit": lambda x, right, wrong, clean: float(x[right].mean()),
    "prob": lambda x, right, wrong, clean: float(probability(x)[right].sum()),
    "prob_diff": lambda x, right, wrong, clean: float(probability(x)[right].sum() - probability(x)[wrong].sum()),
    "log_prob": lambda x, right, wrong, clean: float(probability(x)[right].sum().log()),
    "rank": lambda x, right, wrong, clean: float((x > x[right].max()).sum()),
    "kl": lambda x, right, wrong, clean: float(
        (probability(clean) * (probability(clean).log() - probability(x).log())).sum()
    ),
}


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("metric", FORMULAS)
def test_patching_equals_a_naive_loop_for_every_metric(metric: str, direction: str) -> None:
    model, pairs = MODELS["plain"], random_pairs(6, (4, 2))
    result = activation_patching(model, pairs, "resid_mid", metric, direction, normalize=metric != "rank")
    assert result.metric == metric
    assert_equal_to_naive(result, naive(model, pairs, "resid_mid", ("layer", "pos"), direction, FORMULAS[metric]))


def test_any_callable_is_a_metric() -> None:
    model, pairs = MODELS["plain"], random_pairs(6, (4, 4))

    def steepness(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, -1].std(-1)

    def first_right(logits: torch.Tensor, pairs: PromptPairs) -> torch.Tensor:
        return logits[:, -1].gather(-1, pairs.right[:, :1])[:, 0]

    for metric, formula in (
        (steepness, lambda x, right, wrong, clean: float(x.std())),
        (first_right, lambda x, right, wrong, clean: float(x[right[0]])),
    ):
        result = activation_patching(model, pairs, "mlp_out", metric)
        assert result.metric == metric.__name__
        assert_equal_to_naive(result, naive(model, pairs, "mlp_out", ("layer", "pos"), "denoise", formula))


def test_kl_to_the_clean_run_is_zero_there_and_positive_elsewhere() -> None:
    result = activation_patching(MODELS["plain"], random_pairs(6, (4, 2)), "resid_pre", "kl", normalize=False)
    np.testing.assert_allclose(result.clean, 0.0, atol=TOLERANCE)
    assert (result.corrupted > 0.01).all()
    assert (result.raw >= -TOLERANCE).all()


@given(models(), pairs(), st.sampled_from(["resid_post", "z", "pattern", "k"]), st.integers(1, 9))
def test_the_budget_changes_nothing(model: GPT, pairs: PromptPairs, site: str, share: int) -> None:
    budget = share * least_budget(lambda bytes: patching_plan(model, pairs, site, budget=bytes))
    whole, split = (activation_patching(model, pairs, site, normalize=False, budget=n) for n in (None, budget))
    assert_same_numbers(whole.raw, split.raw)


@given(models(), st.integers(0, 99), st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_the_padding_side_changes_nothing(model: GPT, seed: int, lengths: list[int]) -> None:
    left, right = (random_pairs(seed, lengths, side) for side in ("left", "right"))
    one, other = (activation_patching(model, p, "resid_pre", normalize=False) for p in (left, right))
    assert_same_numbers(one.clean, other.clean)
    assert_same_numbers(one.corrupted, other.corrupted)
    for prompt in range(len(lengths)):
        rows = [r.raw[:, p.mask[prompt].numpy(), prompt] for r, p in ((one, left), (other, right))]
        assert_same_numbers(*rows)


@given(models(), pairs(), st.randoms(use_true_random=False), st.sampled_from(["logit_diff", "kl"]))
def test_prompts_do_not_notice_each_other(model: GPT, pairs: PromptPairs, random: Any, metric: str) -> None:
    """In another order, and alone, each prompt has the numbers that it had."""
    order = random.sample(range(len(pairs)), len(pairs))
    together = activation_patching(model, pairs, "z", metric, normalize=False)
    shuffled = activation_patching(model, pairs.take(torch.tensor(order)), "z", metric, normalize=False)
    assert_same_numbers(together.raw[..., order], shuffled.raw)
    for prompt in range(len(pairs)):
        single = activation_patching(model, pairs[prompt], "z", metric, normalize=False)
        assert_same_numbers(together.raw[..., prompt], single.raw[..., 0])


def assert_same_numbers(one: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE * max(1.0, float(np.abs(other).max(initial=0.0))))


def test_in_float32_the_budget_changes_a_logit_difference_by_less_than_1e_4() -> None:
    model, pairs = random_model(CONFIGS["plain"], 7, torch.float32), random_pairs(8, (6, 4, 5))
    budget = least_budget(lambda bytes: patching_plan(model, pairs, "z", budget=bytes))
    whole, split = (activation_patching(model, pairs, "z", normalize=False, budget=n) for n in (None, budget))
    np.testing.assert_allclose(whole.raw, split.raw, atol=1e-4)


def test_baselines_that_do_not_differ_give_raw_values_and_a_warning() -> None:
    pairs = random_pairs(9, (4, 4))
    same = PromptPairs(pairs.clean, pairs.clean, pairs.mask, pairs.right, pairs.wrong)
    with pytest.warns(UserWarning, match="not normalised"):
        result = activation_patching(MODELS["plain"], same)
    assert not result.normalized
    np.testing.assert_allclose(result.values, result.clean.mean(), atol=TOLERANCE)


def test_one_prompt_is_enough() -> None:
    result = activation_patching(MODELS["plain"], random_pairs(9, (4,)))
    assert np.isfinite(result.values).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"site": "resid_per"}, "closest: 'resid_pre'"),
        ({"site": "embed"}, "unknown site 'embed'"),
        ({"site": "rot_q"}, "has no 'rot_q'; its sites: resid_pre"),
        ({"metric": "logit_dif"}, "closest: 'logit_diff'"),
        ({"metric": "KL"}, "known: .*kl"),
        ({"direction": "backwards"}, "denoise, noise"),
        ({"by": ["layers"]}, "closest: 'layer'"),
        ({"by": ["head"]}, "cannot be told apart by head"),
        ({"by": []}, "at least one of layer, head, pos"),
        ({"budget": 0}, "a budget of .* is too small for one row of this sweep, which needs about"),
        ({"metric": lambda logits: logits.mean()}, "expected one number per prompt"),
    ],
)
def test_what_cannot_be_patched_is_refused_in_words(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        activation_patching(MODELS["plain"], random_pairs(9, (4, 3)), **arguments)


def test_prompts_that_the_model_cannot_take_are_refused() -> None:
    model = MODELS["plain"]
    with pytest.raises(LabError, match="9 tokens, but the model's context is 8"):
        activation_patching(model, random_pairs(1, (9,)))
    with pytest.raises(LabError, match="the model's ids are 0 to 10"):
        activation_patching(model, random_pairs(1, (4,), d_vocab=100))


def test_pairs_of_unequal_length_cannot_be_made() -> None:
    with pytest.raises(LabError, match="clean has 3 tokens, corrupted 2"):
        PromptPairs.from_tokens([[1, 2, 3]], [[1, 2]], [4], [5])


def test_positions_are_labelled_by_their_tokens_and_padding_has_no_say() -> None:
    pairs = PromptPairs.from_tokens([[1, 2, 3], [5, 3]], [[1, 2, 4], [5, 4]], [6, 6], [7, 7])
    assert position_labels(MODELS["plain"], pairs) == ["1", "2…", "3"]
    assert activation_patching(MODELS["plain"], pairs).labels["pos"] == ("1", "2…", "3")
    assert position_labels(MODELS["plain"], pairs.take(torch.tensor([1, 0]))) == ["1", "5…", "3"]


def test_the_result_says_where_it_comes_from_and_survives_a_file(tmp_path: Path) -> None:
    result = activation_patching(MODELS["plain"], random_pairs(9, (4, 3)), direction="noise")
    result.save(tmp_path / "patching.safetensors")
    loaded = Result.load(tmp_path / "patching.safetensors")
    assert loaded == result
    assert isinstance(loaded, PatchingResult)
    facts = loaded.provenance
    assert (facts.metric, facts.site, facts.direction, facts.ablation) == (
        "logit_diff",
        "resid_pre",
        "noise",
        "replace",
    )
    assert facts.dtype == "float64"
    assert facts.weights
    assert len(facts.prompts["clean"]) == 2


def test_the_result_is_a_table_a_ranking_and_a_page() -> None:
    result = activation_patching(MODELS["plain"], random_pairs(9, (4, 3)))
    table = result.to_dataframe()
    assert list(table.columns) == ["layer", "pos", "pos_label", "values"]
    assert len(table) == result.values.size
    assert len(result.to_dataframe("raw")) == result.raw.size
    assert abs(result.top(1)[0].value) == np.abs(result.values).max()
    page = result.to_html()
    assert "noise" not in result.shows
    assert "the corrupted run with resid_pre taken from the clean run" in page
