"""A real Chromium for the pages, and what it noticed while it showed them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SECONDS = 60
"""How long a page may take to say that it has drawn itself."""

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run --disable-dev-shm-usage --window-size=1280,1000"
)


@dataclass
class Shown:
    """A page that is open in the browser."""

    driver: Any

    def js(self, body: str) -> Any:
        """What a piece of JavaScript returns in the page."""
        return self.driver.execute_script(body)

    def complaints(self) -> list[str]:
        """Everything the console says at the level of a warning that names the policy, or of an error."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def requests(self) -> list[str]:
        """The addresses that were asked for since the last call, the page itself left out."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith(("file:", "data:"))]

    def screenshot(self, path: Path) -> None:
        """What the whole page looks like, taken in real time."""
        height = self.js("return document.documentElement.scrollHeight")
        self.driver.set_window_size(1280, height + 150)
        time.sleep(1.0)
        self.driver.save_screenshot(str(path))


@pytest.fixture(scope="session")
def driver() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install -e '.[dev]'")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield running
    running.quit()


@pytest.fixture
def show(driver: Any, tmp_path: Path) -> Callable[[str], Shown]:
    """Open a page given as text, and wait until it has drawn itself."""

    def opened(page: str) -> Shown:
        path = tmp_path / "page.html"
        path.write_text(page, encoding="utf-8")
        driver.set_window_size(1280, 1000)
        driver.get_log("performance")
        driver.get_log("browser")
        driver.get(path.as_uri())
        deadline = time.monotonic() + SECONDS
        while not driver.execute_script("return document.documentElement.dataset.drawn === 'true'"):
            if time.monotonic() > deadline:
                raise AssertionError(f"not drawn after {SECONDS} s; console: {driver.get_log('browser')}")
            time.sleep(0.1)
        return Shown(driver)

    return opened
