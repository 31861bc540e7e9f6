"""A picture of a page, as the README shows one: `python -m tests.browser.picture report.html picture.png [section]`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.browser.chromium import open_page, start


def main(page: str, picture: str, section: str = "section-0") -> None:
    """Show `page` from one of its sections on, and write what a window of 1280 by 1000 shows of it."""
    driver = start()
    try:
        shown = open_page(driver, Path(page).resolve())
        shown.js(f"document.getElementById({section!r}).scrollIntoView({{behavior: 'instant'}})")
        time.sleep(1)  # pictures are taken in real time: virtual time shows half-drawn charts
        driver.save_screenshot(picture)
    finally:
        driver.quit()


if __name__ == "__main__":
    main(*sys.argv[1:])
