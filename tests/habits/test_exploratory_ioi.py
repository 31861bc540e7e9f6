"""A first look at indirect objects, with HookedTransformer's habits, on the town model.

Tolerances: float64 throughout; sums over some hundred terms of order ten agree to 1e-9.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import models.hooked_transformer as lens
from models.hooked_transformer import HookedTransformer
from tests.habits.both_lenses import assert_same_numbers, needs_transformer_lens_3, numbers_there
from tests.habits.exploratory_ioi import explore

GIVER = 10  # where the second name comes again, and the only position at which the two prompts differ


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return HookedTransformer.from_pretrained("town", dtype="float64")


@pytest.fixture(scope="module")
def found(model: HookedTransformer) -> dict[str, Tensor]:
    return explore(model, lens)


def test_the_model_names_the_one_who_is_given_something(found: dict[str, Tensor]) -> None:
    assert (found["per prompt"] > 3).all()
    clean, corrupted = found["values"]
    assert corrupted < -3 < 3 < clean


def test_the_lens_ends_at_the_logit_difference_and_starts_at_none(found: dict[str, Tensor]) -> None:
    # Each pair of names is asked for in both orders, so what the unembedding's bias adds cancels in the mean.
    torch.testing.assert_close(found["lens"][-1], found["values"][0], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(found["from the stream"].mean(), found["values"][0], atol=1e-9, rtol=1e-9)
    assert abs(found["lens"][0]) < 0.1


def test_layers_sum_to_the_logit_difference_and_heads_to_their_layers_but_for_biases(found: dict[str, Tensor]) -> None:
    torch.testing.assert_close(found["layers"].sum(), found["values"][0], atol=1e-9, rtol=1e-9)
    attention = found["layers"][2::2]  # after the embeddings, attention and MLP take turns
    biases = attention - found["heads"].sum(-1)  # almost the same for both orders of the names, whose scales differ
    assert biases.abs().max() < 0.05
    torch.testing.assert_close(found["attributed"], found["heads"].flatten(), atol=1e-9, rtol=1e-9)


def test_the_best_head_looks_from_the_end_to_where_patching_finds_the_answer_in_its_layer(
    found: dict[str, Tensor],
) -> None:
    layer = int(found["heads"].max(-1).values.argmax())
    where = int(found["patched streams"][layer].argmax())
    assert found["pattern of the best"][-1, where] > 0.9
    assert found["heads"].max() > 2


def test_what_decides_is_at_the_repeated_name_first_and_at_the_end_last(found: dict[str, Tensor]) -> None:
    streams = found["patched streams"]
    torch.testing.assert_close(streams[0, GIVER], torch.ones((), dtype=torch.float64), atol=1e-9, rtol=0)
    others = torch.cat([streams[:, :GIVER].flatten(), streams[0, GIVER + 1 :]])
    torch.testing.assert_close(others, torch.zeros_like(others), atol=1e-9, rtol=0)
    assert streams[-1, -1] > 0.9 > 0.1 > abs(streams[-1, GIVER])
    assert found["patched heads"].max() > 0.3


@needs_transformer_lens_3
def test_the_same_file_finds_the_same_numbers_in_transformer_lens(
    model: HookedTransformer, found: dict[str, Tensor], tmp_path: Path
) -> None:
    assert_same_numbers(found, numbers_there(model, "exploratory_ioi", "explore", tmp_path))
