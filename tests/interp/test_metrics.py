"""Metrics against formulas written out prompt by prompt."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given

from interp import LabError, PromptPairs, metrics
from interp.metrics import CustomMetric
from tests.pairs import pairs
from tests.strategies import D_VOCAB, SEEDS

TOLERANCE = 1e-10  # float64


def random_logits(pairs: PromptPairs, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*pairs.clean.shape, D_VOCAB, generator=generator, dtype=torch.float64)


def softmax(row: list[float]) -> list[float]:
    whole = sum(map(math.exp, row))
    return [math.exp(x) / whole for x in row]


def average(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


# (logits at the end, right, wrong) -> the metric
FORMULAS: dict[str, Callable[[list[float], list[int], list[int]], float]] = {
    "logit_diff": lambda x, right, wrong: average([x[i] for i in right]) - average([x[i] for i in wrong]),
    "logit": lambda x, right, wrong: average([x[i] for i in right]),
    "prob": lambda x, right, wrong: sum(softmax(x)[i] for i in right),
    "prob_diff": lambda x, right, wrong: sum(softmax(x)[i] for i in right) - sum(softmax(x)[i] for i in wrong),
    "log_prob": lambda x, right, wrong: math.log(sum(softmax(x)[i] for i in right)),
    "rank": lambda x, right, wrong: sum(y > max(x[i] for i in right) for y in x),
}


@pytest.mark.parametrize("name", FORMULAS)
@given(pairs=pairs(), seed=SEEDS)
def test_a_metric_is_its_formula_at_each_prompts_last_token(name: str, pairs: PromptPairs, seed: int) -> None:
    logits = random_logits(pairs, seed)
    found = metrics.get(name)(logits, pairs)
    assert found.shape == (len(pairs),)
    for prompt, value in enumerate(found.tolist()):
        last = max(i for i, real in enumerate(pairs.mask[prompt].tolist()) if real)
        right, wrong = ([i for i in ids[prompt].tolist() if i != -1] for ids in (pairs.right, pairs.wrong))
        expected = FORMULAS[name](logits[prompt, last].tolist(), right, wrong)
        assert value == pytest.approx(expected, abs=TOLERANCE)


@given(pairs(), SEEDS)
def test_cross_entropy_is_the_mean_surprise_at_a_prompts_own_tokens(pairs: PromptPairs, seed: int) -> None:
    logits = random_logits(pairs, seed)
    found = metrics.get("cross_entropy")(logits, pairs)
    for prompt, value in enumerate(found.tolist()):
        places = [i for i, real in enumerate(pairs.mask[prompt].tolist()) if real]
        losses = [-math.log(softmax(logits[prompt, i - 1].tolist())[int(pairs.clean[prompt, i])]) for i in places[1:]]
        assert value == pytest.approx(average(losses) if losses else math.nan, abs=TOLERANCE, nan_ok=True)


@given(pairs(), SEEDS)
def test_kl_is_its_formula_zero_at_the_reference_and_nowhere_negative(pairs: PromptPairs, seed: int) -> None:
    reference, other = random_logits(pairs, seed), random_logits(pairs, seed + 1)
    metric = metrics.kl(reference, pairs)
    torch.testing.assert_close(metric(reference, pairs), torch.zeros(len(pairs), dtype=torch.float64))
    found = metric(other, pairs)
    assert (found >= 0).all()
    for prompt, last in enumerate(pairs.last.tolist()):
        p, q = (softmax(logits[prompt, last].tolist()) for logits in (reference, other))
        expected = sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
        assert float(found[prompt]) == pytest.approx(expected, abs=TOLERANCE)


@given(pairs(), SEEDS)
def test_kl_for_some_prompts_keeps_their_references(pairs: PromptPairs, seed: int) -> None:
    reference, other = random_logits(pairs, seed), random_logits(pairs, seed + 1)
    metric = metrics.kl(reference, pairs)
    index = torch.arange(len(pairs)).flip(0).repeat(2)
    torch.testing.assert_close(metric.take(index)(other[index], pairs.take(index)), metric(other, pairs)[index])


@given(pairs(), SEEDS)
def test_only_the_tokens_that_a_metric_names_matter_to_it(pairs: PromptPairs, seed: int) -> None:
    logits = random_logits(pairs, seed)
    for metric in (metrics.logit_diff, metrics.logit):
        read = metric.tokens(pairs)
        assert read is not None
        unread = torch.ones(len(pairs), D_VOCAB, dtype=torch.bool)
        for row, ids in enumerate(read.tolist()):
            unread[row, [i for i in ids if i >= 0]] = False
        changed = torch.where(unread[:, None], 99.0, logits)
        torch.testing.assert_close(metric(changed, pairs), metric(logits, pairs))


def one_pair() -> PromptPairs:
    return PromptPairs.from_tokens([[1, 2]], [[1, 3]], [4], [5])


def test_a_forbidden_token_is_no_answer_and_does_not_turn_a_metric_into_nan() -> None:
    """Short rows of answers are filled up, and the filler must not read a vocabulary entry: here 0, which is -inf."""
    pairs = PromptPairs.from_tokens([[1, 2], [1, 2]], [[1, 3], [1, 3]], [[4], [4, 6]], [[5, 7], [5]])
    logits = torch.zeros(2, 2, 11)
    logits[..., 0], logits[..., 4] = -torch.inf, 2.0
    assert metrics.logit_diff(logits, pairs).tolist() == [2.0, 1.0]


def test_half_precision_logits_are_measured_in_float32() -> None:
    logits = torch.randn(1, 2, 11, generator=torch.Generator().manual_seed(0)).bfloat16()
    for name in (*FORMULAS, "cross_entropy"):
        found = metrics.get(name)(logits, one_pair())
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, metrics.get(name)(logits.float(), one_pair()))


def of_logits(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, -1, 3]


def of_both(logits: torch.Tensor, pairs: PromptPairs) -> torch.Tensor:
    return logits[:, -1].gather(-1, pairs.right)[:, 0]


def with_an_option(logits: torch.Tensor, token: int = 3, **options: Any) -> torch.Tensor:
    return logits[:, -1, token]


@pytest.mark.parametrize(
    ("metric", "token", "name"),
    [
        (of_logits, 3, "of_logits"),
        (of_both, 4, "of_both"),
        (with_an_option, 3, "with_an_option"),
        (functools.partial(with_an_option, token=6), 6, "custom"),
        (lambda logits: logits[:, -1, 7], 7, "<lambda>"),
    ],
)
def test_a_callable_of_one_argument_gets_logits_and_of_two_the_pairs_too(metric: Any, token: int, name: str) -> None:
    logits = torch.arange(22.0).reshape(1, 2, 11)
    made = metrics.get(metric)
    assert made.name == name
    assert made(logits, one_pair()).tolist() == [11.0 + token]
    assert metrics.get(made) is made


@pytest.mark.parametrize("values", [torch.tensor(1.0), torch.ones(2), torch.ones(1, 1), 1.0, None])
def test_a_callable_that_is_not_one_number_per_prompt_is_refused(values: Any) -> None:
    metric = metrics.get(lambda logits: values)
    with pytest.raises(LabError, match=r"expected one number per prompt, a tensor of shape \[1\]"):
        metric(torch.zeros(1, 2, 11), one_pair())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("logit_dif", "closest: 'logit_diff'"),
        ("kl-divergence", "known: .*kl"),
        ("kl", r"give metrics\.kl\(logits, pairs\)"),
    ],
)
def test_an_unknown_name_is_refused_with_what_is_near(name: str, message: str) -> None:
    with pytest.raises(LabError, match=message):
        metrics.get(name)


@pytest.mark.usefixtures("unchecked")
def test_what_is_neither_name_nor_callable_is_refused() -> None:
    with pytest.raises(LabError, match="given int"):
        metrics.get(3)  # type: ignore[arg-type]


def test_metrics_say_what_they_read_and_where_they_are_flat() -> None:
    pairs = one_pair()
    assert metrics.logit_diff.tokens(pairs).tolist() == [[4, 5]]
    assert metrics.prob.tokens(pairs) is None
    assert metrics.kl(torch.zeros(1, 2, 11), pairs).stationary
    assert not metrics.logit_diff.stationary
    assert isinstance(metrics.cross_entropy, CustomMetric)
