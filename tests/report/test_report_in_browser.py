"""The report in a real browser: it opens from disk without a network, shows its images, and works by keyboard."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from objtune_cli.store.store import Store
from tests.support.browser import axe_faults, needs_chromium, open_browser
from tests.support.quick_runs import write_settings
from tests.support.report_projects import add_bench, add_object, add_scene

pytestmark = needs_chromium
PHONE = {"viewport": {"width": 390, "height": 844}}
DESKTOP = {"viewport": {"width": 1280, "height": 900}}


@pytest.mark.commands
@pytest.mark.usefixtures("fast_sampling", "cached_segmentation")
def test_the_report_opens_from_disk(cli: Any, base: Path, dog_photo: Path) -> None:
    write_settings(base, max_steps=4)
    cli("train", dog_photo, "--class", "dog", "--sample-every", 2)
    for seed in (1, 2):
        cli("generate", "a photo of <dog> & 'friends' in the snow", "-n", 2, "--seed", seed)
    assert cli("report").code == 0
    requests: list[str] = []
    with open_browser(Path("report.html").resolve().as_uri(), **PHONE, color_scheme="dark") as view:
        view.on("request", lambda request: requests.append(request.url))
        view.reload()
        view.wait_for_selector(".scene img")
        assert view.locator(".scene").count() == 2 and view.locator(".scene img").count() == 4
        assert view.locator(".scene p").first.text_content() == "a photo of <dog> & 'friends' in the snow"
        for image in view.locator("main img").all():
            image.scroll_into_view_if_needed()
            image.evaluate("image => image.decode()")
        view.locator(".scene button.image").first.focus()
        view.keyboard.press("Enter")
        assert "Seed: 1" in view.locator("dialog .caption").text_content()
        view.keyboard.press("ArrowRight")
        assert "Seed: 2" in view.locator("dialog .caption").text_content()
        view.keyboard.press("Escape")
        assert not view.locator("dialog").is_visible()
        view.locator(".scene button.copy").first.click()
        view.get_by_text("Copied").wait_for()
    assert requests and [url for url in requests if not url.startswith(("file:", "data:"))] == []


@pytest.fixture(scope="module")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with two objects, 40 scenes of which one is composed, a benchmark and two jobs."""
    from objtune_cli.cli.app import run

    folder = tmp_path_factory.mktemp("page")
    (folder / "objtune.toml").write_text("")
    store = Store.at(folder)
    rex, cup = add_object(store, "rex"), add_object(store, "cup")
    for number in range(39):
        add_scene(store, f"<rex> in place {number}", [rex], 4)
    add_scene(store, "<rex> and <cup>", [cup, rex], 2, composed=True)
    lines = [
        {
            "name": "lost",
            "state": "failed",
            "code": 3,
            "message": "there is no file lost.jpg",
            "refs": [],
            "seconds": 0,
        },
        {"name": "rex", "state": "done", "code": 0, "message": "", "refs": ["adapter/rex@1"], "seconds": 40.5},
    ]
    (folder / "run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    bench = add_bench(folder / "bench")
    out = folder / "report.html"
    words = ["report", "--project", folder, "--out", out, "--bench", bench, "--jobs", folder / "run.jsonl", "--quiet"]
    assert run([str(word) for word in words]) == 0
    return out


@pytest.fixture
def view(request: pytest.FixtureRequest, report_file: Path) -> Iterator[Any]:
    with open_browser(report_file.as_uri(), **request.param) as view:
        view.wait_for_selector(".scene img")
        yield view


@pytest.mark.commands
@pytest.mark.parametrize("view", [DESKTOP], indirect=True)
def test_a_link_of_the_lineage_opens_the_page_of_its_scene(view: Any) -> None:
    assert view.locator(".place").text_content() == "page 1 of 2"
    graph = view.locator('[id="adapter/cup@1"] svg.wide')
    assert graph.locator("text:not(.faint)").all_text_contents() == [
        "photo", "mask cup@1", "token cup@1", "class prior cup@1", "adapter cup@1", "scene cup-rex@1",
    ]  # fmt: skip
    graph.locator("a[href='#scene/cup-rex@1']").click()
    scene = view.locator(".scene.target")
    assert scene.locator(".prompt").text_content() == "<rex> and <cup>" and scene.is_visible()
    view.get_by_label("Filter").fill("PLACE 38")
    assert view.locator(".scene .prompt").all_text_contents() == ["<rex> in place 38"]
    view.get_by_label("Filter").fill("nowhere")
    assert view.locator(".scene").count() == 0 and view.get_by_text("No prompt has these words.").is_visible()
    view.get_by_label("Filter").fill("")
    view.get_by_role("button", name="Next").first.click()
    assert view.locator(".place").text_content() == "page 2 of 2"


@pytest.mark.parametrize("view", [DESKTOP], indirect=True)
def test_a_layout_lies_over_its_images_and_can_be_hidden(view: Any) -> None:
    scene = view.locator('[id="scene/cup-rex@1"]')
    boxes = scene.locator("svg rect[stroke]")
    assert boxes.count() == 4 and scene.locator("svg text").all_text_contents()[:2] == ["rex", "cup"]
    image, box = scene.locator("img").first.bounding_box(), boxes.first.bounding_box()
    assert image and box
    assert box["x"] - image["x"] == pytest.approx(0.02 * image["width"], abs=3)
    assert box["height"] == pytest.approx(0.7 * image["height"], abs=4)
    assert scene.get_by_text("missing or mixed: <cup>").count() == 1
    scene.get_by_label("Layout").focus()
    view.keyboard.press("Space")
    assert not boxes.first.is_visible()


@pytest.mark.commands
@pytest.mark.parametrize("view", [DESKTOP], indirect=True)
def test_images_of_two_methods_share_a_frame_with_a_slider(view: Any) -> None:
    compare = view.locator(".compare")
    over, under = compare.locator(".over"), compare.locator(".under")
    assert (over.get_attribute("alt"), under.get_attribute("alt")) == ("cup-001, objtune", "cup-001, truth")
    assert over.bounding_box() == under.bounding_box()
    compare.get_by_label("Object").select_option("dog-000")
    compare.get_by_label("Right").select_option("dreambooth-lora")
    assert under.get_attribute("alt") == "dog-000, dreambooth-lora"
    slider = compare.get_by_role("slider")
    slider.focus()
    view.keyboard.press("Home")
    assert compare.locator(".slider").evaluate("element => element.style.getPropertyValue('--cut')") == "0%"


@pytest.mark.commands
@pytest.mark.parametrize("view", [PHONE, DESKTOP, PHONE | {"color_scheme": "dark"}], indirect=True)
def test_axe_finds_no_serious_fault_and_nothing_is_cut_off(view: Any) -> None:
    for details in view.locator("details").all():
        details.evaluate("element => { element.open = true; }")
    assert view.evaluate("document.documentElement.scrollWidth <= innerWidth")
    is_phone = view.viewport_size["width"] == PHONE["viewport"]["width"]
    assert view.locator("svg.tall").first.is_visible() == is_phone
    assert view.locator("svg.wide").first.is_visible() != is_phone
    assert axe_faults(view) == []
    brightness = np.asarray(Image.open(io.BytesIO(view.screenshot())).convert("L")).mean()
    is_dark = view.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert brightness < 100 if is_dark else brightness > 150
    view.locator(".scene button.image").first.click()
    assert axe_faults(view) == []


@pytest.mark.commands
@pytest.mark.parametrize("view", [DESKTOP | {"color_scheme": "dark"}], indirect=True)
def test_paper_is_white_and_has_all_but_what_needs_a_click(view: Any) -> None:
    view.emulate_media(media="print")
    assert view.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    view.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert view.locator("details table").first.is_visible()
    assert not view.locator(".pager, .sections, .compare").first.is_visible()
    assert view.locator(".scene img").first.is_visible()
