"""Each edit against its formula, at every shape of site, and what edits leave alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp import LabError, PromptPairs, Site, UnknownHookError, sweep
from interp.edits import Edit, Window, add, freeze, mean, project_out, replace, resample, scale, zero
from models import GPT, TransformerConfig
from tests.pairs import random_pairs
from tests.strategies import SEEDS, random_model

CONFIG = TransformerConfig(n_layers=2, n_heads=4, n_key_value_heads=2, d_model=8, d_mlp=10, d_vocab=11, n_ctx=8)
MODEL = random_model(CONFIG, seed=3)
PAIRS = random_pairs(1, (5, 5, 5))

SITES = [
    Site("resid_post", 1),
    Site("resid_post", 1, pos=2),
    Site("z", 0),
    Site("z", 0, head=3),
    Site("z", 0, head=3, pos=4),
    Site("k", 1, head=1, pos=0),
    Site("pattern", 0, head=2),
    Site("pattern", 0, head=2, pos=3),
    Site("embed", pos=1),
]
ANY_SITE = st.sampled_from(SITES)
PROMPTS = torch.arange(3)


def shape_of(site: Site, batch: int = 3, pos: int = 5) -> list[int]:
    sizes = {"batch": batch, "pos": pos, "q_pos": pos, "k_pos": pos, "head": 4, "kv_head": 2, "d_model": 8, "d_head": 2}
    return [sizes[axis] for axis in site.axes]


def random_activation(site: Site, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape_of(site), generator=generator, dtype=torch.float64)


def picked(site: Site, activation: torch.Tensor) -> torch.Tensor:
    """The values at a site, found by narrowing one axis after the other."""
    for names, value in ((("head", "kv_head"), site.head), (("pos", "q_pos"), site.pos)):
        if value is not None:
            axis = next(i for i, name in enumerate(site.axes) if name in names)
            activation = activation.narrow(axis, value, 1)
    return activation


def run_hook(edit: Edit, activation: torch.Tensor) -> torch.Tensor:
    name, hook = edit.as_hook()
    assert name == edit.site.hook_name
    return hook(activation, hook=None)


def source(site: Site, activation: torch.Tensor) -> dict[str, torch.Tensor]:
    return {site.hook_name: activation}


def steps(like: torch.Tensor) -> torch.Tensor:
    return torch.arange(like.shape[-1], dtype=like.dtype)


Formula = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# Each edit as (how it is made from a site and another run, its formula on the old values and that other run's).
EDITS: dict[str, tuple[Callable[[Site, torch.Tensor], Edit], Formula]] = {
    "replace": (lambda s, o: replace(s, source(s, o)), lambda old, other: other),
    "freeze": (lambda s, o: freeze(s, source(s, o)), lambda old, other: other),
    "zero": (lambda s, o: zero(s), lambda old, other: 0 * old),
    "scale": (lambda s, o: scale(s, -1.5), lambda old, other: -1.5 * old),
    "add": (lambda s, o: add(s, steps(o), 2.0), lambda old, other: old + 2 * steps(old)),
    "mean": (lambda s, o: mean(s, source(s, o)), lambda old, other: (other[:1] + other[1:2] + other[2:]) / 3 + 0 * old),
    "resample": (
        lambda s, o: resample(s, source(s, o), torch.tensor([2, 0, 1])),
        lambda old, other: torch.cat([other[2:], other[:1], other[1:2]]),
    ),
    "project out": (
        lambda s, o: project_out(s, torch.ones(o.shape[-1], dtype=o.dtype)),
        lambda old, other: old - old.mean(-1, keepdim=True),
    ),
}


@pytest.mark.parametrize("name", EDITS)
@given(site=ANY_SITE, seed=SEEDS)
def test_an_edit_writes_its_formula_at_its_site_and_nothing_elsewhere(name: str, site: Site, seed: int) -> None:
    make, formula = EDITS[name]
    old, other = random_activation(site, seed), random_activation(site, seed + 1)
    kept = old.clone(), other.clone()
    edit = make(site, other)
    new = run_hook(edit, old)
    np.testing.assert_allclose(picked(site, new), formula(picked(site, old), picked(site, other)), atol=1e-12)
    picked(site, new).copy_(picked(site, old))  # a view: with the site put back, nothing else may differ
    assert torch.equal(new, old)
    assert torch.equal(old, kept[0])
    assert torch.equal(other, kept[1])


@given(ANY_SITE, SEEDS)
def test_projecting_out_twice_is_projecting_out_once(site: Site, seed: int) -> None:
    old = random_activation(site, seed)
    direction = torch.randn(old.shape[-1], generator=torch.Generator().manual_seed(seed), dtype=old.dtype)
    edit = project_out(site, direction)
    once = run_hook(edit, old)
    np.testing.assert_allclose(run_hook(edit, once), once, atol=1e-12)
    np.testing.assert_allclose(picked(site, once) @ direction, 0 * picked(site, old)[..., 0], atol=1e-12)
    longer = run_hook(project_out(site, 7.0 * direction), old)
    np.testing.assert_allclose(longer, once, atol=1e-12)


@given(ANY_SITE, SEEDS, st.floats(-3, 3))
def test_adding_and_taking_away_gives_the_values_back(site: Site, seed: int, factor: float) -> None:
    old = random_activation(site, seed)
    vector = torch.randn(old.shape[-1], generator=torch.Generator().manual_seed(seed), dtype=old.dtype)
    there = run_hook(add(site, vector, factor), old)
    np.testing.assert_allclose(run_hook(add(site, vector, -factor), there), old, atol=1e-12)


@given(st.permutations(range(3)), SEEDS)
def test_resampling_in_an_order_and_back_gives_the_values_back(order: list[int], seed: int) -> None:
    site = Site("z", 0, head=1)
    old = random_activation(site, seed)
    there = run_hook(resample(site, source(site, old), torch.tensor(order)), old)
    back = run_hook(resample(site, source(site, there), torch.tensor(order).argsort()), there)
    assert torch.equal(back, old)
    assert torch.equal(run_hook(resample(site, source(site, old), torch.arange(3)), old), old)


def test_the_mean_is_over_the_axes_asked_for() -> None:
    site = Site("z", 0, head=1)
    other, old = random_activation(site, 1), random_activation(site, 2)
    for over, expected in (
        (("batch",), other[:, :, 1].mean(0, keepdim=True)),
        (("batch", "pos"), other[:, :, 1].mean((0, 1), keepdim=True)),
        (("pos",), other[:, :, 1].mean(1, keepdim=True)),
    ):
        new = run_hook(mean(site, source(site, other), over), old)
        np.testing.assert_allclose(new[:, :, 1], expected.expand(3, 5, 2), atol=1e-12)


def test_a_mean_over_positions_stays_with_its_prompt_in_any_window() -> None:
    site = Site("resid_post", 0)
    other = random_activation(site, 1)
    edit = mean(site, source(site, other), ("pos",))
    for start in (0, 3):
        new = edit.applied(torch.zeros(2, 5 - start, 8, dtype=torch.float64), Window(slice(1, 3), start))
        np.testing.assert_allclose(new, other[1:].mean(1, keepdim=True).expand(2, 5 - start, 8), atol=1e-12)


def test_the_reference_of_a_mean_may_hold_other_prompts() -> None:
    site = Site("resid_post", 0)
    reference = torch.randn(7, 5, 8, dtype=torch.float64)
    new = run_hook(mean(site, source(site, reference)), random_activation(site, 0))
    np.testing.assert_allclose(new, reference.mean(0).expand(3, 5, 8), atol=1e-12)


def test_edits_keep_the_dtype_of_the_run() -> None:
    site = Site("resid_post", 0)
    run, other = random_activation(site, 0).bfloat16(), random_activation(site, 1)
    for make, _ in EDITS.values():
        assert run_hook(make(site, other), run).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mean(Site("z", 0), {}, ("position",)), "expected some of batch, pos, head, d_head"),
        (lambda: mean(Site("z", 0, pos=1), {}, ("batch", "pos")), "expected some of batch, head, d_head"),
        (lambda: mean(Site("z", 0, head=1), {}, ("head",)), "expected some of batch, pos, d_head"),
        (lambda: mean(Site("z", 0), {}, ()), "expected some of"),
        (lambda: project_out(Site("resid_post", 0), torch.zeros(8)), "the direction is zero"),
        (lambda: run_hook(project_out(Site("embed"), torch.ones(3)), torch.ones(1, 1, 8)), "width 8"),
    ],
)
def test_edits_that_make_no_sense_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        make()


@pytest.mark.parametrize(
    "site", [Site("z", 0, head=4), Site("z", 0, pos=5), Site("k", 0, head=2), Site("embed", pos=5)]
)
def test_a_head_or_position_that_is_not_there_is_refused(site: Site) -> None:
    with pytest.raises(LabError, match="outside the activation of shape"), MODEL.hooks([zero(site).as_hook()]):
        MODEL(PAIRS.clean)


def test_values_of_a_run_that_did_not_keep_the_site_are_refused() -> None:
    _, cache = MODEL.run_with_cache(PAIRS.clean, names_filter="blocks.0.attn.hook_z")
    with pytest.raises(UnknownHookError, match=r"blocks\.0\.attn\.hook_z"):
        replace(Site("z", 1), cache)


def test_a_hooked_edit_changes_the_run_and_not_what_was_cached_before() -> None:
    name, hook = zero(Site("resid_pre", 1)).as_hook()
    kept = []
    before = [(name, lambda tensor, hook: kept.append(tensor))]
    with MODEL.hooks([*before, (name, hook)]):
        edited = MODEL(PAIRS.clean)
    _, cache = MODEL.run_with_cache(PAIRS.clean, names_filter=name)
    assert torch.equal(kept[0], cache[name])
    resid = torch.zeros(3, 5, 8, dtype=torch.float64)
    np.testing.assert_allclose(edited.detach(), MODEL(resid, start_at_layer=1).detach(), atol=1e-12)


def last_logits(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, -1, 0]


def values(model: GPT, pairs: PromptPairs, *rows: list[Edit]) -> np.ndarray:
    return sweep.run(model, pairs, rows, last_logits).values


def test_edits_at_one_site_are_made_one_after_the_other() -> None:
    site, vector = Site("resid_mid", 0, pos=2), torch.arange(8.0)
    doubled_then_moved, moved_then_doubled, both = values(
        MODEL,
        PAIRS,
        [scale(site, 2.0), add(site, vector)],
        [add(site, vector), scale(site, 2.0)],
        [scale(site, 2.0), add(site, vector, 2.0)],
    )
    assert not np.allclose(doubled_then_moved, moved_then_doubled)
    np.testing.assert_allclose(moved_then_doubled, both, atol=1e-12)


@pytest.mark.parametrize("name", EDITS)
@given(site=ANY_SITE, seed=SEEDS)
def test_replacing_after_any_edit_is_replacing(name: str, site: Site, seed: int) -> None:
    old, other = random_activation(site, seed), random_activation(site, seed + 1)
    edited = run_hook(EDITS[name][0](site, other), old)
    last = replace(site, source(site, other))
    assert torch.equal(run_hook(last, edited), run_hook(last, old))


def test_a_row_whose_later_edit_overwrites_an_earlier_one_is_refused() -> None:
    _, cache = MODEL.run_with_cache(PAIRS.corrupted, names_filter=lambda name: True)
    one, all_heads = Site("z", 1, head=2, pos=3), Site("z", 1)
    contradictions = [
        [zero(one), replace(one, cache)],
        [replace(one, cache), zero(all_heads)],
        [scale(all_heads, 2.0), freeze(Site("z", 1, pos=3), cache)],
        [zero(Site("resid_mid", 0)), zero(one), mean(one, cache)],
    ]
    for row in contradictions:
        words = f"contradict each other: {row[-1]} overwrites {row[-2]}"
        with pytest.raises(LabError, match=re.escape(words)):
            values(MODEL, PAIRS, row)


def test_edits_that_can_both_be_seen_make_a_row() -> None:
    _, cache = MODEL.run_with_cache(PAIRS.corrupted, names_filter=lambda name: True)
    site = Site("z", 1, head=2)
    for later in (zero(Site("z", 1, head=1)), zero(Site("z", 0, head=2)), scale(site, 2.0), zero(Site("q", 1, head=2))):
        assert np.isfinite(values(MODEL, PAIRS, [replace(site, cache), later])).all()


def test_a_frozen_site_shields_what_is_after_it() -> None:
    _, cache = MODEL.run_with_cache(PAIRS.clean, names_filter=lambda name: True)
    shielded, unedited, exposed = values(
        MODEL,
        PAIRS,
        [zero(Site("resid_pre", 0)), freeze(Site("resid_post", 0), cache)],
        [],
        [zero(Site("resid_pre", 0))],
    )
    np.testing.assert_allclose(shielded, unedited, atol=1e-12)
    assert not np.allclose(exposed, unedited)


def test_an_edit_says_what_it_is() -> None:
    assert str(scale(Site("z", 1, head=3), 0.5)) == "scale by 0.5 Site('z', layer=1, head=3)"
    assert str(zero(Site("embed"))) == "zero Site('embed')"
