"""The page of a circuit in a real Chromium: one file that draws the graph, tells scores on hover, and asks for nothing.

Its model's name and its tokens would like to be markup.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analyses import find_circuit
from analyses.circuit_finding import FoundCircuit
from analyses.circuit_picture import lines_of
from interp import text
from interp.graph import Graph
from tests.browser.chromium import Shown, open_page
from tests.hostile import SCRIPT, hostile_model, hostile_pairs

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def found() -> FoundCircuit:
    model = hostile_model()
    return find_circuit(model, hostile_pairs(model), share=0.5, progress=False)


@pytest.fixture(scope="module")
def path(found: FoundCircuit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("circuit") / "circuit.html"
    path.write_text(found.to_html(), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def page(path: Path, driver: Any) -> Shown:
    """The page, opened once with the network cut off; the tests change nothing but the place of the mouse."""
    driver.execute_cdp_cmd("Network.enable", {})
    cut = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", cut)
    try:
        return open_page(driver, path)
    finally:
        driver.execute_cdp_cmd("Network.emulateNetworkConditions", cut | {"offline": False})


def test_it_opens_offline_from_one_file_and_asks_for_nothing(page: Shown) -> None:
    assert page.complaints == []
    assert page.requests == []
    resources = page.js("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in resources if not name.startswith(("data:", "blob:"))] == []


def test_the_graph_is_drawn_as_svg_with_every_edge_and_component(page: Shown, found: FoundCircuit) -> None:
    drawn = page.js("""
        const svg = document.querySelector(".plot svg.main-svg");
        const seen = (element) => element.getTotalLength() > 5;
        const box = svg.getBoundingClientRect();
        return {
            size: Math.min(box.width, box.height),
            edges: [...svg.querySelectorAll(".scatterlayer path.js-line")].filter(seen).length,
            names: [...svg.querySelectorAll(".scatterlayer .textpoint text")].map((element) => element.textContent),
        }""")
    assert drawn["size"] > 200
    assert drawn["edges"] == len(found.circuit)
    assert sorted(drawn["names"]) == sorted(found.circuit.nodes)


def test_every_picture_of_the_page_is_drawn(page: Shown) -> None:
    sizes = page.js("""
        return [...document.querySelectorAll(".plot")].map((plot) => {
            const box = plot.querySelector("svg.main-svg").getBoundingClientRect();
            return Math.min(box.width, box.height);
        })""")
    assert len(sizes) == 4  # the graph, how scores are spread, the strongest edges, faithfulness over sizes
    assert min(sizes) > 100


def test_hovering_an_edge_tells_its_name_and_score(page: Shown, found: FoundCircuit) -> None:
    """The point half-way along each of some edges, under a real mouse."""
    from selenium.webdriver import ActionChains

    page.js("document.querySelector('.plot').scrollIntoView({behavior: 'instant', block: 'center'})")
    told = set()
    points = page.driver.find_elements("css selector", ".plot svg.main-svg .scatterlayer .points path.point")
    for point in points[:4]:
        ActionChains(page.driver).move_to_element(point).pause(0.4).perform()
        told.add(page.js("return document.querySelector('.plot .hoverlayer').textContent"))
    lines = lines_of(found.circuit, found.values)
    expected = {f"{line.name}{text.number(line.score)} {found.unit}" for line in lines}
    assert told
    assert told <= expected


def test_hostile_names_are_shown_and_not_run(page: Shown, path: Path) -> None:
    assert page.js("return window.harmed") is None
    assert page.js("return document.querySelectorAll('img, [onload], [onerror], [onmouseover]').length") == 0
    assert SCRIPT in page.driver.find_element("tag name", "body").text  # the model's name
    assert SCRIPT not in path.read_text(encoding="utf-8")


def test_a_graph_at_positions_is_no_larger_than_what_is_drawn_of_it(show: Any) -> None:
    """Edges at single positions are many; the strongest are drawn, and the page says so."""
    from analyses import edge_patching, evaluate_circuits, strongest_edges
    from analyses.circuit_picture import MAX_EDGES, circuit_figure
    from interp.page import Page, Plot, Section

    model = hostile_model()
    pairs = hostile_pairs(model)[:2]
    scores = edge_patching(model, pairs, graph=Graph.of(model, n_pos=6), progress=False)
    circuit = strongest_edges(scores, scores.graph.shape[0] * 6)
    assert len(circuit) > MAX_EDGES // 2
    assert evaluate_circuits(model, pairs, circuit).values.shape == (1,)
    page = show(Page("At positions", [Section("Graph", [Plot(circuit_figure(circuit, scores.values))])]).render())
    lines = page.js("return document.querySelectorAll('.scatterlayer path.js-line').length")
    assert lines == min(MAX_EDGES, len(circuit))
    assert page.complaints == []
