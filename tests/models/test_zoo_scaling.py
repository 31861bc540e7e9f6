"""Runs for a scaling law count what they say they count, and refuse a text that has no room for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from interp.errors import LabError
from models.zoo.scaling import ScalingStudy

TEXT = "The quick brown fox jumps over the lazy dog.\n" * 40


@pytest.fixture
def study(tmp_path: Path) -> ScalingStudy:
    (tmp_path / "fox.txt").write_text(TEXT)
    return ScalingStudy(tmp_path / "fox.txt", widths=(8, 16), steps=(2, 20), n_ctx=16, batch_size=4)


def test_parameters_and_tokens_are_those_of_the_runs(study: ScalingStudy) -> None:
    """A layer has 12 d² weights and 13 d biases and gains (4 d² + 4 d, 8 d² + 5 d, two norms), the last norm 2 d."""
    runs = list(study.runs())
    assert [(run.d_model, run.tokens) for run in runs] == [(8, 128), (8, 1280), (16, 128), (16, 1280)]
    assert [run.parameters for run in runs[::2]] == [2 * (12 * d * d + 13 * d) + 2 * d for d in (8, 16)]
    assert runs[1].loss < runs[0].loss


def test_a_run_is_the_same_whenever_it_is_made(study: ScalingStudy) -> None:
    assert study.run(8, 20) == list(study.runs())[1]
    assert replace(study, seed=1).run(8, 20).loss != study.run(8, 20).loss


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"widths": (8, 12)}, r"widths \[12\]; expected multiples of head_size=8"), ({"widths": (0,)}, r"widths \[0\]")],
)
def test_widths_that_heads_do_not_divide_are_refused(study: ScalingStudy, changes: dict, message: str) -> None:
    with pytest.raises(LabError, match=message):
        replace(study, **changes)


def test_a_short_text_is_refused(study: ScalingStudy) -> None:
    with pytest.raises(LabError, match="has 1800 characters; expected at least 2020"):
        replace(study, n_ctx=200).run(8, 2)
