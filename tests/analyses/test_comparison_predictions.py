"""Predictions, losses and the lens of two models are what their definitions say, position by position."""

from __future__ import annotations

from math import exp, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from analyses import compare_losses, compare_predictions, lens_trajectories, logit_lens
from interp import LabError
from models import GPT, TransformerConfig
from tests.strategies import models, padding_masks, random_model, token_batches

SIZES = {"n_layers": 2, "n_heads": 2, "d_model": 8, "d_vocab": 11, "n_ctx": 16}
TOKENS = torch.tensor([[1, 2, 3, 1, 2], [4, 4, 6, 1, 0]])
TIGHT = {"rtol": 1e-9, "atol": 1e-11}  # float64, in another order


def rows_of(tokens: Tensor, mask: Tensor) -> list[Tensor]:
    return [row[real] for row, real in zip(tokens, mask, strict=True)]


UNCAPPED = models(output_logits_soft_cap=None)  # a cap makes ties, and which of two equals comes first has no rule


@given(UNCAPPED, UNCAPPED, token_batches(), st.integers(1, 11))
def test_kl_agreement_and_overlap_are_their_definitions(a: GPT, b: GPT, tokens: Tensor, k: int) -> None:
    found = compare_predictions(a, b, tokens, k)
    place = 0
    for row in tokens:
        p, q = (model(row[None])[0].detach().log_softmax(-1) for model in (a, b))
        for i in range(len(row)):
            forth = sum(exp(x) * float(x - y) for x, y in zip(p[i], q[i], strict=True))
            back = sum(exp(y) * float(y - x) for x, y in zip(p[i], q[i], strict=True))
            assert found.kl[place] == pytest.approx(forth, rel=1e-6, abs=1e-11)
            assert found.kl_back[place] == pytest.approx(back, rel=1e-6, abs=1e-11)
            tops = [set(x[i].argsort(descending=True)[:k].tolist()) for x in (p, q)]
            assert found.overlap[place] == pytest.approx(len(tops[0] & tops[1]) / k)
            assert found.agree[place] == (p[i].argmax() == q[i].argmax())
            place += 1
    assert len(found.kl) == place
    assert found.agreement == found.agree.mean()


@given(models(), models(), st.data())
def test_losses_are_those_of_the_padded_batch(a: GPT, b: GPT, data: st.DataObject) -> None:
    tokens = data.draw(token_batches(min_pos=3))
    mask = data.draw(padding_masks(*tokens.shape))
    mask[0] = True  # a text of two tokens or more
    found = compare_losses(a, b, rows_of(tokens, mask))
    for model, losses in ((a, found.a), (b, found.b)):
        log_probs = model(tokens, attention_mask=mask).detach().log_softmax(-1)
        expected = [
            -float(log_probs[row, i - 1, tokens[row, i]])
            for row in range(len(tokens))
            for i in range(1, tokens.shape[1])
            if mask[row, i] and mask[row, i - 1]
        ]
        np.testing.assert_allclose(losses, expected, **TIGHT)
    assert found.position.tolist() == [i for row in rows_of(tokens, mask) for i in range(1, len(row))]


def test_losses_by_class_are_means_with_their_standard_errors() -> None:
    a, b = (random_model(TransformerConfig(**SIZES), seed) for seed in (0, 1))
    found = compare_losses(a, b, TOKENS)
    groups = found.by_class()
    names = list(groups.labels["group"])
    again = [i for i, token in enumerate([2, 3, 1, 2, 4, 6, 1, 0]) if i in (2, 3, 4)]  # 1, 2 and 4 stood there before
    row = names.index("repeated in its text")
    assert groups.count[row] == 3
    assert groups.values[0, row] == pytest.approx(found.a[again].mean())
    apart = found.b[again] - found.a[again]
    assert groups.values[2, row] == pytest.approx(apart.mean())
    assert groups.error[2, row] == pytest.approx(apart.std(ddof=1) / sqrt(3))
    assert names[0] == "all"
    assert groups.count[0] == 8
    assert not any(name in names for name in ("number", "punctuation"))  # ids without a tokenizer look like nothing
    assert np.isnan(groups.error[:, groups.count == 1]).all()


def test_losses_by_position_average_over_the_texts() -> None:
    a, b = (random_model(TransformerConfig(**SIZES), seed) for seed in (0, 1))
    found = compare_losses(a, b, [TOKENS[0], TOKENS[1][:3]])
    groups = found.by_position()
    assert groups.labels["group"] == (1, 2, 3, 4)
    assert groups.count.tolist() == [2, 2, 1, 1]
    assert groups.values[0, 0] == pytest.approx((found.a[0] + found.a[4]) / 2)


@given(models(), models(), token_batches())
def test_trajectories_are_the_mean_lens(a: GPT, b: GPT, tokens: Tensor) -> None:
    found = lens_trajectories(a, b, tokens)
    for model, means in ((a, found.a), (b, found.b)):
        gathered: list[list[list[float]]] = [[[] for _ in range(model.cfg.n_layers + 1)] for _ in range(5)]
        for row in tokens:
            lens = logit_lens(model, row)
            for i in range(len(row) - 1):
                for layer in range(model.cfg.n_layers + 1):
                    logits = torch.from_numpy(lens.logits[layer, i].copy())
                    right = float(logits.log_softmax(-1)[row[i + 1]])
                    rank = int((logits > logits[row[i + 1]]).sum())
                    five = (lens.entropy[layer, i], lens.kl[layer, i], -right, exp(right), rank)
                    for measure, value in enumerate(five):
                        gathered[measure][layer].append(float(value))
        np.testing.assert_allclose(means, np.array(gathered).mean(-1), rtol=1e-6, atol=1e-9)


def test_the_last_row_of_a_trajectory_is_the_models_own_loss() -> None:
    a, b = (random_model(TransformerConfig(**SIZES | {"n_layers": layers})) for layers in (2, 3))
    found, losses = lens_trajectories(a, b, TOKENS), compare_losses(a, b, TOKENS)
    measure = list(found.labels["measure"]).index("loss")
    assert found.a[measure, -1] == pytest.approx(losses.a.mean())
    assert found.b[measure, -1] == pytest.approx(losses.b.mean())
    assert found.error_b[measure, -1] == pytest.approx(losses.b.std(ddof=1) / sqrt(8))
    assert (found.a.shape, found.b.shape) == ((5, 3), (5, 4))


@pytest.mark.parametrize("analysis", [compare_losses, lens_trajectories])
def test_without_a_next_token_there_is_nothing_to_predict(analysis: object) -> None:
    model = random_model(TransformerConfig(**SIZES))
    with pytest.raises(LabError, match="no text has two tokens"):
        analysis(model, model, torch.tensor([3]))  # type: ignore[operator]


def test_tokens_that_a_model_never_predicts_have_no_loss() -> None:
    model = random_model(TransformerConfig(**SIZES, d_vocab_out=5))
    for analysis in (compare_losses, lens_trajectories):
        with pytest.raises(LabError, match="predicts 5 tokens only"):
            analysis(model, model, TOKENS)


def test_none_of_the_likeliest_tokens_is_refused() -> None:
    model = random_model(TransformerConfig(**SIZES))
    with pytest.raises(LabError, match="k=0: expected at least 1"):
        compare_predictions(model, model, TOKENS, k=0)


@pytest.mark.parametrize("analysis", [compare_losses, lens_trajectories, compare_predictions])
def test_each_has_a_page(analysis: object) -> None:
    a, b = (random_model(TransformerConfig(**SIZES), seed) for seed in (0, 1))
    found = analysis(a, b, TOKENS)  # type: ignore[operator]
    assert found.title in found.to_html()
    assert found.provenance.settings["compared with"]["weights"]
