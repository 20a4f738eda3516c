"""A report of 10,000 images: how long it takes, how large it is, and how soon a browser shows it. `make slow` prints the figures."""

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from objtune_cli.store.store import Store
from tests.support.browser import needs_chromium, open_browser
from tests.support.report_projects import add_object, add_scene

SIDE, SCENES, PER_SCENE, OBJECTS = 512, 2500, 4, 20
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
MAX_CORE_SECONDS, MAX_MEGABYTES, MAX_FIRST_VIEW = 300, 80, 3


def draw_photo(seed: int) -> bytes:
    """A PNG that is as hard to compress as a photo: soft colours and grain."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    grainy = np.asarray(coarse) + random.normal(0, 6, (SIDE, SIDE, 1))
    out = io.BytesIO()
    Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(out, "PNG", compress_level=1)
    return out.getvalue()


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_chromium
def test_a_report_of_10_000_images_is_shown_at_once(cli: Any, tmp_path: Path) -> None:
    store = Store.at(Path.cwd())
    photos = [tmp_path / f"{seed}.png" for seed in range(32)]
    for seed, file in enumerate(photos):
        file.write_bytes(draw_photo(seed))
    objects = [add_object(store, f"dog{number}") for number in range(OBJECTS)]
    for number in range(SCENES):
        ref = add_scene(store, f"<dog> in place {number}", [objects[number % OBJECTS]], 0)
        for i in range(PER_SCENE):
            file = Path(ref.images_key) / f"{i + 1:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.hardlink_to(photos[(number * PER_SCENE + i) % len(photos)])
    started, busy_before = time.monotonic(), time.process_time()
    assert cli("report").code == 0
    written, busy = time.monotonic() - started, time.process_time() - busy_before
    megabytes = Path("report.html").stat().st_size / 1e6
    with open_browser(Path("report.html").resolve().as_uri(), wait_until="commit", **DESKTOP) as view:
        navigation = view.evaluate("performance.timeOrigin") / 1000
        view.wait_for_selector(".object img")
        first = time.time() - navigation
        view.wait_for_selector(".scene img")
        gallery = time.time() - navigation
        view.wait_for_load_state("load")
        loaded = time.time() - navigation
        started = time.monotonic()
        view.get_by_role("button", name="Next").first.click()
        view.get_by_text("page 2 of").wait_for()
        turned = time.monotonic() - started
        started = time.monotonic()
        view.get_by_label("Filter").fill(f"place {SCENES - 1}")
        view.get_by_text(f"in place {SCENES - 1}", exact=False).first.wait_for()
        filtered = time.monotonic() - started
        assert view.locator(".scene").count() == 1
    print(
        f"\n{SCENES * PER_SCENE} images of {SIDE} px: written in {written:.0f} s ({busy:.0f} s of a core), {megabytes:.0f} MB; in Chromium first view"
        f" {first:.2f} s, gallery {gallery:.2f} s, loaded {loaded:.2f} s, next page {turned:.2f} s, filter {filtered:.2f} s"
    )
    assert busy < MAX_CORE_SECONDS and megabytes < MAX_MEGABYTES
    assert max(first, gallery, turned, filtered) < MAX_FIRST_VIEW
