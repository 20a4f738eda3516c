"""Chromium for tests: pages that open from disk, with all that went wrong in them."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium on this machine")
SERIOUS = ("serious", "critical")
"""Impacts of faults that axe-core reports."""


@dataclass
class OpenPage:
    """A page with the messages of its console, its errors, and the addresses that it asked for."""

    view: Any
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def open(self, file: Path, fragment: str = "") -> None:
        """Open a file from disk, and wait until the browser shows its beginning."""
        self.view.goto(file.resolve().as_uri() + fragment, wait_until="commit")

    def find_faults(self) -> list[str]:
        """The serious faults of accessibility that axe-core finds, with their elements."""
        from axe_playwright_python.sync_playwright import Axe

        return [
            f"{fault['id']}: {node['html'][:200]}"
            for fault in Axe().run(self.view).response["violations"]
            if fault["impact"] in SERIOUS
            for node in fault["nodes"]
        ]


@contextlib.contextmanager
def open_browser(**options: Any) -> Iterator[OpenPage]:
    """A page of a new browser; `options` are those of Playwright's `new_page`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = OpenPage(browser.new_page(**options))
        page.view.on("console", lambda message: page.messages.append(message.text))
        page.view.on("pageerror", lambda error: page.messages.append(str(error)))
        page.view.on("request", lambda request: page.requests.append(request.url))
        try:
            yield page
        finally:
            browser.close()
