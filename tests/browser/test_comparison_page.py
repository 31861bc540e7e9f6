"""The page of a comparison in a real Chromium: every picture drawn, nothing asked for, hostile tokens inert."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from analyses import compare, training_course
from tests.browser.chromium import Shown
from tests.hostile import hostile_model, hostile_pairs

pytestmark = pytest.mark.browser

SIZES = """return [...document.querySelectorAll(".plot")].map((plot) => {
    const box = plot.querySelector("svg.main-svg").getBoundingClientRect();
    return Math.min(box.width, box.height);
})"""


def quiet(shown: Shown) -> None:
    assert shown.complaints == []
    assert shown.requests == []
    assert shown.js("return window.harmed === undefined")


def test_every_picture_of_a_comparison_is_drawn(show: Callable[[str], Shown]) -> None:
    model = hostile_model()
    shown = show(compare(model, hostile_model(), hostile_pairs(model).clean[0]).to_html())
    sizes = shown.js(SIZES)
    assert len(sizes) == 7  # along the depth, layers, heads, lens, predictions, losses by class and by position
    assert min(sizes) > 100
    quiet(shown)


def test_the_course_of_training_is_drawn(show: Callable[[str], Shown]) -> None:
    model = hostile_model()
    shown = show(training_course(model, [("step-0", hostile_model())]).to_html())
    assert [size > 100 for size in shown.js(SIZES)] == [True]
    quiet(shown)
