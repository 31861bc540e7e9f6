"""Pages in a real Chromium: drawn, silent, and deaf to hostile tokens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from interp import pictures
from interp.page import Markup, Page, Plot, Section
from interp.pictures import Axis
from tests.browser.chromium import Shown
from tests.hostile import SCRIPT

pytestmark = pytest.mark.browser

Show = Callable[[str], Shown]


@pytest.fixture
def heatmap() -> str:
    figure = pictures.heatmap(np.array([[0.5, -2.0]]), Axis("layer", 1), Axis("pos", 2, [" a", SCRIPT]), unit="nats")
    return Page("One picture", [Section("Heatmap", [Plot(figure)])]).render()


def test_hovering_a_cell_tells_its_place_and_number(heatmap: str, show: Show) -> None:
    from selenium.webdriver import ActionChains

    page = show(heatmap)
    image = page.driver.find_element("css selector", ".heatmaplayer image")
    ActionChains(page.driver).move_to_element_with_offset(image, image.size["width"] // 4, 0).pause(0.5).perform()
    told = page.js("return document.querySelector('.hoverlayer').textContent")
    assert told.startswith("layer 0, position 1 </script><img")
    assert told.endswith("nats -2")


def test_what_slips_into_the_markup_is_still_not_run(show: Show) -> None:
    figure = pictures.bars(np.ones(1), ["a"])
    careless = Markup(f"<p>{SCRIPT}</p><script>window.harmed = 2</script>")
    page = show(Page("Careless", [Section("Raw", [careless, Plot(figure)])]).render())
    assert page.js("return window.harmed") is None
    assert any("Content Security Policy" in complaint for complaint in page.complaints)
    assert page.requests == []


def test_no_picture_offers_to_send_its_data_anywhere(heatmap: str, show: Show) -> None:
    page = show(heatmap)
    buttons = page.js("return [...document.querySelectorAll('.modebar-btn')].map((b) => b.dataset.title || '')")
    assert buttons
    assert not [title for title in buttons if "share" in title.lower() or "cloud" in title.lower()]


def test_pictures_follow_the_dark_scheme(heatmap: str, show: Show) -> None:
    page = show(heatmap)
    ink = "return getComputedStyle(document.querySelector('.xtick text')).fill"
    light = page.js(ink)
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    try:
        page.driver.implicitly_wait(1)
        dark = page.driver.execute_async_script(f"setTimeout(() => arguments[0]((() => {{ {ink} }})()), 500)")
    finally:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert light == "rgb(31, 36, 48)"
    assert dark == "rgb(223, 227, 234)"
