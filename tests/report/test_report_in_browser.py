"""The report in a real browser: it opens from disk without a network, shows its images, and works by keyboard."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.quick_runs import write_settings

pytestmark = [
    pytest.mark.commands,
    pytest.mark.usefixtures("fast_sampling", "cached_segmentation"),
    pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium on this machine"),
]


def test_the_report_opens_from_disk(cli: Any, base: Path, dog_photo: Path) -> None:
    from playwright.sync_api import sync_playwright

    write_settings(base, max_steps=4)
    cli("train", dog_photo, "--class", "dog", "--sample-every", 2)
    for seed in (1, 2):
        cli("generate", "a photo of <dog> & 'friends' in the snow", "-n", 2, "--seed", seed)
    assert cli("report").code == 0
    messages: list[str] = []
    requests: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
        view.on("console", lambda message: messages.append(message.text))
        view.on("pageerror", lambda error: messages.append(str(error)))
        view.on("request", lambda request: requests.append(request.url))
        view.goto(Path("report.html").resolve().as_uri())
        view.wait_for_selector(".scene img")
        assert view.locator(".scene").count() == 2 and view.locator(".scene img").count() == 4
        assert view.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert view.locator(".scene p").first.text_content() == "a photo of <dog> & 'friends' in the snow"
        for image in view.locator("main img").all():
            image.scroll_into_view_if_needed()
            image.evaluate("image => image.decode()")
        view.locator(".scene button.image").first.focus()
        view.keyboard.press("Enter")
        assert "Seed: 1" in view.locator("dialog .caption").text_content()
        view.keyboard.press("Escape")
        assert not view.locator("dialog").is_visible()
        view.locator(".scene button.copy").first.click()
        view.get_by_text("Copied").wait_for()
        browser.close()
    assert messages == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
