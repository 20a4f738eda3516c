"""The whole page in a real browser, for `make slow`: with the mouse, with the keyboard alone, and by two pages and a shell at once."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from objtune_cli.store.checkpoints import list_checkpoints
from objtune_cli.store.store import Store
from tests.support import browser, screenshots
from tests.ui.test_page_in_browser import SCREENS, SHORT_RUN, go, point_in, wait_done

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), browser.needs_chromium]

DESKTOP = {"viewport": {"width": 1280, "height": 900}}
SECONDS = 600_000
"""How long a command may take, ms."""


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """The folder of screenshots, which pytest keeps."""
    folder = tmp_path / "screenshots"
    folder.mkdir()
    print("screenshots:", folder)
    return folder


@pytest.fixture
def page(project: Path, base: Path, tmp_path: Path) -> Iterator[tuple[str, Any]]:
    """The page of an empty project on the tiny base."""
    Path("objtune.toml").write_text(SHORT_RUN.format(base=base))
    with browser.serve_page(project, tmp_path / "tasks") as served:
        yield served


def look(view: Any, path: Path, *places: str) -> None:
    """Check a screen: no serious fault of axe-core, nothing cut off, no blank place, and one structure on dark and light paper."""
    view.wait_for_timeout(700)  # dialogs fade in
    assert browser.axe_faults(view) == [], path.stem
    assert view.evaluate("document.documentElement.scrollWidth <= innerWidth"), path.stem
    view.evaluate("scrollTo(0, 0)")
    light = screenshots.take(view, path)
    assert light.shape == (view.viewport_size["height"], view.viewport_size["width"])
    for place in places:
        part = screenshots.crop(light, view.locator(place).first.bounding_box())
        assert part.size and part.std() > 0.05, (path.stem, place)
    view.emulate_media(color_scheme="dark")
    view.wait_for_timeout(300)
    dark = screenshots.take(view, path.with_stem(f"{path.stem}-dark"))
    view.emulate_media(color_scheme="light")
    assert dark.mean() + 0.1 < light.mean(), path.stem
    assert screenshots.overlap(light, dark) > 0.6, path.stem


def objtune(*words: str) -> subprocess.CompletedProcess[str]:
    """A command in a shell beside the page."""
    command = [sys.executable, "-P", "-m", "objtune_cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def find_objects(view: Any, photos: list[Path], shots: Path) -> None:
    """Drop a dog and a mug at once, and mark both with clicks, a box and the brush."""
    look(view, shots / "01-empty.png")
    view.locator("input[type=file]").set_input_files(photos)
    view.locator(".strip .thumb").nth(len(photos) - 1).wait_for()
    for photo, word, name in zip(photos, ("dog", "mug"), ("rex", ""), strict=True):
        view.get_by_role("button", name=f"Open {photo.name}").first.click()
        view.locator(f".picture-place [aria-label^='Photo {photo.name}']").wait_for()
        picture = view.locator(".picture-place img")
        picture.evaluate("image => image.decode()")
        view.get_by_label("Class, for example dog").fill(word)
        view.get_by_label("Name (optional)").fill(name)
        view.get_by_text("Object", exact=True).click()
        view.mouse.click(*point_in(picture, 0.45, 0.62))
        view.mouse.click(*point_in(picture, 0.05, 0.05), button="right")
        view.get_by_text("Box", exact=True).click()
        drag(view, point_in(picture, 0.15, 0.3), point_in(picture, 0.95, 0.95))
        view.get_by_text("Brush +").click()
        drag(view, point_in(picture, 0.4, 0.6), point_in(picture, 0.6, 0.6))
        view.get_by_role("button", name="Undo").click()
        drag(view, point_in(picture, 0.4, 0.6), point_in(picture, 0.6, 0.65))
        view.locator(".verdict.good", has_text="Usable").wait_for()
    view.locator(".thumb.usable").nth(1).wait_for()
    look(view, shots / "02-found.png", ".picture-place img", ".thumb.usable img")
    view.get_by_role("button", name="Learn from 2 photos").click()
    view.wait_for_url("**/learn?*")


def drag(view: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag from one point of the screen to another."""
    view.mouse.move(*start)
    view.mouse.down()
    view.mouse.move(*end, steps=4)
    view.mouse.up()


LEARN = (
    "objtune train photos/photo.jpg --class dog --name rex --mask photos/photo-rex.mask.png"
    " photos/mug.jpg --class mug --mask photos/mug-mug.mask.png"
)


def test_from_several_photos_to_exports_over_two_servers(
    project: Path, base: Path, dog_photo: Path, tmp_path: Path, shots: Path
) -> None:
    """The browser closes during training and opens again; the server ends during training, and another one goes on."""
    photos = [dog_photo, dog_photo.with_name("mug.jpg")]
    Path("objtune.toml").write_text(SHORT_RUN.format(base=base).replace("max_steps = 8", "max_steps = 40"))
    with browser.serve_page(project, tmp_path / "first") as (address, workspace):
        with browser.open_browser(address, **DESKTOP) as view:
            find_objects(view, photos, shots)
            command = view.locator(".command code").first.text_content()
            assert sorted(command.split()) == sorted(LEARN.split())  # photos stand in the order of their arrival
            view.get_by_label("Samples every").fill("8")
            look(view, shots / "03-learn.png")
            view.get_by_role("button", name="Start").click()
            view.locator(".card .state.running").wait_for()
        with browser.open_browser(address, **DESKTOP) as view:
            go(view, "Learn")
            view.locator(".samples img").nth(1).wait_for(timeout=SECONDS)
            view.get_by_text("mug", exact=True).wait_for()
            look(view, shots / "04-learning.png", ".card")
        workspace.queue.stop(workspace.queue.tasks[0])
    assert [sorted(run.runs) for run in list_checkpoints(Store.at(project))] == [["mug", "rex"]]
    with browser.serve_page(project, tmp_path / "second") as (address, _), browser.open_browser(address, **DESKTOP) as view:  # fmt: skip
        go(view, "Learn")
        view.get_by_text("rex: stopped at step").wait_for()
        look(view, shots / "05-stopped.png")
        view.get_by_role("button", name="Go on").click()
        view.locator(".card .state.done").wait_for(timeout=SECONDS)
        assert view.get_by_role("button", name="Go on").count() == 0
        assert view.get_by_text("adapter/rex@1").count() == view.get_by_text("adapter/mug@1").count() == 1
        look(view, shots / "06-learned.png", ".samples img")
        draw_and_compose(view, shots)
        tidy(view, shots, project)
    assert objtune("verify").returncode == 0
    assert [str(ref) for ref in Store.at(project).list() if ref.kind == "adapter"] == ["adapter/max@1"]


def draw_and_compose(view: Any, shots: Path) -> None:
    """Draw, use a scene again, and compose with dragged boxes."""
    go(view, "Draw")
    view.get_by_label("Prompt, for example").fill("a photo of <re")
    view.get_by_label("Prompt, for example").press("Tab")
    view.get_by_label("Images", exact=True).fill("2")
    view.get_by_label("Size", exact=True).click()
    view.get_by_role("option", name="3:2").click()
    view.get_by_role("button", name="Draw", exact=True).click()
    wait_done(view, "objtune generate")
    view.locator(".gallery .scene img").nth(1).wait_for()
    look(view, shots / "07-drawn.png")
    view.get_by_role("link", name="Use again").click()
    view.wait_for_url("**/draw?scene=*")
    assert view.get_by_label("Images", exact=True).input_value() == "2"
    go(view, "Compose")
    canvas = view.locator(".canvas img")
    drag(view, point_in(canvas, 0.7, 0.5), point_in(canvas, 0.6, 0.3))
    drag(view, point_in(canvas, 0.5, 0.95), point_in(canvas, 0.45, 0.8))
    view.get_by_label("Images", exact=True).fill("1")
    look(view, shots / "08-compose.png")
    view.get_by_role("button", name="Compose", exact=True).click()
    wait_done(view, "objtune compose")
    view.locator(".gallery .scene").nth(1).wait_for()
    look(view, shots / "09-composed.png")


def tidy(view: Any, shots: Path, project: Path) -> None:
    """Report, export, rename and remove."""
    go(view, "Library")
    rex = view.locator("article.object", has=view.get_by_role("heading", name="rex"))
    rex.get_by_text("Versions and lineage").click()
    rex.locator(".graph").wait_for()
    look(view, shots / "10-library.png", ".sheet")
    view.get_by_role("button", name="Write a report").click()
    with view.context.expect_page(timeout=SECONDS) as opened:
        view.get_by_role("link", name="Open report.html").click(timeout=SECONDS)
    opened.value.locator(".scene img").first.wait_for()
    assert browser.axe_faults(opened.value) == []
    opened.value.close()
    for form, file in (("diffusers", "pytorch_lora_weights.safetensors"), ("kohya", "rex.safetensors")):
        rex.get_by_role("button", name="Export").click()
        dialog = view.get_by_role("dialog")
        dialog.get_by_label("Format").click()
        view.get_by_role("option", name=form).click()
        view.get_by_role("listbox").wait_for(state="hidden")
        assert browser.axe_faults(view) == []
        dialog.get_by_role("button", name="Export").click()
        with view.expect_download() as download:
            dialog.get_by_role("link", name=file, exact=True).click()
        assert download.value.path().stat().st_size > 1000
        dialog.get_by_role("button", name="Close").click()
        dialog.wait_for(state="hidden")
    rex.get_by_role("button", name="Rename").click()
    view.get_by_label("New name").fill("max")
    view.get_by_role("dialog").get_by_role("button", name="Rename").click()
    view.get_by_role("heading", name="max").wait_for()
    mug = view.locator("article.object", has=view.get_by_role("heading", name="mug"))
    mug.get_by_role("button", name="Remove").click()
    look(view, shots / "11-remove.png")
    view.get_by_label("Also if images were drawn with it").click()
    view.get_by_role("dialog").get_by_role("button", name="Remove").click()
    view.get_by_role("heading", name="mug").wait_for(state="hidden")
    look(view, shots / "12-tidy.png")


NAME = """() => {
  const element = document.activeElement, copy = element.cloneNode(true)
  copy.querySelectorAll('[aria-hidden=true]').forEach(each => each.remove())
  return (element.ariaLabel || element.labels?.[0]?.innerText || copy.textContent || '').trim()
}"""
"""The name of the element with the focus, as a screen reader says it."""


def tab_to(view: Any, label: str, *, presses: int = 80) -> None:
    """Press Tab until an element with this text or label has the focus."""
    for _ in range(presses):
        view.keyboard.press("Tab")
        if view.evaluate(NAME).startswith(label):
            assert view.evaluate("document.activeElement.matches(':focus-visible')"), label
            return
    raise AssertionError(f"Tab does not reach {label}")


def write(view: Any, label: str, text: str) -> None:
    """Replace the text of a field, with the keyboard."""
    tab_to(view, label)
    view.keyboard.press("Control+A")
    view.keyboard.type(text)


def visit(view: Any, screen: str) -> None:
    """Open a screen with the keyboard."""
    view.evaluate("document.activeElement.blur()")
    tab_to(view, screen)
    view.keyboard.press("Enter")
    view.wait_for_url(f"**/{screen.lower()}*")
    view.get_by_role("heading", level=1).wait_for()
    view.wait_for_timeout(500)


def press(view: Any, label: str) -> None:
    """Reach a button or link with the keyboard, and press it."""
    tab_to(view, label)
    view.keyboard.press("Enter")


def test_the_keyboard_alone_is_enough(page: tuple[str, Any], dog_photo: Path) -> None:
    """From a photo to a composed image, an export and a removed object: no pointer anywhere."""
    address, workspace = page
    workspace.opened["photo.jpg"] = dog_photo
    with browser.open_browser(address, **DESKTOP) as view:
        view.locator(".picture-place img").evaluate("image => image.decode()")
        write(view, "Point x,y", "150,200,620,560")
        view.keyboard.press("Enter")
        view.locator(".verdict.good").wait_for()
        write(view, "Class", "dog")
        press(view, "Learn this object")
        view.wait_for_url("**/learn?*")
        press(view, "Start")
        view.locator(".state.done").wait_for(timeout=SECONDS)
        visit(view, "Draw")
        write(view, "Prompt", "a photo of <do")
        view.keyboard.press("Tab")
        write(view, "Images", "1")
        press(view, "Draw")
        view.locator(".state.done").wait_for(timeout=SECONDS)
        visit(view, "Compose")
        write(view, "Place of dog", "0.1,0.2,0.6,0.9")
        write(view, "Images", "1")
        press(view, "Compose")
        view.locator(".state.done").wait_for(timeout=SECONDS)
        visit(view, "Library")
        press(view, "Export")
        view.get_by_role("dialog").wait_for()
        press(view, "Export")
        view.get_by_role("link", name="pytorch_lora_weights").wait_for()
        view.keyboard.press("Escape")
        view.get_by_role("dialog").wait_for(state="hidden")
        press(view, "Remove")
        view.get_by_role("dialog").wait_for()
        tab_to(view, "Also if images")
        view.keyboard.press("Space")
        press(view, "Remove")
        view.get_by_text("No object is learned yet").wait_for()
    assert [ref.kind for ref in Store.at(workspace.folder).list() if ref.kind in ("adapter", "scene")] == ["scene"] * 2


def test_two_pages_and_a_shell_do_each_other_no_harm(
    project: Path, base: Path, trained_artifacts: Path, tmp_path: Path
) -> None:
    """Two servers draw and compose while a shell draws, renames and reports; nothing is lost or doubled."""
    import shutil

    shutil.copytree(trained_artifacts, project / "artifacts", symlinks=False)
    Path("objtune.toml").write_text(SHORT_RUN.format(base=base))
    with browser.serve_page(project, tmp_path / "tasks") as (address, workspace), browser.open_browser(address, **DESKTOP) as view:  # fmt: skip
        other = view.context.browser.new_page(**DESKTOP)
        other.set_default_timeout(SECONDS)
        other.goto(address)
        go(other, "Compose")
        go(view, "Draw")
        for each, count in ((view, 2), (other, 1)):
            each.get_by_label("Images", exact=True).fill(str(count))
        results: list[subprocess.CompletedProcess[str]] = []
        words = ("generate", "a photo of <cup> on the beach", "-n", "2", "--seed", "0")
        shell = threading.Thread(target=lambda: results.append(objtune(*words)))
        shell.start()
        view.get_by_role("button", name="Draw", exact=True).click()
        other.get_by_role("button", name="Compose", exact=True).click()
        wait_done(view, "objtune generate")
        wait_done(other, "objtune compose")
        shell.join()
        assert results[0].returncode == 0, results[0].stderr
        assert {task.state for task in workspace.queue.tasks} == {"done"}
        go(view, "Library")
        assert objtune("mv", "cup", "mug").returncode == 0
        card = view.locator("article.object", has=view.get_by_role("heading", name="cup"))
        card.get_by_role("button", name="Rename").click()  # what the shell has renamed
        view.get_by_label("New name").fill("bowl")
        view.get_by_role("dialog").get_by_role("button", name="Rename").click()
        view.get_by_text("no object is called cup", exact=False).first.wait_for()
        view.reload()
        view.get_by_role("heading", name="mug").wait_for()
        for screen in SCREENS:
            go(other, screen)
    scenes = [str(ref) for ref in Store.at(project).list() if ref.kind == "scene"]
    assert len(scenes) == 2, scenes  # the page's drawing and the shell's are equal work
    assert objtune("verify").returncode == 0
