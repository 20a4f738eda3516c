"""Chromium for tests of reports and of pages, and the page of `objtune ui` as a server in a thread of this process."""

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from objtune_cli import api

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@contextlib.contextmanager
def serve_page(project: Path, tasks: Path, **settings: Any) -> Iterator[tuple[str, Any]]:
    """Serve the page of a project: its address with the token, and its workspace."""
    from objtune_cli.ui import server
    from objtune_cli.ui.tasks import TaskQueue
    from objtune_cli.ui.workspace import Workspace

    workspace = Workspace(api.project(project, **settings), project, TaskQueue(tasks))
    opened = server.open_server(workspace, "127.0.0.1", None)
    thread = threading.Thread(target=opened.run, daemon=True)
    thread.start()
    try:
        yield opened.address, workspace
    finally:
        opened.stop()
        workspace.queue.close()
        thread.join(20)
        assert not thread.is_alive()


@contextlib.contextmanager
def open_browser(address: str, *, wait_until: str = "load", **options: Any) -> Iterator[Any]:
    """A page of headless Chromium at an address; errors in the page fail the test at the end.

    Args:
        wait_until: The event that ends the wait for the page, as Playwright names it.
    """
    from playwright.sync_api import sync_playwright

    messages: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        view = browser.new_page(**options)
        view.set_default_timeout(60_000)
        view.on(
            "console",
            lambda each: messages.append(f"{each.text} {each.location}") if each.type in ("error", "warning") else None,
        )
        view.on("pageerror", lambda error: messages.append(str(error)))
        view.goto(address, wait_until=wait_until)
        yield view
        browser.close()
    assert messages == [], messages


def axe_faults(view: Any) -> list[str]:
    """Serious and critical faults that axe-core finds."""
    from axe_playwright_python.sync_playwright import Axe

    faults = Axe().run(view).response["violations"]
    return [f"{each['id']}: {each['nodes'][0]['html']}" for each in faults if each["impact"] in ("serious", "critical")]
