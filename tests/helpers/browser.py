"""A real browser for what people look at: Debian's Chromium (or Chrome), headless, that sees this machine alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Route, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_HERE = ("127.0.0.1", "localhost")


@contextmanager
def started() -> Iterator[Browser]:
    """A browser. Without one the test is skipped; on a machine that has no excuse for that (CI=true), it fails."""
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("No Chromium: `make browser` installs it.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])  # for root, too
        yield browser
        browser.close()


@contextmanager
def tab(browser: Browser, width: int = 1100, height: int = 800) -> Iterator[tuple[Page, list[str]]]:
    """An empty page of that size in pixels, and the addresses it asked for elsewhere: they are refused."""
    elsewhere: list[str] = []

    def guard(route: Route) -> None:
        address = urlsplit(route.request.url)
        if address.scheme in ("file", "data", "blob") or address.hostname in _HERE:
            route.continue_()
        else:
            elsewhere.append(route.request.url)
            route.abort()

    context = browser.new_context(viewport={"width": width, "height": height})
    context.route("**/*", guard)
    yield context.new_page(), elsewhere
    context.close()
