"""A real browser for what people look at: Debian's Chromium (or Chrome), headless, that sees this machine alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_HERE = ("127.0.0.1", "localhost")
_PATIENCE = 120_000.0  # milliseconds: the machine may be busy
_ARGUMENTS = [
    "--no-sandbox",  # for root, too
    "--host-resolver-rules=" + ", ".join(["MAP * ~NOTFOUND", *(f"EXCLUDE {host}" for host in _HERE)]),
]


@contextmanager
def started() -> Iterator[Browser]:
    """A browser. Without one the test is skipped; on a machine that has no excuse for that (CI=true), it fails."""
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("No Chromium: `make browser` installs it.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def tab(browser: Browser, width: int = 1100, height: int = 800) -> Iterator[tuple[Page, list[str]]]:
    """An empty page of that size in pixels, and the addresses it asks for elsewhere, none of which is found."""
    elsewhere: list[str] = []

    def noted(request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("file", "data", "blob") and address.hostname not in _HERE:
            elsewhere.append(request.url)

    context = browser.new_context(viewport={"width": width, "height": height})
    context.set_default_timeout(_PATIENCE)
    expect.set_options(_PATIENCE)
    context.on("request", noted)
    yield context.new_page(), elsewhere
    context.close()
