"""The report that `interp demo` wrote, where one is given: `INTERP_REPORT=report.html pytest tests/browser`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import open_page

pytestmark = pytest.mark.browser


def test_the_demo_s_report_is_drawn_and_silent(driver: Any) -> None:
    path = Path(os.environ.get("INTERP_REPORT", "no report")).resolve()
    if not path.is_file():
        pytest.skip("set INTERP_REPORT to the report that `interp demo` wrote")
    page = open_page(driver, path)
    assert page.complaints == []
    assert page.requests == []
    drawn = page.js("""
        const seen = (element) => {
            const box = element.getBoundingClientRect();
            return box.width > 20 && box.height > 20;
        };
        return {
            plots: document.querySelectorAll(".plot").length,
            drawn: [...document.querySelectorAll(".plot svg.main-svg:first-child")].filter(seen).length,
            heatmaps: [...document.querySelectorAll(".heatmaplayer image")].filter(seen).length,
            patterns: [...document.querySelectorAll(".view canvas")].filter(seen).length,
        }""")
    assert drawn["plots"] == drawn["drawn"] >= 8
    assert drawn["heatmaps"] >= 8
    assert drawn["patterns"] >= 4
