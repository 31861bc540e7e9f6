"""Attribution by gradients, with HookedTransformer's habits, on the town model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import models.hooked_transformer as lens
from models.hooked_transformer import HookedTransformer
from tests.habits.both_lenses import assert_same_numbers, needs_transformer_lens_3, numbers_there
from tests.habits.gradient_attribution import attribute

GIVER = 10  # the only position at which the two prompts differ


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return HookedTransformer.from_pretrained("town", dtype="float64")


@pytest.fixture(scope="module")
def found(model: HookedTransformer) -> dict[str, Tensor]:
    return attribute(model, lens)


def test_the_attributions_of_a_layer_sum_to_the_slope_that_a_small_step_shows(found: dict[str, Tensor]) -> None:
    # A central difference with steps of 1e-4 in float64 is good to about 1e-6 of the value.
    torch.testing.assert_close(found["streams"][1].sum(), found["slope"], atol=1e-5, rtol=1e-5)


def test_only_where_the_prompts_differ_is_anything_attributed_to_the_first_layer(found: dict[str, Tensor]) -> None:
    first = found["streams"][0]
    assert first.nonzero().flatten().tolist() == [GIVER]
    assert (found["streams"][:, :GIVER] == 0).all()


def test_the_attribution_moves_to_the_end(found: dict[str, Tensor]) -> None:
    last = found["streams"][-1]
    assert int(last.argmax()) == len(last) - 1


def test_a_backward_hook_cuts_off_or_doubles_what_passes(found: dict[str, Tensor]) -> None:
    assert not torch.allclose(found["patterns held"], found["whole"])
    assert not torch.allclose(found["an MLP doubled"], found["whole"])


def test_every_way_to_a_gradient_gives_the_same_one(found: dict[str, Tensor]) -> None:
    assert torch.equal(found["by caching hooks"], found["cached"])
    assert torch.equal(found["outliving"], found["cached"])


@needs_transformer_lens_3
def test_the_same_file_finds_the_same_numbers_in_transformer_lens(
    model: HookedTransformer, found: dict[str, Tensor], tmp_path: Path
) -> None:
    assert_same_numbers(found, numbers_there(model, "gradient_attribution", "attribute", tmp_path))
