"""A sweep's rows against one hooked run each, in any batching."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp import LabError, PromptPairs, Site, UnknownHookError, edits, metrics, sweep
from interp.edits import Edit
from models import GPT, TransformerConfig
from tests.pairs import pairs, random_pairs
from tests.strategies import SEEDS, configs, models, random_model

TOLERANCE = 1e-9  # float64; relative to the largest number


def some_rows(model: GPT, pairs: PromptPairs, seed: int) -> list[list[Edit]]:
    """Rows of none to three random edits, at random sites of random layers."""
    _, cache = model.run_with_cache(pairs.corrupted, attention_mask=pairs.mask, names_filter=lambda name: True)
    generator = torch.Generator().manual_seed(seed)

    def draw(below: int) -> int:
        return int(torch.randint(below, (1,), generator=generator))

    def site() -> Site:
        kind = ("resid_pre", "z", "pattern", "attn_out", "v", "q_input")[draw(6)]
        at = Site(kind, draw(model.cfg.n_layers))
        heads = cache[at.hook_name].shape[at.head_axis] if at.head_axis is not None else 0
        head = draw(heads) if heads and draw(2) else None
        return Site(kind, at.layer, head, draw(pairs.clean.shape[1]) if draw(2) else None)

    def edit() -> Edit:
        order = torch.randperm(len(pairs), generator=generator)
        where = site()
        return (
            edits.replace(where, cache),
            edits.zero(where),
            edits.scale(where, 0.5),
            edits.mean(where, cache),
            edits.resample(where, cache, order),
        )[draw(5)]

    return [[edit() for _ in range(draw(4))] for _ in range(1 + draw(6))]


def one_run_per_row(model: GPT, pairs: PromptPairs, rows: list[list[Edit]], metric: Any) -> torch.Tensor:
    values = []
    for row in rows:
        with model.hooks([edit.as_hook() for edit in row]):
            values.append(metric(model(pairs.clean, attention_mask=pairs.mask), pairs).detach())
    return torch.stack(values)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * max(1.0, float(expected.abs().max())))


@given(models(), pairs(), SEEDS, st.integers(1, 8) | st.none(), st.sampled_from(["logit_diff", "log_prob", "kl"]))
def test_a_sweep_equals_one_hooked_run_per_row(
    model: GPT, pairs: PromptPairs, seed: int, batch_size: int | None, name: str
) -> None:
    """Rows cut anywhere by the batch size, several edits at one site, edits that read other prompts' values."""
    rows = some_rows(model, pairs, seed)
    reference = model(pairs.clean, attention_mask=pairs.mask).detach()
    metric = metrics.kl(reference, pairs) if name == "kl" else metrics.get(name)
    assert_close(sweep.run(model, pairs, rows, metric, batch_size), one_run_per_row(model, pairs, rows, metric))


@given(models(), pairs(), SEEDS, st.integers(1, 4))
def test_prompts_do_not_notice_each_other(model: GPT, pairs: PromptPairs, seed: int, batch_size: int) -> None:
    """A prompt swept alone has the numbers that it has among others, when its edits read only its own values."""
    _, cache = model.run_with_cache(pairs.corrupted, attention_mask=pairs.mask, names_filter="*hook_z")
    sites = [Site("z", layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    together = sweep.run(model, pairs, [[edits.replace(site, cache)] for site in sites], batch_size=batch_size)
    for number in range(len(pairs)):
        own = {name: tensor[number : number + 1] for name, tensor in cache.items()}
        alone = sweep.run(model, pairs[number], [[edits.replace(site, own)] for site in sites])
        assert_close(alone[:, 0], together[:, number])


CONFIG = TransformerConfig(n_layers=2, n_heads=2, d_model=8, d_mlp=12, d_vocab=11, n_ctx=8, model_name="small")


def model() -> GPT:
    return random_model(CONFIG, seed=2)


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


def test_hooks_that_were_there_stay_and_are_seen() -> None:
    net, prompts = model(), random_pairs(1)
    net.add_hook(*edits.zero(Site("mlp_out", 0)).as_hook())
    expected = sweep.run(model(), prompts, [[edits.zero(Site("mlp_out", 0)), edits.zero(Site("z", 1))]])
    assert_close(sweep.run(net, prompts, [[edits.zero(Site("z", 1))]]), expected)
    assert net.hook_dict["blocks.0.hook_mlp_out"].has_hooks()


def test_no_gradients_are_kept_and_numbers_come_in_float64() -> None:
    values = sweep.run(model().float(), random_pairs(1), [[]])
    assert values.dtype == torch.float64
    assert not values.requires_grad


def test_a_custom_metric_sees_each_batch_with_its_own_pairs() -> None:
    def clean_start(logits: torch.Tensor, pairs: PromptPairs) -> torch.Tensor:
        assert logits.shape[0] == len(pairs)
        return pairs.clean[torch.arange(len(pairs)), pairs.mask.int().argmax(1)].double()

    prompts = random_pairs(1, (5, 3, 6, 2))
    expected = [int(prompts.clean[i][prompts.mask[i]][0]) for i in range(4)]
    for batch_size in (1, 3, 5, None):
        values = sweep.run(model(), prompts, [[], []], clean_start, batch_size)
        assert values.tolist() == [expected, expected]


@pytest.mark.parametrize(
    ("rows", "settings", "error", "message"),
    [
        ([], {}, LabError, "at least one row; given none"),
        ([[]], {"batch_size": 0}, LabError, "batch_size=0; expected at least 1"),
        ([[]], {"metric": "logit_dif"}, LabError, "closest: 'logit_diff'"),
        ([[]], {"metric": "kl"}, LabError, r"metrics\.kl"),
        ([[]], {"metric": lambda logits: logits.sum()}, LabError, "expected one number per prompt"),
        ([[edits.zero(Site("z", 2))]], {}, UnknownHookError, r"no hook named 'blocks\.2\.attn\.hook_z'.*interp hooks"),
        ([[edits.zero(Site("rot_q", 0))]], {}, UnknownHookError, "closest: 'blocks.0.attn.hook_q'"),
    ],
)
def test_what_cannot_be_swept_is_refused(rows: Any, settings: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        sweep.run(model(), random_pairs(1), rows, **settings)


@given(configs())
def test_sites_are_checked_before_anything_runs(cfg: Any) -> None:
    net = random_model(cfg, seed=1)
    net.add_hook("hook_embed", lambda tensor, hook: pytest.fail("the model ran"))
    with pytest.raises(UnknownHookError):
        sweep.run(net, random_pairs(1), [[], [edits.zero(Site("resid_pre", 9))]])
