"""The report in a real Chromium: drawn, silent, and deaf to the hostile tokens that stand everywhere in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analyses import write_report
from tests.browser.chromium import Shown, open_page
from tests.hostile import SCRIPT, hostile_model, hostile_pairs

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two layers with two heads each, on six positions."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    model = hostile_model()
    write_report(model, hostile_pairs(model), path, progress=False)
    return path


@pytest.fixture(scope="module")
def report(path: Path, driver: Any) -> Shown:
    """The report, opened once for all tests here: they look, and change nothing but the place of the mouse."""
    return open_page(driver, path)


def test_the_report_makes_no_request_and_no_complaint(report: Shown) -> None:
    assert report.complaints == []
    assert report.requests == []
    resources = report.js("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in resources if not name.startswith(("data:", "blob:"))] == []


def test_every_picture_of_the_report_is_drawn(report: Shown) -> None:
    sizes = report.js("""
        return [...document.querySelectorAll(".plot")].map((plot) => {
            const box = plot.querySelector("svg.main-svg").getBoundingClientRect();
            return [box.width, box.height];
        })""")
    assert len(sizes) == 9
    assert all(width > 500 and height > 100 for width, height in sizes)
    grids = report.js("""
        return [...document.querySelectorAll(".plot")].flatMap((plot) =>
            [...plot.querySelectorAll(".heatmaplayer image")].map((image) => {
                const box = image.getBoundingClientRect();
                return [box.width > 50, box.height > 50, image.href.baseVal.startsWith("data:image/png")];
            }))""")
    # the lens, four of patching, one of attribution, three of head scores
    assert grids == [[True, True, True]] * 9


def test_the_heatmaps_have_the_cells_of_the_results(report: Shown) -> None:
    shapes = report.js("""
        return [...document.querySelectorAll(".plot")].flatMap((plot) => plot.calcdata)
            .filter((trace) => trace[0].trace.type === "heatmap")
            .map((trace) => [trace[0].z.length, trace[0].z[0].length])""")
    assert shapes == [[3, 6], [2, 6], [2, 6], [2, 6], [2, 2], [2, 2], [2, 2], [2, 2], [2, 2]]
    words = report.js("return document.querySelector('.plot').querySelectorAll('.heatmap-label').length")
    assert words == 3 * 6  # the lens has its token in every cell


def test_the_attention_patterns_are_drawn(report: Shown) -> None:
    colors = report.js("""
        return [...document.querySelectorAll(".view canvas")].map((canvas) => {
            const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            const found = new Set();
            for (let i = 0; i < pixels.length; i += 4) found.add(pixels.slice(i, i + 4).join());
            return [canvas.getBoundingClientRect().width > 20, found.size > 5];
        })""")
    assert colors == [[True, True]] * 5  # four heads, and one of them large


def test_hovering_a_head_shows_it_large(report: Shown) -> None:
    from selenium.webdriver import ActionChains

    heads = report.driver.find_elements("css selector", ".view h4")
    for head in (heads[2], heads[1]):
        report.js("document.querySelector('.view').scrollIntoView({behavior: 'instant'})")
        ActionChains(report.driver).move_to_element(head).pause(0.5).perform()
        assert report.driver.find_element("css selector", ".view h2").text == head.text


def test_a_hostile_token_is_shown_and_not_run(report: Shown) -> None:
    assert report.js("return window.harmed") is None
    assert report.js("return document.querySelectorAll('img, [onload], [onerror], [onmouseover]').length") == 0
    assert SCRIPT in report.driver.find_element("css selector", ".tokens").text
    ticks = report.js("return [...document.querySelectorAll('.xtick text')].map((tick) => tick.textContent)")
    assert "</script><img…" in " ".join(ticks)


def test_what_is_not_a_picture_can_be_read_without_scripts(path: Path) -> None:
    """Prompts, baselines, tables and provenance are markup."""
    body = path.read_text(encoding="utf-8").split("<body>")[1].split("<script")[0]
    for words in ("The task", "clean prompts", "sum of the parts", "Provenance"):
        assert words in body
