"""Start tokens, padding and generation by HookedTransformer's rules, on the town model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import models.hooked_transformer as lens
from models.hooked_transformer import HookedTransformer
from tests.habits.both_lenses import assert_same_numbers, needs_transformer_lens_3, numbers_there
from tests.habits.reading_and_writing import read_and_write


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return HookedTransformer.from_pretrained("town", dtype="float64")


@pytest.fixture(scope="module")
def found(model: HookedTransformer) -> dict[str, Tensor]:
    return read_and_write(model, lens)


def test_padding_on_the_left_changes_nothing(found: dict[str, Tensor]) -> None:
    # float64, logits of order ten: 1e-9 is some thousand roundings.
    for name in ("left", "left of texts", "left of streams"):
        torch.testing.assert_close(found[name][0], found["alone"], atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(found[name][1], found["both"], atol=1e-9, rtol=1e-9)


def test_what_is_written_names_the_one_who_is_given_something(found: dict[str, Tensor]) -> None:
    assert bytes(found["written"].tolist()).decode().startswith("When Mary and John went to the store")
    assert " to Mary." in bytes(found["written"].tolist()).decode()
    assert bytes(found["all written"].tolist()).decode().split("|")[1] == bytes(found["written"].tolist()).decode()


def test_a_penalty_on_frequency_writes_no_token_twice(found: dict[str, Tensor]) -> None:
    new = found["penalised"][0, -5:].tolist()
    assert len(set(new)) == 5
    assert not set(new) & set(found["penalised"][0, :-5].tolist())


@needs_transformer_lens_3
def test_the_same_file_finds_the_same_in_transformer_lens(
    model: HookedTransformer, found: dict[str, Tensor], tmp_path: Path
) -> None:
    assert_same_numbers(found, numbers_there(model, "reading_and_writing", "read_and_write", tmp_path))
