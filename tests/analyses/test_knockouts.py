"""Ablation against a naive loop, its laws, what it finds in a known circuit, and what it refuses.

The loop runs one prompt at a time, without padding, with one plain hook per written site. Everything is float64;
TOLERANCE is for the rounding of different kernels, relative to the largest number.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from analyses import ablation, cumulative_ablation, head_scores
from analyses.knockouts import AblationResult, CumulativeAblation
from interp import LabError, PromptPairs
from interp.edits import zero
from interp.sites import Site
from models import GPT, TransformerConfig, load
from models.loss import next_token_loss
from models.zoo.repeats import held_out, second_time
from tests.pairs import alone, random_pairs
from tests.strategies import ADDITIVE, SEEDS, models, random_model

pytestmark = pytest.mark.filterwarnings("ignore:zero ablation")

TOLERANCE = 1e-9
SIZES: dict[str, Any] = {"n_layers": 2, "n_heads": 2, "d_model": 8, "d_head": 4, "d_mlp": 5, "d_vocab": 11, "n_ctx": 8}
MODEL = random_model(TransformerConfig(**SIZES), seed=7)
ATTENTION_ONLY = random_model(TransformerConfig(**SIZES, attn_only=True), seed=7)
WRITTEN = {
    "head": ["attn.hook_z"],
    "attn": ["hook_attn_out"],
    "mlp": ["hook_mlp_out"],
    "layer": ["hook_attn_out", "hook_mlp_out"],
    "neuron": ["mlp.hook_post"],
}
VALUES = ["zero", "mean", "resample"]


def assert_close(found: Any, expected: Any) -> None:
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * scale)


def logit_diff(model: GPT, pairs: PromptPairs, prompt: int, hooks: list[tuple[str, Callable[..., Any]]]) -> float:
    """Of one prompt, run alone."""
    tokens, _, _ = alone(pairs, prompt)
    right, wrong = ([i for i in ids[prompt].tolist() if i >= 0] for ids in (pairs.right, pairs.wrong))
    with torch.no_grad():
        end = model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]
    return float(end[right].mean() - end[wrong].mean())


def fills(model: GPT, pairs: PromptPairs, value: str, reference: PromptPairs | None) -> list[dict[str, Tensor]]:
    """For each prompt what is written at each hook, [1 pos ...], by the definition of the ablation value."""
    reference = pairs.swapped() if reference is None else reference
    kept = [
        dict(model.run_with_cache(alone(reference, i)[0], names_filter=lambda name: True)[1].items())
        for i in range(len(reference))
    ]
    if value == "resample":
        return kept
    if value == "zero":
        return [{name: torch.zeros((), dtype=torch.float64) for name in kept[0]}] * len(pairs)
    same = bool((pairs.mask == pairs.mask[0]).all()) and (
        reference.mask.shape[1] == pairs.mask.shape[1] and bool((reference.mask == pairs.mask[0]).all())
    )
    names = [name for name in kept[0] if kept[0][name].ndim > 2 and "pattern" not in name and "scores" not in name]
    if same:
        means = {name: torch.cat([cache[name] for cache in kept]).mean(0, keepdim=True) for name in names}
    else:
        means = {name: torch.cat([cache[name] for cache in kept], 1).mean(1, keepdim=True) for name in names}
    return [means] * len(pairs)


def overwrite(values: Tensor, axis: int | None, number: int | None, where: list[int]) -> Callable[..., Tensor]:
    """A hook that writes values at some positions, at one entry of an axis or at all."""

    def hook(old: Tensor, hook: Any = None) -> Tensor:
        new, full = old.clone(), values.expand_as(old)
        index: list[Any] = [slice(None), where]
        if axis is not None:
            index += [slice(None)] * (axis - 2) + [number]
        new[tuple(index)] = full[tuple(index)]
        return new

    return hook


def naive(
    model: GPT,
    pairs: PromptPairs,
    of: str,
    value: str,
    reference: PromptPairs | None = None,
    positions: list[int] | None = None,
) -> np.ndarray:
    """The metric of every ablated run, [*axes prompt]."""
    cfg = model.cfg
    axis, size = {"head": (2, cfg.n_heads), "neuron": (2, cfg.d_mlp)}.get(of, (None, 1))
    written = fills(model, pairs, value, reference)
    raw = np.empty((cfg.n_layers, size, len(pairs)))
    for layer, number, prompt in product(range(cfg.n_layers), range(size), range(len(pairs))):
        tokens, _, first = alone(pairs, prompt)
        length = tokens.shape[1]
        asked = range(length) if positions is None else [p % pairs.clean.shape[1] - first for p in positions]
        where = [p for p in asked if 0 <= p < length]
        names = [f"blocks.{layer}.{name}" for name in WRITTEN[of]]
        hooks = [
            (name, overwrite(written[prompt][name], axis, number, where)) for name in names if name in model.hook_dict
        ]
        raw[layer, number, prompt] = logit_diff(model, pairs, prompt, hooks)
    return raw if axis is not None else raw[:, 0]


def base(model: GPT, pairs: PromptPairs) -> np.ndarray:
    return np.array([logit_diff(model, pairs, prompt, []) for prompt in range(len(pairs))])


LENGTHS = st.sampled_from([(5, 3, 6), (4, 4, 4), (1,)])
SIDES = st.sampled_from(["left", "right"])


def models_with(of: str) -> st.SearchStrategy[GPT]:
    return models(attn_only=False, d_mlp=3, n_layers=2) if of in ("mlp", "neuron") else models()


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("of", WRITTEN)
@settings(max_examples=6)  # each is hundreds of runs
@given(st.data())
def test_ablation_equals_a_naive_loop(of: str, value: str, data: st.DataObject) -> None:
    model = data.draw(models_with(of))
    pairs = random_pairs(data.draw(SEEDS), data.draw(LENGTHS), data.draw(SIDES))
    result = ablation(model, pairs, of, value)
    assert result.axes == {"head": ("layer", "head"), "neuron": ("layer", "neuron")}.get(of, ("layer",))
    assert_close(result.raw, naive(model, pairs, of, value))
    assert_close(result.base, base(model, pairs))


@pytest.mark.parametrize("value", VALUES)
@settings(max_examples=6)  # each is hundreds of runs
@given(models(), SEEDS, st.sets(st.integers(-6, 5), min_size=1, max_size=3), SIDES)
def test_ablation_at_some_positions_equals_a_naive_loop(
    value: str, model: GPT, seed: int, positions: set[int], side: str
) -> None:
    pairs = random_pairs(seed, (5, 3, 6), side)
    result = ablation(model, pairs, "head", value, positions=sorted(positions))
    assert_close(result.raw, naive(model, pairs, "head", value, positions=list(positions)))


@settings(max_examples=6)  # each is hundreds of runs
@given(models(), SEEDS, LENGTHS, LENGTHS, SIDES)
def test_the_mean_over_another_reference_set_equals_a_naive_loop(
    model: GPT, seed: int, lengths: tuple[int, ...], others: tuple[int, ...], side: str
) -> None:
    pairs, reference = random_pairs(seed, lengths, side), random_pairs(seed + 1, others, side)
    result = ablation(model, pairs, "head", "mean", reference)
    assert_close(result.raw, naive(model, pairs, "head", "mean", reference))


def test_token_ids_are_a_reference_too_and_other_prompts_can_be_resampled() -> None:
    pairs, other = random_pairs(1, (4, 4, 4)), random_pairs(2, (4, 4, 4))
    for value in ("mean", "resample"):
        result = ablation(MODEL, pairs, "mlp", value, other.clean)
        assert_close(result.raw, naive(MODEL, pairs, "mlp", value, other))
        assert result.provenance.settings["reference"]["n"] == 3


def test_the_fill_says_whether_the_mean_is_position_by_position() -> None:
    same, ragged = random_pairs(1, (4, 4)), random_pairs(1, (4, 3))
    assert ablation(MODEL, same).fill == "its mean over the corrupted prompts, position by position"
    assert ablation(MODEL, ragged).fill == "its mean over the corrupted prompts"
    assert ablation(MODEL, same, reference=random_pairs(2, (6,) * 5).clean).fill == "its mean over 5 reference prompts"


@pytest.mark.parametrize("value", VALUES)
@given(models(), SEEDS, LENGTHS)
def test_the_padding_side_changes_nothing(value: str, model: GPT, seed: int, lengths: tuple[int, ...]) -> None:
    left, right = (ablation(model, random_pairs(seed, lengths, side), "head", value) for side in ("left", "right"))
    assert_close(left.raw, right.raw)


@pytest.mark.parametrize("value", VALUES)
def test_a_model_that_cannot_resume_gives_the_same_numbers(value: str) -> None:
    pairs = random_pairs(3, (5, 3, 6))
    resumed = ablation(MODEL, pairs, "layer", value)
    with MODEL.hooks([("hook_embed", lambda old, hook: None)]):
        whole = ablation(MODEL, pairs, "layer", value)
    assert (resumed.way, whole.way) == ("resumed", "batched hooks")
    assert_close(resumed.raw, whole.raw)


def test_an_effect_is_the_mean_change_and_its_spread_the_interquartile_range() -> None:
    result = ablation(MODEL, random_pairs(4, (4,) * 5))
    change = np.sort(result.raw - result.base, -1)
    assert_close(result.values, change.mean(-1))
    assert_close(result.spread, change[..., 3] - change[..., 1])  # of five numbers the quartiles are second and fourth


def test_kl_counts_from_the_unedited_run() -> None:
    result = ablation(MODEL, random_pairs(4), metric="kl")
    assert_close(result.base, np.zeros(3))
    assert (result.values > 0).all()


def test_a_sweep_that_was_kept_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, kept = random_pairs(4), tmp_path / "sweep.safetensors"
    first = ablation(MODEL, pairs, out=kept)
    monkeypatch.setattr("interp.sweep.running.run_climb", None)
    assert ablation(MODEL, pairs, out=kept) == first


# -- laws ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["mean", "resample"])
@given(models(norm_places="pre", **ADDITIVE), SEEDS, LENGTHS, SIDES)
def test_all_heads_of_a_layer_together_are_its_attention(
    value: str, model: GPT, seed: int, lengths: tuple[int, ...], side: str
) -> None:
    """What attention writes is linear in the heads' z, so replacing all of them replaces its output."""
    pairs, layer = random_pairs(seed, lengths, side), model.cfg.n_layers - 1
    together = cumulative_ablation(model, pairs, [(layer, head) for head in range(model.cfg.n_heads)], "head", value)
    assert_close(together.raw[-1], ablation(model, pairs, "attn", value).raw[layer])


def test_heads_at_zero_leave_the_attention_its_bias() -> None:
    pairs, model = random_pairs(5), random_model(TransformerConfig(**SIZES), seed=9)
    heads = [(1, head) for head in range(2)]

    def both() -> tuple[np.ndarray, np.ndarray]:
        together = cumulative_ablation(model, pairs, heads, "head", "zero").raw[-1]
        return together, ablation(model, pairs, "attn", "zero").raw[1]

    with_bias, without = both()
    bias = model.blocks[1].attn.b_O.detach()
    write_bias = ("blocks.1.hook_attn_out", lambda old, hook: bias.expand_as(old))
    assert_close(with_bias, [logit_diff(model, pairs, prompt, [write_bias]) for prompt in range(3)])
    assert np.abs(with_bias - without).min() > 1e-3
    with torch.no_grad():
        model.blocks[1].attn.o.bias.zero_()
    assert_close(*both())


@given(models(attn_only=False, norm_places="pre", attn_bias=False, attn_out_bias=None, **ADDITIVE), SEEDS)
def test_a_layer_is_its_heads_and_its_mlp(model: GPT, seed: int) -> None:
    pairs = random_pairs(seed)
    sites = [Site("mlp_out", 0), *(Site("z", 0, head=head) for head in range(model.cfg.n_heads))]
    hooks = [zero(site).as_hook() for site in sites]
    expected = [logit_diff(model, pairs, prompt, hooks) for prompt in range(len(pairs))]
    assert_close(ablation(model, pairs, "layer", "zero").raw[0], expected)


def test_a_layer_without_mlp_is_its_attention() -> None:
    pairs = random_pairs(5)
    layer, attention = (ablation(ATTENTION_ONLY, pairs, of) for of in ("layer", "attn"))
    assert np.array_equal(layer.raw, attention.raw)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("of", ["head", "layer", "neuron"])
def test_the_first_step_is_the_single_ablation_and_the_last_does_not_depend_on_the_order(of: str, value: str) -> None:
    pairs = random_pairs(6)
    single = ablation(MODEL, pairs, of, value)
    order = single.ranking
    one, other = (cumulative_ablation(MODEL, pairs, o, of, value) for o in (order, order[::-1]))
    assert one.values.shape == (single.values.size,)
    assert one.order.tolist() == [list(component) for component in order]
    assert_close(one.raw[0], single.raw[order[0]])
    assert_close(other.raw[0], single.raw[order[-1]])
    assert_close(one.raw[-1], other.raw[-1])


@pytest.mark.parametrize("value", VALUES)
def test_each_step_is_one_run_with_all_edits_so_far(value: str) -> None:
    pairs, order = random_pairs(6), [(1, 0), (0, 1), (0, 0)]
    result = cumulative_ablation(MODEL, pairs, order, "head", value)
    written = fills(MODEL, pairs, value, None)
    for step, prompt in product(range(3), range(3)):
        everywhere = list(range(alone(pairs, prompt)[0].shape[1]))
        hooks = [
            (name, overwrite(written[prompt][name], 2, head, everywhere))
            for name, head in ((f"blocks.{layer}.attn.hook_z", head) for layer, head in order[: step + 1])
        ]
        assert_close(result.raw[step, prompt], logit_diff(MODEL, pairs, prompt, hooks))


def test_layers_are_given_by_number_and_components_named_in_order() -> None:
    pairs = random_pairs(6)
    assert cumulative_ablation(MODEL, pairs, [1, 0], "mlp").labels == {"up_to": ("layer 1", "layer 0")}
    assert cumulative_ablation(MODEL, pairs, [(1, 0), (0, 1)]).labels == {"up_to": ("L1H0", "L0H1")}


def test_the_ranking_goes_by_the_size_of_the_effect() -> None:
    values = np.array([[0.1, -3.0], [2.0, 0.0]])
    raw, one = values[..., None], np.zeros(1)
    result = AblationResult(values, values, raw, one, "prob", "resumed", "head", "mean", "", axes=("layer", "head"))
    assert result.ranking == [(0, 1), (1, 0), (0, 0), (1, 1)]


# -- a known circuit ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def induction() -> GPT:
    return load("induction-2l")


@pytest.fixture(scope="module")
def repeats() -> tuple[PromptPairs, Callable[[Tensor, PromptPairs], Tensor]]:
    """Rows that repeat a block, and the loss of each on its second copy."""
    rows, lengths = held_out(32)
    pairs = PromptPairs.from_tokens(rows, rows.flip(0), [0] * 32, [1] * 32)
    counted = second_time(rows.shape[1], lengths)[:, 1:]

    def loss(logits: Tensor, pairs: PromptPairs) -> Tensor:
        # A sweep gives some of the prompts, some of them more than once: each is known by its tokens.
        which = [int((rows == row).all(1).nonzero()[0]) for row in pairs.clean]
        losses = next_token_loss(logits, pairs.clean, per_token=True)
        return (losses * counted[which]).sum(-1) / counted[which].sum(-1)

    return pairs, loss


@pytest.mark.parametrize("value", ["zero", "mean"])
def test_without_the_previous_token_head_a_repeat_is_not_foreseen(induction: GPT, repeats: Any, value: str) -> None:
    pairs, loss = repeats
    previous = int(head_scores(induction).previous[0].argmax())
    result = ablation(induction, pairs, "head", value, None if value == "zero" else pairs.clean, loss)
    assert result.base.mean() < 0.1
    assert result.base.mean() + result.values[0, previous] > 4  # chance is ln 64 = 4.16 nats
    assert result.ranking[0] == (0, previous)


def test_the_induction_heads_stand_in_for_each_other_until_all_are_gone(induction: GPT, repeats: Any) -> None:
    pairs, loss = repeats
    heads = [(1, int(head)) for head in np.argsort(-head_scores(induction).induction[1])]
    single = ablation(induction, pairs, "head", "mean", pairs.clean, loss)
    curve = cumulative_ablation(induction, pairs, heads, "head", "mean", pairs.clean, loss)
    assert curve.base.mean() + curve.values[-1] > 4
    assert sum(single.values[head] for head in heads) < curve.values[-1] / 2


# -- what it says and refuses ---------------------------------------------------------------------------------------


def test_zero_ablation_warns_and_the_others_do_not() -> None:
    pairs = random_pairs(7)
    with pytest.warns(UserWarning, match="off the distribution.*'mean' or 'resample'"):
        ablation(MODEL, pairs, value="zero")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ablation(MODEL, pairs, value="mean")
        ablation(MODEL, pairs, value="resample")


def test_a_result_says_what_it_shows_and_comes_back_from_its_file(tmp_path: Path) -> None:
    pairs = random_pairs(7)
    single = ablation(MODEL, pairs, positions=[-1])
    curve = cumulative_ablation(MODEL, pairs, single.ranking[:2])
    for result, kind in ((single, AblationResult), (curve, CumulativeAblation)):
        assert "self-repair" in result.to_html()
        assert "logit_diff when" in result.shows
        result.save(tmp_path / "result.safetensors")
        assert kind.load(tmp_path / "result.safetensors") == result
    facts = single.provenance
    assert (facts.ablation, facts.site, facts.metric) == ("mean", "z", "logit_diff")
    assert facts.settings["positions"] == (5,)


PAIRS = random_pairs(8, (4, 4, 3))
REFUSED: dict[str, tuple[GPT, dict[str, Any], list[str]]] = {
    "component": (MODEL, {"of": "heads"}, ["unknown component 'heads'", "closest: 'head'", "known: head, attn"]),
    "value": (MODEL, {"value": "means"}, ["unknown value 'means'", "closest: 'mean'", "zero, mean, resample"]),
    "metric": (MODEL, {"metric": "logit_dif"}, ["unknown metric 'logit_dif'", "closest: 'logit_diff'"]),
    "no MLP": (ATTENTION_ONLY, {"of": "neuron"}, ["has no 'mlp_post'", "its sites: resid_pre"]),
    "no MLP output": (ATTENTION_ONLY, {"of": "mlp"}, ["has no 'mlp_out'"]),
    "position": (MODEL, {"positions": [0, 4]}, ["position 4 to ablate", "0 to 3", "-4 for the end"]),
    "position from the end": (MODEL, {"positions": [-5]}, ["position -5 to ablate"]),
    "no position": (MODEL, {"positions": []}, ["no position to ablate"]),
    "reference for zeros": (MODEL, {"value": "zero", "reference": PAIRS}, ["takes nothing from a reference"]),
    "too few to resample": (
        MODEL,
        {"value": "resample", "reference": random_pairs(1, (4, 4))},
        ["2 reference prompts of 4 positions for 3 prompts of 4", "as many, as long", "value='mean'"],
    ),
    "too long to resample": (
        MODEL,
        {"value": "resample", "reference": random_pairs(1, (5, 4, 3))},
        ["3 reference prompts of 5 positions for 3 prompts of 4"],
    ),
    "resampled from another length": (
        MODEL,
        {"value": "resample", "reference": random_pairs(1, (4, 3, 4))},
        ["reference prompt 1 has 3 real tokens, prompt 1 has 4", "aligned"],
    ),
    "reference beyond the context": (MODEL, {"reference": torch.zeros(2, 9, dtype=torch.long)}, ["at most 8"]),
    "reference of unknown ids": (MODEL, {"reference": torch.full((2, 4), 11)}, ["from 11 to 11", "0 to 10"]),
    "reference of activations": (MODEL, {"reference": torch.zeros(2, 4)}, ["torch.float32", "integer token ids"]),
    "one row of a reference": (MODEL, {"reference": torch.tensor([1, 2])}, ["shape [2]", "[prompt pos]"]),
    "empty reference": (MODEL, {"reference": torch.zeros(0, 4, dtype=torch.long)}, ["at least one"]),
}


@pytest.mark.parametrize(("model", "arguments", "fragments"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_ablated_is_refused(model: GPT, arguments: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(LabError) as refused:
        ablation(model, PAIRS, **arguments)
    for fragment in fragments:
        assert fragment in str(refused.value)


@pytest.mark.parametrize(
    ("of", "order", "fragments"),
    [
        ("head", [(0, 0), (1, 2)], ["order[1] is (1, 2)", "layer 0 to 1, head 0 to 1"]),
        ("head", [(0, -1)], ["order[0] is (0, -1)"]),
        ("head", [0], ["order[0] is (0,)"]),
        ("mlp", [(0, 1)], ["order[0] is (0, 1)", "expected layer 0 to 1."]),
        ("mlp", [1, 0, 1], ["(1,) more than once"]),
        ("mlp", [], ["order of no components"]),
        ("hed", [(0, 0)], ["unknown component 'hed'"]),
    ],
)
def test_an_order_of_what_is_not_there_is_refused(of: str, order: list[Any], fragments: list[str]) -> None:
    with pytest.raises(LabError) as refused:
        cumulative_ablation(MODEL, PAIRS, order, of)
    for fragment in fragments:
        assert fragment in str(refused.value)


def test_prompts_that_the_model_cannot_take_are_refused() -> None:
    with pytest.raises(LabError, match="context is 8"):
        ablation(MODEL, random_pairs(1, (9,)))
