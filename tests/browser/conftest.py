"""A real Chromium for the pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import NoBrowserError, Shown, open_page, start


@pytest.fixture(scope="session")
def driver() -> Iterator[Any]:
    try:
        running = start()
    except NoBrowserError as reason:
        pytest.skip(str(reason))
    yield running
    running.quit()


@pytest.fixture
def show(driver: Any, tmp_path: Path) -> Callable[[str], Shown]:
    """Open a page given as text, and wait until it has drawn itself."""

    def opened(page: str) -> Shown:
        path = tmp_path / "page.html"
        path.write_text(page, encoding="utf-8")
        return open_page(driver, path)

    return opened
