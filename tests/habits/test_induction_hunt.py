"""A hunt for induction heads, with HookedTransformer's habits, on the induction model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import models.hooked_transformer as lens
from models.hooked_transformer import HookedTransformer
from models.pretrained.places import ZOO
from tests.habits.both_lenses import assert_same_numbers, needs_transformer_lens_3, numbers_there
from tests.habits.induction_hunt import hunt


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return HookedTransformer.from_pretrained("induction-2l", dtype="float64")


@pytest.fixture(scope="module")
def found(model: HookedTransformer) -> dict[str, Tensor]:
    return hunt(model, lens)


def test_the_previous_token_head_is_the_one_that_its_card_names(found: dict[str, Tensor]) -> None:
    card = (ZOO / "induction-2l" / "README.md").read_text(encoding="utf-8")
    named = re.search(r"previous-token head \| [\d.]+ \(head (\d)\.(\d)\)", card)
    assert named is not None
    assert divmod(int(found["previous"].argmax()), 4) == (int(named[1]), int(named[2]))
    assert found["previous"].max() > 0.8


def test_the_heads_of_the_second_layer_are_induction_heads(found: dict[str, Tensor]) -> None:
    assert found["induction"][1].max() > 0.8
    assert found["induction"][0].max() < 0.1
    assert found["copying"] > 0.8


def test_the_induction_heads_keys_read_the_previous_token_head_most(found: dict[str, Tensor]) -> None:
    assert found["keys read"].argmax() == found["previous"][0].argmax()


def test_losses_follow_the_life_of_the_hooks(found: dict[str, Tensor]) -> None:
    losses = found["losses"]
    silenced, whole = losses[0], found["loss"]
    assert whole < 0.1 < 4 < silenced
    added, reset, permanent, both, outer, after, cleared, leveled, unleveled, removed, left = losses
    torch.testing.assert_close(torch.stack([added, permanent, after, leveled]), silenced.expand(4))
    torch.testing.assert_close(torch.stack([reset, cleared, unleveled, removed, left]), whole.expand(5))
    assert both > outer > 4 * whole
    assert both != silenced != outer


def test_a_hook_fires_once_a_run_and_keeps_its_counts_until_the_reset(found: dict[str, Tensor]) -> None:
    assert found["calls"].tolist() == [1, 1]


def test_results_of_heads_are_the_same_with_the_flag_and_computed_later(found: dict[str, Tensor]) -> None:
    # float64, sums of 16 terms: 1e-12 is some hundred roundings.
    torch.testing.assert_close(found["results"], found["computed results"], atol=1e-12, rtol=1e-12)


@needs_transformer_lens_3
def test_the_same_file_finds_the_same_numbers_in_transformer_lens(
    model: HookedTransformer, found: dict[str, Tensor], tmp_path: Path
) -> None:
    assert_same_numbers(found, numbers_there(model, "induction_hunt", "hunt", tmp_path))
