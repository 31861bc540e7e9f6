"""The loss by position is that of a plain loop, and its spans and bands are means of it; float64, 1e-9."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from analyses import loss_by_position
from interp.errors import LabError
from interp.results import Result
from models import TransformerConfig
from tests.strategies import random_model

CLOSE = 1e-9
ROWS = torch.randint(7, (5, 20), generator=torch.Generator().manual_seed(0))


def model(seed: int, n_ctx: int = 20):
    return random_model(
        TransformerConfig(1, 2, 8, 7, n_ctx=n_ctx, d_mlp=8, model_name="mine", positional_embedding_type="none"), seed
    )


def test_it_is_the_mean_over_rows_of_each_position() -> None:
    kinds = {"a": [model(0), model(1)], "b": [model(2), model(3)]}
    found = loss_by_position(kinds, ROWS, trained_on=6)
    assert found.values.shape == (2, 2, 19)
    assert found.labels == {"kind": ("a", "b"), "pos": tuple(range(1, 20))}
    for i, runs in enumerate(kinds.values()):
        for j, each in enumerate(runs):
            with torch.no_grad():
                logprobs = each(ROWS).log_softmax(-1)
            for position in (1, 7, 19):
                losses = [-float(logprobs[row, position - 1, ROWS[row, position]]) for row in range(5)]
                assert found.values[i, j, position - 1] == pytest.approx(np.mean(losses), abs=CLOSE)


def test_spans_double_from_the_length_of_training() -> None:
    found = loss_by_position({"a": [model(0)]}, ROWS, trained_on=6)
    assert found.spans() == [(1, 7), (7, 13), (13, 20)]
    np.testing.assert_allclose(found.between(6, 12)[0, 0], found.values[0, 0, 5:11].mean(), atol=CLOSE)
    assert found.table()[0] == ["positions", "1 to 6", "7 to 12", "13 to 19"]
    assert loss_by_position({"a": [model(0)]}, ROWS).spans() == [(1, 20)]


def test_the_picture_marks_where_training_ended(tmp_path: Path) -> None:
    found = loss_by_position({"a": [model(0)], "b": [model(1)]}, ROWS, trained_on=8)
    figure = found.plot()
    assert [trace.name for trace in figure.data] == ["a", "b"]
    np.testing.assert_allclose(figure.data[0].y, [found.between(1, 9)[0, 0], found.between(9, 17)[0, 0],
                                                  found.between(17, 20)[0, 0]], atol=CLOSE)  # fmt: skip
    assert len(figure.layout.shapes) == 1
    assert "1 to 8" in found.to_html()
    found.save(tmp_path / "it.safetensors")
    assert Result.load(tmp_path / "it.safetensors") == found


def test_what_makes_no_sense_is_refused() -> None:
    one = {"a": [model(0)]}
    for kinds, given in (({}, "none"), ({"a": []}, "a: 0"), (one | {"b": [model(1), model(2)]}, "a: 1, b: 2")):
        with pytest.raises(LabError, match=f"models of each kind: {given}"):
            loss_by_position(kinds, ROWS)
    with pytest.raises(LabError, match=r"rows of 20 positions do not fit the window of 'mine', 10 .*with_context"):
        loss_by_position({"a": [model(0, 10)]}, ROWS)
    with pytest.raises(LabError, match="at least two positions"):
        loss_by_position(one, ROWS[:, :1])
    with pytest.raises(LabError, match=r"token ids from 0 to 9; 'mine' has those from 0 to 6"):
        loss_by_position(one, torch.tensor([[0, 9]]))
    with pytest.raises(LabError, match="positions 3 to 20; expected some from 1 to 19"):
        loss_by_position(one, ROWS).between(3, 21)
