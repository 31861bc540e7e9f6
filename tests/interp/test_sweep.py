"""A sweep against the naive loop: the same numbers, whatever the model, the sites, the edits and the budget.

Tolerances are relative to the largest number of the sweep, as every number comes out of sums over it.
float64: 1e-10 of it. Sums in another order differ by some 1e-15, and random weights of order one enlarge that a little.
float32: rounding is 5e8 times as coarse (2^-24 for 2^-53), so sweeps agree to 1e-5. There matrices are half as
wide, like those of trained models: edits may move wider ones to where they enlarge rounding a thousandfold.
bfloat16, float16: see `test_in_half_precision_a_sweep_is_the_naive_loop_but_for_rounding`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp import LabError, PromptPairs, Site, UnknownHookError, edits, metrics, sweep
from interp.contract import ResumableModel
from interp.edits import Edit
from interp.sites import KINDS
from models import BERT, GPT, BertConfig, TransformerConfig
from tests.pairs import pairs, random_pairs
from tests.strategies import SEEDS, configs, halve_matrices, models, random_model
from tests.sweeps import Dice, cached, every_start_apart, least_budget, naive

ROOT = Path(__file__).resolve().parents[2]
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}
SHARES = st.sampled_from([1.0, 1.5, 4.0, None])  # of the least budget; None: no bound


def assert_same(found: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCES[torch.float64]) -> None:
    """The tolerance is relative to the largest expected number. NaN is NaN in both."""
    scale = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def any_logit(logits: torch.Tensor, pairs: PromptPairs) -> torch.Tensor:
    """A plain callable: a fixed mix of all logits at all real positions."""
    mix = torch.linspace(-1, 1, logits.shape[-1], dtype=logits.dtype)
    return ((logits @ mix) * pairs.mask).sum(1)


def metric_named(name: str, model: GPT, pairs: PromptPairs) -> Any:
    if name != "kl":
        return any_logit if name == "callable" else metrics.get(name)
    with torch.no_grad():
        return metrics.kl(model(pairs.corrupted, attention_mask=pairs.mask), pairs)


METRICS = st.sampled_from(["logit_diff", "log_prob", "kl", "cross_entropy", "callable"])
APART = st.sampled_from([every_start_apart, nullcontext])
TWO_WAY = st.sampled_from(["causal", "causal", "causal", "bidirectional"])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@given(TWO_WAY.flatmap(lambda way: configs(attention_dir=way)), pairs(), SEEDS, SHARES, METRICS, APART)
def test_a_sweep_is_the_naive_loop(
    dtype: torch.dtype,
    cfg: TransformerConfig,
    pairs: PromptPairs,
    seed: int,
    share: float | None,
    name: str,
    apart: Callable[[], AbstractContextManager[None]],
) -> None:
    """Every kind of site that the model has, alone, and rows of several."""
    model = random_model(cfg, seed, dtype)
    if dtype == torch.float32:
        halve_matrices(model)
    rows, metric = Dice(model, pairs, seed).rows(4), metric_named(name, model, pairs)
    budget = None if share is None else int(share * least_budget(lambda n: sweep.plan(model, pairs, rows, metric, n)))
    with apart():
        found = sweep.run(model, pairs, rows, metric, budget)
    assert found.way == "resumed"
    assert_same(found.values, naive(model, pairs, rows, metrics.get(metric)), TOLERANCES[dtype])
    assert_same(found.base, naive(model, pairs, [[]], metrics.get(metric))[0], TOLERANCES[dtype])


@given(
    TWO_WAY.flatmap(lambda way: configs(attention_dir=way, norm_places="stream", parallel_attn_mlp=False)),
    *(pairs(), SEEDS, METRICS, APART),
)
def test_a_sweep_is_the_naive_loop_where_norms_stand_on_the_stream(
    cfg: TransformerConfig, pairs: PromptPairs, seed: int, name: str, apart: Callable[[], AbstractContextManager[None]]
) -> None:
    """The stream between layers is the normalised one there; the sums before the norms are edited inside a layer."""
    model = random_model(cfg, seed)
    rows, metric = Dice(model, pairs, seed).rows(4), metric_named(name, model, pairs)
    with apart():
        found = sweep.run(model, pairs, rows, metric)
    assert found.way == "resumed"
    assert_same(found.values, naive(model, pairs, rows, metrics.get(metric)))


SIZES: dict[str, Any] = {"n_layers": 2, "n_heads": 2, "d_model": 8, "d_mlp": 12, "d_vocab": 11, "n_ctx": 8}
CONFIG = TransformerConfig(**SIZES, model_name="small")


def model() -> GPT:
    return random_model(CONFIG, seed=2)


@pytest.mark.usefixtures("unchecked")  # for speed: every other test checks annotations
@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_and_position_of_every_kind_of_site_is_the_naive_loops(kind: str) -> None:
    """Rows that start everywhere, with a budget that cuts them into small climbs and with none."""
    rotary = TransformerConfig(**SIZES, positional_embedding_type="rotary", normalization_type="RMS", gated_mlp=True)
    normed = replace(rotary, norm_places="both", qk_norm="width", gated_mlp=False)
    layers = range(2) if KINDS[kind].per_layer else [None]
    encoder = random_model(BertConfig(**SIZES), 3, kind=BERT)
    nets = (model(), random_model(rotary, 3), random_model(normed, 3), encoder)
    net = next((net for net in nets if Site(kind, layers[0]).hook_name in net.hook_dict), None)
    if net is None:
        pytest.skip("a kind that models with two sides alone have, which are swept one side at a time")
    prompts = random_pairs(4, (4, 2), "right")
    source = cached(net, prompts)
    rows = [[edits.replace(Site(kind, layer, pos=pos), source)] for layer in layers for pos in range(4)]
    expected = naive(net, prompts, rows, metrics.logit_diff)
    least = least_budget(lambda n: sweep.plan(net, prompts, rows, budget=n))
    assert_same(sweep.run(net, prompts, rows, budget=3 * least).values, expected)
    with every_start_apart():
        assert_same(sweep.run(net, prompts, rows).values, expected)


def test_the_stream_after_a_layer_is_edited_before_the_stream_at_the_next() -> None:
    """They are one tensor, at two hook points in a row; a row may name them in any order."""
    steps = torch.arange(8, dtype=torch.float64)
    after, at = edits.add(Site("resid_post", 0), steps), edits.project_out(Site("resid_pre", 1), steps)
    rows, prompts = [[after, at], [at, after]], random_pairs(1)
    assert_same(sweep.run(model(), prompts, rows).values, naive(model(), prompts, rows, metrics.logit_diff))


def test_a_number_that_an_edit_makes_undefined_is_undefined_in_both() -> None:
    prompts = random_pairs(1)
    rows = [[edits.zero(Site("ln1.scale", 1))], [edits.zero(Site("ln_final.scale", pos=-1))]]
    expected = naive(model(), prompts, rows, metrics.logit_diff)
    assert np.isnan(expected).all()
    assert_same(sweep.run(model(), prompts, rows).values, expected)


@given(models(), pairs(), SEEDS)
def test_prompts_do_not_notice_each_other(model: GPT, pairs: PromptPairs, seed: int) -> None:
    """A prompt swept alone has the numbers that it has among others, when its edits read only its own values."""
    cache = cached(model, pairs)
    sites = [Site("z", layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    together = sweep.run(model, pairs, [[edits.replace(site, cache)] for site in sites]).values
    for number in range(len(pairs)):
        own = {name: tensor[number : number + 1] for name, tensor in cache.items()}
        alone = sweep.run(model, pairs[number], [[edits.replace(site, own)] for site in sites]).values
        assert_same(alone[:, 0], together[:, number])


@settings(max_examples=6)
@given(models(), pairs(), SEEDS, METRICS)
def test_with_hooks_attached_the_same_numbers_come_from_whole_runs(
    model: GPT, pairs: PromptPairs, seed: int, name: str
) -> None:
    rows, metric = Dice(model, pairs, seed).rows(3), metric_named(name, model, pairs)
    resumed = sweep.run(model, pairs, rows, metric)
    with model.hooks([("hook_embed", lambda tensor, hook: None)]):
        least = least_budget(lambda n: sweep.plan(model, pairs, rows, metric, n))
        assert sweep.plan(model, pairs, rows, metric).way == "batched hooks"
        for budget in (None, 3 * least):
            batched = sweep.run(model, pairs, rows, metric, budget)
            assert (resumed.way, batched.way, batched.skipped) == ("resumed", "batched hooks", 0)
            assert_same(batched.values, resumed.values)
            assert_same(batched.base, resumed.base)


def test_hooks_that_were_there_stay_and_are_seen() -> None:
    net, prompts = model(), random_pairs(1)
    net.add_hook(*edits.zero(Site("mlp_out", 0)).as_hook())
    expected = sweep.run(model(), prompts, [[edits.zero(Site("mlp_out", 0)), edits.zero(Site("z", 1))]])
    assert_same(sweep.run(net, prompts, [[edits.zero(Site("z", 1))]]).values, expected.values)
    assert net.hook_dict["blocks.0.hook_mlp_out"].has_hooks()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_half_precision_a_sweep_is_the_naive_loop_but_for_rounding(dtype: torch.dtype) -> None:
    """Relative to the largest logit, 8 epsilons (2^-7 for bfloat16, 2^-10 for float16).

    The two differ in the shapes of their matrix products, so each may round each of the stream's eight additions (two
    layers, two a layer, twice) by half an epsilon the other way, and these models do not enlarge that much. Norms,
    scores and softmax run in float32 in both, or their rounding would be as coarse.
    """
    for seed in range(4):
        net = GPT(TransformerConfig(**SIZES, init_range=0.4, seed=seed), dtype=dtype)
        prompts = random_pairs(seed, (5, 3, 6))
        seen: dict[str, torch.dtype] = {}

        def note(old: torch.Tensor, window: Any, seen: dict[str, torch.dtype] = seen) -> torch.Tensor:
            seen[str(len(seen))] = old.dtype
            return old

        watched = [Edit(Site(kind, 1), note, "note") for kind in ("ln1.scale", "ln2.scale", "attn_scores", "pattern")]
        rows = [*Dice(net, prompts, seed).rows(4), [edits.zero(Site("z", 0)), *watched]]
        found, expected = sweep.run(net, prompts, rows).values, naive(net, prompts, rows, metrics.logit_diff)
        largest = float(net(prompts.clean, attention_mask=prompts.mask).detach().abs().max())
        finite = np.isfinite(expected)
        assert (np.isfinite(found) == finite).all()
        bound = 8 * torch.finfo(dtype).eps * max(largest, float(np.abs(expected[finite]).max()))
        np.testing.assert_allclose(found[finite], expected[finite], rtol=0, atol=bound)
        assert set(seen.values()) == {torch.float32}


# -- what is not run --------------------------------------------------------------------------------------------------


@given(models(), pairs(), SEEDS, st.booleans())
def test_a_row_that_changes_nothing_has_exactly_the_base_value_and_is_not_run(
    model: GPT, pairs: PromptPairs, seed: int, one_at_a_time: bool
) -> None:
    dice = Dice(model, pairs, seed)
    sites = [dice.site(kind) for kind in ("resid_pre", "attn_out", "resid_post", "q", "v")]
    nothing = [edits.scale(site, 1.0) for site in sites]
    still = [[], *([edit] for edit in nothing), nothing]
    moving = [edits.add(Site("resid_post", 0), torch.ones(model.cfg.d_model, dtype=torch.float64))]
    rows = [*still, moving]
    budget = least_budget(lambda n: sweep.plan(model, pairs, rows, budget=n)) if one_at_a_time else None
    found = sweep.run(model, pairs, rows, budget=budget)
    assert (found.values[:-1] == found.base).all()
    assert found.skipped == len(still) * len(pairs)
    assert sweep.plan(model, pairs, rows, budget=budget).skipped == found.skipped


@given(models(), pairs(), SEEDS)
def test_patching_a_run_with_itself_is_not_run(model: GPT, pairs: PromptPairs, seed: int) -> None:
    dice = Dice(model, pairs, seed)
    sites = [dice.site(kind) for kind in ("resid_pre", "attn_out", "resid_post", "q", "v")]
    # No scores and patterns are kept, so that attention takes the kernel that it takes in the sweep.
    names = [site.hook_name for site in sites]
    with torch.no_grad():
        _, own = model.run_with_cache(pairs.clean, attention_mask=pairs.mask, names_filter=names)
    found = sweep.run(model, pairs, [[edits.freeze(site, own)] for site in sites])
    assert found.skipped == found.values.size
    assert (found.values == found.base).all()


@pytest.mark.parametrize("way", ["causal", "bidirectional"])
def test_only_where_attention_looks_back_a_run_starts_in_the_middle(way: Any) -> None:
    net, prompts = random_model(TransformerConfig(**SIZES, attention_dir=way), 2), random_pairs(1, (6, 6))
    rows = [[edits.zero(Site("resid_pre", 0, pos=4))]]
    expected = naive(net, prompts, rows, metrics.logit_diff)
    calls = Calls(net)
    found = sweep.run(net, prompts, rows)
    assert calls.positions == 2 * 2 * 6 + 2 * 2 * (2 if way == "causal" else 6)
    assert_same(found.values, expected)


def test_what_changes_after_the_position_that_is_read_is_not_run() -> None:
    prompts = random_pairs(1, (5, 2, 3), "right")
    rows = [[edits.zero(Site("resid_pre", 1, pos=pos))] for pos in range(5)]
    found = sweep.run(model(), prompts, rows)
    after = np.arange(5)[:, None] > prompts.last.numpy()
    assert found.skipped == after.sum() == 5
    assert (found.values == found.base)[after].all()
    assert (found.values != found.base)[~after].all()
    # A metric of all positions may read them.
    assert sweep.run(model(), prompts, rows, any_logit).skipped == 0


class Calls:
    """How many times each layer's forward is called, and with how many positions in all."""

    def __init__(self, net: GPT) -> None:
        self.layers = self.positions = 0
        for block in net.blocks:
            block.register_forward_pre_hook(self.count)

    def count(self, module: Any, given: tuple[torch.Tensor, ...]) -> None:
        self.layers += 1
        self.positions += given[0].shape[0] * given[0].shape[1]


@settings(max_examples=6)
@given(models(), pairs(), SEEDS, SHARES)
def test_the_plan_says_how_often_layers_will_run(
    model: GPT, pairs: PromptPairs, seed: int, share: float | None
) -> None:
    rows = Dice(model, pairs, seed).rows(2)
    budget = None if share is None else int(share * least_budget(lambda n: sweep.plan(model, pairs, rows, budget=n)))
    ahead, calls = sweep.plan(model, pairs, rows, budget=budget), Calls(model)
    found = sweep.run(model, pairs, rows, budget=budget)
    base = calls.layers - ahead.layer_runs
    # The base run is of as many prompts at a time as the budget lets it keep.
    assert base % model.cfg.n_layers == 0
    assert 1 <= base // model.cfg.n_layers <= len(pairs)
    assert share is not None or base == model.cfg.n_layers
    assert ahead.skipped == found.skipped
    assert (ahead.rows, ahead.prompts) == found.values.shape
    assert budget is None or ahead.memory <= ahead.budget == budget


def test_patching_the_end_of_the_prompts_runs_little_of_the_model() -> None:
    net, prompts = model(), random_pairs(1, (6, 6, 6))
    calls = Calls(net)
    sweep.run(net, prompts, [[edits.zero(Site("z", 1, head, pos=-1))] for head in range(2)])
    base = 2 * 3 * 6
    assert calls.positions == base + 2 * 3  # the last layer, the last position, for two heads of three prompts


# -- a model as it was ------------------------------------------------------------------------------------------------


COMPILED = """
import numpy as np
from interp import Site, edits, sweep
from tests.interp.test_sweep import model
from tests.pairs import random_pairs

rows = [[edits.zero(Site("resid_pre", 1, pos=3))], [edits.zero(Site("resid_post", 0))]]
values, net = sweep.run(model(), random_pairs(1), rows).values, model()
net.blocks[1].compile(backend="eager", dynamic=True)
print(np.abs(sweep.run(net, random_pairs(1), rows).values - values).max() < 1e-10)
"""


@pytest.mark.slow
def test_a_compiled_layer_gives_the_same_numbers() -> None:
    """In a process of its own, where no annotation is checked: a checked function cannot be compiled."""
    done = subprocess.run([sys.executable, "-c", COMPILED], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["True"], done.stderr


def test_a_gpt_can_resume() -> None:
    assert isinstance(model(), ResumableModel)


def test_a_sweep_leaves_no_hook_behind_and_the_model_as_it_was() -> None:
    net, prompts = model(), random_pairs(1)
    before = net(prompts.clean)
    sweep.run(net, prompts, [[edits.zero(Site("z", 0))]])
    assert not any(point.has_hooks() for point in net.hook_points())
    assert torch.equal(net(prompts.clean), before)


def test_an_error_in_a_sweep_leaves_no_hook_behind() -> None:
    net = model()
    with pytest.raises(LabError, match="outside the activation"):
        sweep.run(net, random_pairs(1), [[edits.zero(Site("z", 0, head=2))]])
    assert not any(point.has_hooks() for point in net.hook_points())


def test_no_gradients_are_kept_and_numbers_come_in_float64() -> None:
    found = sweep.run(model().float(), random_pairs(1), [[]])
    assert found.values.dtype == found.base.dtype == np.float64


def test_a_custom_metric_sees_each_batch_with_its_own_pairs() -> None:
    def clean_start(logits: torch.Tensor, pairs: PromptPairs) -> torch.Tensor:
        assert logits.shape[0] == len(pairs)
        return pairs.clean[torch.arange(len(pairs)), pairs.mask.int().argmax(1)].double()

    prompts = random_pairs(1, (5, 3, 6, 2))
    expected = [int(prompts.clean[i][prompts.mask[i]][0]) for i in range(4)]
    rows = [[], [edits.zero(Site("resid_pre", 0))]]
    least = least_budget(lambda n: sweep.plan(model(), prompts, rows, clean_start, n))
    for budget in (least, 2 * least, 5 * least, None):
        values = sweep.run(model(), prompts, rows, clean_start, budget).values
        assert values.tolist() == [expected, expected]


def test_the_result_says_what_was_run(tmp_path: Path) -> None:
    rows = [[], [edits.zero(Site("z", 0, head=1)), edits.scale(Site("z", 1), 2.0)]]
    found = sweep.run(model(), random_pairs(1), rows)
    assert found.metric == "logit_diff"
    assert found.labels["row"] == ("unedited", f"{rows[1][0]} + {rows[1][1]}")
    found.save(tmp_path / "sweep")
    assert type(found).load(tmp_path / "sweep") == found


# -- what is refused --------------------------------------------------------------------------------------------------


def of_other_shape(batch: int, pos: int) -> dict[str, torch.Tensor]:
    return {"blocks.0.attn.hook_z": torch.zeros(batch, pos, 2, 4, dtype=torch.float64)}


TWICE = [edits.zero(Site("z", 0, head=1)), edits.zero(Site("z", 0))]


@pytest.mark.parametrize(
    ("rows", "settings", "error", "message"),
    [
        ([], {}, LabError, "at least one row; given none"),
        ([[]], {"budget": 0}, LabError, "a budget of 0 bytes is too small for one row.* at least [0-9]+ bytes"),
        ([[]], {"metric": "logit_dif"}, LabError, "closest: 'logit_diff'"),
        ([[]], {"metric": "kl"}, LabError, r"metrics\.kl"),
        ([[edits.zero(Site("z", 2))]], {}, UnknownHookError, r"no hook named 'blocks\.2\.attn\.hook_z'.*interp hooks"),
        ([[edits.zero(Site("rot_q", 0))]], {}, UnknownHookError, "closest: 'blocks.0.attn.hook_q'"),
        ([[], TWICE], {}, LabError, "two edits of a row contradict each other: zero .* overwrites zero .*head=1"),
        ([[edits.replace(Site("z", 0), of_other_shape(2, 6))]], {}, LabError, "2"),
        ([[edits.replace(Site("z", 0), of_other_shape(3, 5))]], {}, LabError, "5"),
        ([[edits.mean(Site("z", 0), of_other_shape(7, 5))]], {}, LabError, "5"),
        ([[edits.mean(Site("z", 0), of_other_shape(7, 6), ("pos",))]], {}, LabError, "7"),
        ([[edits.zero(Site("mlp_post", 0, neuron=12))]], {}, LabError, "outside the activation of shape"),
        ([[edits.zero(Site("pattern", 0, key=6))]], {}, LabError, "outside the activation of shape"),
    ],
)
def test_what_cannot_be_swept_is_refused(rows: Any, settings: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        sweep.run(model(), random_pairs(1), rows, **settings)
    with pytest.raises(error, match=message):
        sweep.plan(model(), random_pairs(1), rows, **settings)


def test_a_metric_that_is_not_one_number_per_prompt_is_refused() -> None:
    with pytest.raises(LabError, match="expected one number per prompt"):
        sweep.run(model(), random_pairs(1), [[]], lambda logits: logits.sum())


@settings(max_examples=6)
@given(models(), pairs(), SEEDS, METRICS)
def test_the_budget_that_a_refusal_names_is_enough_and_a_byte_less_is_not(
    model: GPT, pairs: PromptPairs, seed: int, name: str
) -> None:
    rows, metric = Dice(model, pairs, seed).rows(1), metric_named(name, model, pairs)
    least = least_budget(lambda n: sweep.run(model, pairs, rows, metric, n))
    assert sweep.run(model, pairs, rows, metric, least).values.shape == (len(rows), len(pairs))
    with pytest.raises(LabError, match=f"at least {least} bytes"):
        sweep.run(model, pairs, rows, metric, least - 1)


@given(configs())
def test_sites_are_checked_before_anything_runs(cfg: Any) -> None:
    net = random_model(cfg, seed=1)
    net.add_hook("hook_embed", lambda tensor, hook: pytest.fail("the model ran"))
    with pytest.raises(UnknownHookError):
        sweep.run(net, random_pairs(1), [[], [edits.zero(Site("resid_pre", 9))]])
