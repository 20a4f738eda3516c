"""The screen Draw: prompts that name trained objects, and a gallery of what was drawn."""

import asyncio
import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import urlencode

from nicegui import ui

from objtune_cli.errors import ObjtuneError
from objtune_cli.report import contents
from objtune_cli.store import refs
from objtune_cli.store.artifacts import Record
from objtune_cli.store.refs import Ref
from objtune_cli.ui import command_lines, objects, parts
from objtune_cli.ui.command_lines import clean_text
from objtune_cli.ui.task_cards import TaskList, image_address
from objtune_cli.ui.workspace import Workspace
from objtune_cli.workflow.prompt_text import write_strengths

SCENES_PER_PAGE = 24
REFRESH_SECONDS = 3.0
SIZES = {"": "as the base", "1:1": "1:1", "3:2": "3:2", "2:3": "2:3", "16:9": "16:9", "9:16": "9:16"}
COMPLETE = """(event) => {
  const field = event.target, open = /<([a-z0-9._-]*)$/i.exec(field.value)
  const name = open && NAMES.find((each) => each.startsWith(open[1].toLowerCase()))
  if (!name) return
  event.preventDefault()
  field.value = `${field.value.slice(0, open.index)}<${name}> `
  field.dispatchEvent(new Event('input', {bubbles: true}))
}"""
"""Completes a name in the browser, so that letters which are typed meanwhile are not lost."""
_OPEN_NAME = re.compile(r"<([a-z0-9._-]*)$", re.I)


def register(get: Callable[[], Workspace]) -> None:
    """Add the screen to the application."""

    @ui.page("/draw")
    def draw_screen(object: str = "", scene: str = "") -> None:
        workspace = get()
        with parts.frame(workspace, "/draw"):
            screen = DrawScreen(workspace)
            if object:
                screen.prompt.set_value(f"a photo of <{clean_text(object)}> ")
            if scene:
                screen.use_again(scene)


class PromptField:
    """A prompt with buttons that complete the names of trained objects.

    Attributes:
        element: The field of text.
    """

    def __init__(self, names: list[str], value: str, on_change: Callable[[], Any]) -> None:
        self.names, self.on_change = names, on_change
        self.element = ui.textarea(
            "Prompt, for example: a photo of <rex> on the beach", value=value, on_change=self._change
        )
        self.element.props("outlined autogrow rows=2 spellcheck=false").classes("grow")
        self.element.on("keydown.tab", js_handler=COMPLETE.replace("NAMES", json.dumps(names)))
        self.offers = ui.element("div").classes("chips").props('role="group" aria-label="Objects for the prompt"')
        self._offer()

    @property
    def text(self) -> str:
        """The prompt on one line."""
        return clean_text(self.element.value or "")

    def set_value(self, text: str) -> None:
        """Replace the prompt."""
        self.element.set_value(text)

    def _matching(self) -> list[str]:
        match = _OPEN_NAME.search(self.element.value or "")
        return [name for name in self.names if name.startswith(match[1].lower())] if match else self.names

    def _offer(self) -> None:
        self.offers.clear()
        with self.offers:
            for name in self._matching()[:24]:
                parts.button(f"<{name}>", partial(self._insert, name)).props("dense rounded")
            if not self.names:
                parts.text("span", "No object is learned on this base yet.", "faint")

    def _insert(self, name: str) -> None:
        text = self.element.value or ""
        match = _OPEN_NAME.search(text)
        text = text[: match.start()] if match else text
        gap = "" if not text or text.endswith(" ") else " "
        self.element.set_value(f"{text}{gap}<{name}> ")
        self.element.run_method("focus")

    def _change(self) -> None:
        self._offer()
        self.on_change()


class SamplingFields:
    """Number, seed, strength, size and further settings of images."""

    def __init__(self, on_change: Callable[[], Any]) -> None:
        with ui.element("div").classes("fields"):
            self.count = parts.number("Images", 4, low=1, high=64, on_change=on_change)
            self.seed = parts.number("First seed", 0, low=0, high=2**63 - 1, on_change=on_change)
            self.strength = parts.number("Strength of the objects", None, low=0, high=2, step=0.05, on_change=on_change)
            self.aspect = ui.select(SIZES, value="", label="Size", on_change=on_change).props("outlined dense")
        with ui.expansion("More settings").classes("faint-box"), ui.element("div").classes("fields"):
            self.size = parts.field("Size in pixels, WxH", on_change=on_change)
            self.steps = parts.number("Sampling steps", None, low=1, high=1000, on_change=on_change)
            self.guidance = parts.number("Guidance scale", None, low=0, high=50, step=0.5, on_change=on_change)
            self.negative = parts.field("Negative prompt", on_change=on_change)

    def options(self) -> dict[str, command_lines.Value]:
        """The fields as options; those that are empty are left out."""
        size = clean_text(self.size.value or "")
        return {
            "-n": _whole(self.count.value),
            "--seed": _whole(self.seed.value),
            "--strength": self.strength.value,
            "--size": size,
            "--aspect": "" if size else self.aspect.value,
            "--steps": _whole(self.steps.value),
            "--guidance": self.guidance.value,
            "--negative": clean_text(self.negative.value or ""),
        }

    @property
    def ratio(self) -> float:
        """Width over height of the images; 1 where it is the base's own."""
        match = re.fullmatch(r"(\d+)[x:](\d+)", clean_text(self.size.value or "") or self.aspect.value or "")
        width, height = (int(match[1]), int(match[2])) if match else (1, 1)
        return min(max(width / height, 0.25), 4.0) if width and height else 1.0

    def fill(self, record: Record) -> None:
        """Take the settings of a scene."""
        config = record.config
        self.count.set_value(config.get("num_images", 1))
        self.seed.set_value(config.get("seed", 0))
        strength = config.get("strength", 1.0)
        self.strength.set_value(None if strength == 1 else strength)
        width, height = config.get("width", 0), config.get("height", 0)
        self.size.set_value(f"{width}x{height}" if width and height else "")
        self.steps.set_value(config.get("num_inference_steps") or None)
        self.guidance.set_value(max(0.0, config.get("guidance_scale", -1.0)) or None)
        self.negative.set_value(clean_text(config.get("negative_prompt", "")))


class DrawScreen:
    """One open screen."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        parts.text("h1", "Draw")
        with ui.element("section").classes("panel wide").props('aria-label="New images"'):
            names = objects.list_placeholders(workspace.ctx)
            self.prompt = PromptField(names, f"a photo of <{names[0]}> on the beach" if names else "", self.update)
            self.sampling = SamplingFields(self.update)
            self.button = parts.button("Draw", self.start, "main")
            self.command = parts.CommandLine()
        self.tasks = TaskList(workspace, "generate")
        with ui.element("section").props('aria-label="Gallery"'):
            parts.text("h2", "Gallery")
            Gallery(workspace)
        self.update()

    def words(self) -> list[str]:
        """The command line of the fields."""
        return command_lines.build("generate", [self.prompt.text], self.sampling.options()) + list(
            self.workspace.shared
        )

    def update(self) -> None:
        """Show the command line."""
        if hasattr(self, "command"):
            self.button.set_enabled(bool(self.prompt.text))
            self.command.show(self.words())

    def start(self) -> None:
        """Put the command into the queue."""
        self.workspace.queue.add(self.words())
        self.tasks.refresh()

    def use_again(self, text: str) -> None:
        """Take prompt and settings of a scene."""
        try:
            record = self.workspace.store.read_record(refs.parse(text))
        except ObjtuneError as error:
            return parts.explain(error)
        self.prompt.set_value(
            clean_text(write_strengths(record.config.get("prompt", ""), record.config.get("strengths", {})))
        )
        self.sampling.fill(record)
        self.update()
        return None


class Gallery:
    """The newest scenes; it follows the project while the page is open."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.limit = SCENES_PER_PAGE
        self.listed: list[Ref] = []
        self.place = ui.element("div").classes("gallery")
        self.more = parts.button("Show more", self._show_more)
        self.empty = parts.text("p", "Nothing is drawn yet.", "faint")
        self._show_all(objects.list_scenes(workspace.store, self.limit))
        ui.timer(REFRESH_SECONDS, self.refresh)

    async def _show_more(self) -> None:
        self.limit += SCENES_PER_PAGE
        await self.refresh()

    async def refresh(self) -> None:
        """Show the scenes again if there are others."""
        listed = await asyncio.to_thread(objects.list_scenes, self.workspace.store, self.limit)
        if listed != self.listed:
            self._show_all(listed)

    def _show_all(self, listed: list[Ref]) -> None:
        self.listed = listed
        self.empty.set_visibility(not listed)
        self.more.set_visibility(len(listed) == self.limit)
        self.place.clear()
        with self.place:
            for ref in listed:
                self._show(ref)

    def _show(self, ref: Ref) -> None:
        try:
            scene = contents.read_scene(self.workspace.store, ref)
        except ObjtuneError as error:
            parts.text("p", error.message, "note")
            return
        with ui.element("article").classes("scene"):
            with ui.element("div").classes("images"):
                for image in scene.images:
                    address = image_address(ref, image.key.rpartition("/")[2])
                    with parts.link("", address).props('target="_blank"'):
                        parts.picture(address, f"{scene.prompt}: {image.title}")
            parts.text("p", clean_text(scene.prompt), "prompt")
            parts.text("p", describe_scene(scene.record), "faint")
            with ui.element("div").classes("row"):
                if "places" in scene.record.config:
                    parts.link("Use again", f"/compose?{urlencode({'scene': str(ref)})}", "button")
                elif not scene.boxes:  # an object in a photo has them, and needs that photo
                    parts.link("Use again", f"/draw?{urlencode({'scene': str(ref)})}", "button")
                parts.text("code", ref, "faint")


def describe_scene(record: Record) -> str:
    """Seed, number and further settings of a scene in words."""
    config = record.config
    texts = [f"seed {config.get('seed', 0)}", f"{config.get('num_images', 1)} images"]
    for key, label in (("num_inference_steps", "steps"), ("guidance_scale", "guidance"), ("scheduler", "")):
        if config.get(key) not in (None, "", "auto", 0, -1.0):
            texts.append(f"{label} {config[key]}".strip())
    if config.get("negative_prompt") not in (None, "", "auto"):
        texts.append(f"without: {clean_text(config['negative_prompt'])}")
    return ", ".join(texts)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
