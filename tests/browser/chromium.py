"""A real Chromium, and what it notices while it opens a page."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 180
"""How long a page may take to say that it has drawn itself."""

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run --disable-dev-shm-usage --window-size=1280,1000"
)


@dataclass
class Shown:
    """A page that is open in the browser, and what the browser noticed until it was drawn.

    complaints: the errors in the console; what the page's policy forbids is one. requests: the addresses that the
    page asked for and was not forbidden to; what lies in the page itself needs no asking.
    """

    driver: Any
    complaints: list[str]
    requests: list[str]

    def js(self, body: str) -> Any:
        """What a piece of JavaScript returns in the page."""
        return self.driver.execute_script(body)


def open_page(driver: Any, path: Path) -> Shown:
    """Open a file, and wait until it says that it has drawn itself."""
    driver.get_log("performance")
    driver.get_log("browser")
    driver.get(path.as_uri())
    deadline = time.monotonic() + SECONDS
    while not driver.execute_script("return document.documentElement.dataset.drawn === 'true'"):
        if time.monotonic() > deadline:
            raise AssertionError(f"not drawn after {SECONDS} s; console: {driver.get_log('browser')}")
        time.sleep(0.1)
    complaints = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    return Shown(driver, complaints, _requests(driver, path))


def _requests(driver: Any, page: Path) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = {m["params"]["requestId"]: m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    failed = [m["params"] for m in messages if m["method"] == "Network.loadingFailed"]
    forbidden = {params["requestId"] for params in failed if params.get("blockedReason") == "csp"}
    urls = [params["request"]["url"] for name, params in sent.items() if name not in forbidden]
    return [url for url in urls if url != page.as_uri() and not url.startswith(("data:", "blob:"))]


class NoBrowserError(Exception):
    """There is no browser here; the message says what to install."""


def start() -> Any:
    """A running Chromium without a window, which asks for nothing of its own accord.

    Raises:
        NoBrowserError: selenium, Chromium or its driver is missing.
    """
    try:
        from selenium import webdriver
    except ImportError as missing:
        raise NoBrowserError("needs selenium: pip install -e '.[dev]'") from missing
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if not chromium or not chromedriver:
        raise NoBrowserError("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
