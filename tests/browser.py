"""A headless Chromium for tests of pages, which records errors and requests.

with open_page(path) as (page, seen):
    ...
assert not seen.errors
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
# The browser itself stays off the network, so that every recorded request comes from the page.
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"),
    *("--disable-component-update", "--disable-sync", "--disable-default-apps"),
)


@dataclass
class Seen:
    """What happened in the browser."""

    errors: list[str] = field(default_factory=list)
    """Errors and warnings on the console, and exceptions."""

    requests: list[str] = field(default_factory=list)
    """Requested addresses, including the page itself."""


@contextmanager
def open_page(path: Path | str, **settings: Any) -> Iterator[tuple[Any, Seen]]:
    """A Playwright page that shows this file (with its fragment, if any), and what happened.

    `settings` are options of a browser context, such as `color_scheme="dark"` or
    `viewport={"width": 400, "height": 800}`. Skips the test if there is no browser.
    """
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    file, _, fragment = str(path).partition("#")
    address = Path(file).resolve().as_uri() + (f"#{fragment}" if fragment else "")
    seen = Seen()
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(QUIET))
        try:
            page = browser.new_context(**settings).new_page()
            page.on("pageerror", lambda error: seen.errors.append(str(error)))
            page.on("console", lambda message: _note(message, seen))
            page.on("request", lambda request: seen.requests.append(request.url))
            page.goto(address)
            yield page, seen
        finally:
            browser.close()


def _note(message: Any, seen: Seen) -> None:
    if message.type in ("error", "warning"):
        seen.errors.append(message.text)
