"""The models of the comparison of positions differ in their positions and in nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from interp.errors import LabError
from models.zoo import positions
from models.zoo.positions import KINDS, PositionStudy


@pytest.fixture(scope="module")
def study() -> Iterator[PositionStudy]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(positions, "DOCUMENTS", 300)
        patch.setattr(positions, "HELD_OUT", 20)
        study = PositionStudy(trained_on=6, longest=16, steps=3, batch_size=2, n_layers=1, d_model=8)
        assert study.test_rows(2).shape == (2, 16)
        yield study


def test_only_learned_positions_have_weights_of_their_own(study: PositionStudy) -> None:
    sizes = {kind: sum(p.numel() for p in study.trained(kind, 0).parameters()) for kind in KINDS}
    rest = {size for kind, size in sizes.items() if kind != "learned"}
    assert rest == {sizes["learned"] - 16 * 8}


def test_positions_that_training_never_sees_stay_as_they_were_drawn(study: PositionStudy) -> None:
    """Which is what makes the learned kind comparable beyond the length of its training."""
    before = replace(study, steps=0).trained("learned", 0).W_pos
    after = study.trained("learned", 0).W_pos
    assert torch.equal(after[6:], before[6:])
    assert not torch.isclose(after[:6], before[:6]).all(1).any()


def test_a_seed_gives_the_same_model_again_and_another_one_another(study: PositionStudy) -> None:
    first, again, other = (study.trained("rotary", seed).embed.W_E for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_test_rows_follow_one_another_in_text_that_training_has_not(study: PositionStudy) -> None:
    rows = study.test_rows(3)
    text = study.tokenizer.decode(rows.flatten().tolist())
    assert len(text) == 48
    assert text not in study._text


@pytest.mark.parametrize("n", [0, 10_000])
def test_rows_that_there_are_not_are_refused(study: PositionStudy, n: int) -> None:
    with pytest.raises(LabError, match=f"{n} test rows; expected 1 to "):
        study.test_rows(n)


def test_test_rows_must_be_longer_than_those_of_training() -> None:
    with pytest.raises(LabError, match="expected more positions than trained_on=64"):
        PositionStudy(trained_on=64, longest=64)


def test_an_unknown_kind_is_named(study: PositionStudy) -> None:
    with pytest.raises(LabError, match="closest: 'rotary'"):
        study.trained("rotarry", 0)
