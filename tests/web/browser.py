"""Chromium for tests: skips with a reason where there is no browser, and reads what a page complains about."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest


@contextlib.contextmanager
def open_browser() -> Iterator[Any]:
    """A headless Chromium of this machine."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


class WatchedPage:
    """A page with everything that it complains about: console errors, exceptions, requests to other hosts."""

    def __init__(self, browser: Any, base: str, *, width: int = 1280, height: int = 800, scheme: str = "light") -> None:
        self.base = base
        self.complaints: list[str] = []
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, locale="en-GB")
        self.page = context.new_page()
        self.page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._check_request)

    def _check_request(self, request: Any) -> None:
        if not request.url.startswith((self.base, self.base.replace("http", "ws", 1), "data:", "blob:")):
            self.complaints.append(f"request to {request.url}")

    def open(self, path: str, ready: str = "main > *") -> None:
        """Opens an address and waits for an element."""
        self.page.goto(self.base + path, wait_until="commit")
        self.page.wait_for_selector(ready)

    def log_in(self, token: str) -> None:
        """Logs in on the form."""
        self.open("login", "input[name=token]")
        self.page.fill("input[name=token]", token)
        self.page.click("button.primary")
        self.page.wait_for_selector("nav")
