"""Chromium for tests: skips with a reason where there is no browser, and reads what a page complains about."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

AXE = Path(os.environ.get("GROUNDSTREAM_AXE", "node_modules/axe-core/axe.min.js"))
"""Script of npm's axe-core, which is for development only."""
GOLDENS = Path(__file__).parent / "goldens"
TOO_WIDE = """() => document.documentElement.scrollWidth <= innerWidth ? [] : [...document.querySelectorAll('body *')]
  .filter(item => item.getBoundingClientRect().right > innerWidth + 1 && !item.closest('svg, .scroll'))
  .map(item => item.outerHTML.slice(0, 100)).concat('the document')"""
NAMELESS = """() => [...document.querySelectorAll('button, a[href], input, select')]
  .filter(item => item.checkVisibility() && !(item.getAttribute('aria-label') || item.textContent.trim()
    || item.labels?.length || item.title)).map(item => item.outerHTML)"""
BROKEN_RULES = """async () => (await axe.run()).violations.flatMap(
  rule => rule.nodes.map(node => `${rule.id}: ${node.html.slice(0, 160)}`))"""


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

    def __init__(
        self,
        browser: Any,
        base: str,
        *,
        width: int = 1280,
        height: int = 800,
        scheme: str = "light",
        ignore_https_errors: bool = False,
    ) -> None:
        self.base = base
        self.complaints: list[str] = []
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            locale="en-GB",
            timezone_id="UTC",
            ignore_https_errors=ignore_https_errors,
        )
        self.page = context.new_page()
        self.page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._check_request)

    def _check_request(self, request: Any) -> None:
        if not request.url.startswith((self.base, self.base.replace("http", "ws", 1), "data:", "blob:")):
            self.complaints.append(f"request to {request.url}")

    def check_layout(self) -> list[str]:
        """What is wrong with the view that is shown: wider than the window, controls without a name, broken rules of
        axe-core where that is installed, complaints."""
        width = self.page.viewport_size["width"]
        found = [f"{width} px are too few: {item}" for item in self.page.evaluate(TOO_WIDE)]
        found += [f"no name: {item}" for item in self.page.evaluate(NAMELESS)]
        if AXE.is_file():
            self.page.evaluate(AXE.read_text())
            found += self.page.evaluate(BROKEN_RULES)
        return found + self.complaints

    def describe(self, selector: str = "main") -> str:
        """The accessibility tree of a part of the page, with every number as N."""
        text = self.page.locator(selector).first.aria_snapshot()
        text = re.sub(r"(live|late|connecting) · [^\n\"]* old", "AGE", text)
        text = re.sub(r"\d+([.,:]\d+)*", "N", text)
        return re.sub(r"(?m)^( *- /url: ).*$", r"\1ADDRESS", text) + "\n"

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


def compare_golden(name: str, text: str) -> None:
    """Compares a text with its golden copy; GROUNDSTREAM_GOLDENS=write makes the copy."""
    path = GOLDENS / name
    if os.environ.get("GROUNDSTREAM_GOLDENS") == "write":
        path.write_text(text)
    assert text == path.read_text(), f"{name}: a change that is meant is written with GROUNDSTREAM_GOLDENS=write"
