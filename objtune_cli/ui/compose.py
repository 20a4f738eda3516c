"""The screen Compose: boxes of objects on a canvas, and the check that each object is in its box."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from nicegui import ui

from objtune_cli.composition import layout
from objtune_cli.errors import ObjtuneError
from objtune_cli.store import refs
from objtune_cli.ui import canvas, command_lines, objects, parts
from objtune_cli.ui.canvas import Canvas, Pointer
from objtune_cli.ui.command_lines import clean_text
from objtune_cli.ui.draw import Gallery, PromptField, SamplingFields
from objtune_cli.ui.task_cards import TaskList
from objtune_cli.ui.workspace import Workspace
from objtune_cli.workflow.prompt_text import write_strengths

SIDE = 640
"""Longer side of the canvas, px of its own."""
GRIP = 36.0
"""Distance from a corner within which a drag changes the size, px."""
DIGITS = 2
"""Digits of a box that was dragged."""
START = ("left", "right", "center", "top", "bottom")
"""Places of the first objects."""
Box = list[float]
"""x0, y0, x1, y1 in fractions of the image."""


def register(get: Callable[[], Workspace]) -> None:
    """Add the screen to the application."""

    @ui.page("/compose")
    def compose_screen(scene: str = "") -> None:
        workspace = get()
        with parts.frame(workspace, "/compose"):
            screen = ComposeScreen(workspace)
            if scene:
                screen.use_again(scene)


@dataclass(slots=True)
class Drag:
    """A box that is being moved, or changed at its lower right corner."""

    index: int
    kind: Literal["move", "size"]
    x: float
    y: float


@dataclass(slots=True)
class Place:
    """An object's box."""

    name: str
    box: Box


class ComposeScreen:
    """One open screen."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.places: list[Place] = []
        self.drag: Drag | None = None
        self.names = objects.list_placeholders(workspace.ctx)
        parts.text("h1", "Compose")
        with ui.element("div").classes("split"):
            with ui.element("div").classes("stage"):
                self.canvas = Canvas(
                    (SIDE, SIDE), self.point, label="Layout: drag a box to move it, its corner to change it"
                )
                parts.text("p", "Drag a box to move it, and its lower right corner to change its size.", "faint")
            with ui.element("div").classes("panel"):
                self._build_form()
        self.tasks = TaskList(workspace, "compose")
        with ui.element("section").props('aria-label="Gallery"'):
            parts.text("h2", "Gallery")
            Gallery(workspace)
        for name in self.names[:2]:
            self.add(name)
        self._write_prompt()

    def _build_form(self) -> None:
        with ui.element("div").classes("row"):
            self.choice = (
                ui.select(self.names, value=next(iter(self.names), None), label="Object")
                .props("outlined dense")
                .classes("grow")
            )
            parts.button("Add", self._add_chosen).set_enabled(bool(self.names))
        self.rows = ui.element("div").classes("places")
        self.prompt = PromptField(self.names, "", self.update)
        self.retries = parts.number("New seeds if an object is missing", None, low=0, high=100, on_change=self.update)
        self.sampling = SamplingFields(self.update)
        self.button = parts.button("Compose", self.start, "main")
        self.command = parts.CommandLine()

    # Boxes

    def _add_chosen(self) -> None:
        if self.choice.value:
            self.add(self.choice.value)
            self._write_prompt()

    def add(self, name: str, box: Box | None = None) -> None:
        """Add an object's box."""
        self.places.append(Place(name, box or list(layout.PLACES[START[len(self.places) % len(START)]])))
        self._show_rows()
        self.update()

    def _show_rows(self) -> None:
        """A row for each box: its numbers, its order, and a button that removes it."""
        self.rows.clear()
        with self.rows:
            for i, place in enumerate(self.places):
                self._show_row(i, place)

    def _show_row(self, i: int, place: Place) -> None:
        def change(event: Any) -> None:
            box = layout.parse_box(clean_text(event.value or ""))
            if box:
                place.box = list(box)
                self.update()

        with ui.element("div").classes("row place"):
            parts.text("span", "", "swatch").style(f"background: {colour_of(i)}")
            field = ui.input(f"Place of {place.name}", value=write_box(place.box), on_change=change).props(
                "outlined dense"
            )
            field.classes("grow")
            for label, step in (("Earlier", -1), ("Later", 1)):
                icon = "arrow_upward" if step < 0 else "arrow_downward"
                button = parts.icon_button(icon, f"{label}: {place.name}", partial(self._move, i, step))
                button.set_enabled(0 <= i + step < len(self.places))
            parts.icon_button("close", f"Remove {place.name}", lambda: self._remove(i))

    def _move(self, i: int, step: int) -> None:
        self.places[i], self.places[i + step] = self.places[i + step], self.places[i]
        self._show_rows()
        self._write_prompt()

    def _remove(self, i: int) -> None:
        del self.places[i]
        self._show_rows()
        self._write_prompt()

    def _write_prompt(self) -> None:
        """A prompt that names the objects in their order, as long as the user has written none."""
        written = getattr(self, "written_prompt", "")
        if self.prompt.text in ("", written):
            named = " and ".join(f"<{place.name}>" for place in self.places)
            self.written_prompt = f"a photo of {named} on the beach" if named else ""
            self.prompt.set_value(self.written_prompt)
        self.update()

    def point(self, pointer: Pointer) -> None:
        """Move a box, or change its size."""
        width, height = self.canvas.size
        x, y = pointer.x / width, pointer.y / height
        if pointer.kind == "down":
            self.drag = find_drag([place.box for place in self.places], x, y)
        if self.drag is None:
            return
        place, drag = self.places[self.drag.index], self.drag
        place.box = drag_box(place.box, drag.kind, x - drag.x, y - drag.y)
        drag.x, drag.y = x, y
        if pointer.kind == "up":
            self.drag = None
            place.box = [round(value, DIGITS) for value in place.box]
            self._show_rows()
            self.update()
        else:
            self._draw()

    def _draw(self) -> None:
        shapes = []
        width, height = self.canvas.size
        for i, place in enumerate(self.places):
            x0, y0, x1, y1 = (value * side for value, side in zip(place.box, (width, height) * 2, strict=True))
            shapes.append(canvas.rectangle((x0, y0, x1, y1), colour_of(i), 3, fill=0.12))
            shapes.append(canvas.dot(x1, y1, colour_of(i), 9))
            shapes.append(
                f'<text x="{x0 + 10:.0f}" y="{y0 + 26:.0f}" font-size="18" fill="{colour_of(i)}">{place.name}</text>'
            )
        self.canvas.draw("".join(shapes))

    # The command

    def words(self) -> list[str]:
        """The command line of the fields."""
        options: dict[str, command_lines.Value] = {
            "--place": [command_lines.place(place.name, place.box) for place in self.places],
            "--retries": None if self.retries.value is None else int(self.retries.value),
        }
        words = command_lines.build("compose", [self.prompt.text], options | self.sampling.options())
        return [*words, *self.workspace.shared]

    def update(self) -> None:
        """Show boxes and command line."""
        if hasattr(self, "command"):
            size = canvas_size(self.sampling.ratio)
            if size != self.canvas.size:
                self.canvas.resize(size)
            self._draw()
            self.button.set_enabled(bool(self.places and self.prompt.text))
            self.command.show(self.words())

    def start(self) -> None:
        """Put the command into the queue."""
        self.workspace.queue.add(self.words())
        self.tasks.refresh()

    def use_again(self, text: str) -> None:
        """Take prompt, places and settings of a scene."""
        try:
            record = self.workspace.store.read_record(refs.parse(text))
        except ObjtuneError as error:
            return parts.explain(error)
        places = record.config.get("places", {})
        if places:
            self.places = [Place(name.partition("#")[0], list(places[name])) for name in places]
            self._show_rows()
        self.prompt.set_value(
            clean_text(write_strengths(record.config.get("prompt", ""), record.config.get("strengths", {})))
        )
        self.sampling.fill(record)
        self.update()
        return None


def canvas_size(ratio: float) -> tuple[int, int]:
    """Width and height of the canvas, px, for images of a width over height."""
    return (SIDE, round(SIDE / ratio)) if ratio >= 1 else (round(SIDE * ratio), SIDE)


def colour_of(index: int) -> str:
    """The colour of a box, as the picture of the layout has it."""
    return layout.COLOURS[index % len(layout.COLOURS)]


def write_box(box: Box) -> str:
    """A box as the command line takes it."""
    return command_lines.place("", box).removeprefix("=")


def find_drag(boxes: list[Box], x: float, y: float) -> Drag | None:
    """The box that a pointer takes hold of, the last of several: at its lower right corner, or inside it."""
    for i, (_, _, x1, y1) in reversed(list(enumerate(boxes))):
        if max(abs(x - x1), abs(y - y1)) * SIDE < GRIP / 2:
            return Drag(i, "size", x, y)
    for i, (x0, y0, x1, y1) in reversed(list(enumerate(boxes))):
        if x0 <= x <= x1 and y0 <= y <= y1:
            return Drag(i, "move", x, y)
    return None


def drag_box(box: Box, kind: str, dx: float, dy: float) -> Box:
    """A box after a move of the pointer; it stays inside the image and keeps its least size."""
    x0, y0, x1, y1 = box
    if kind == "size":
        least = layout.MIN_SIDE
        return [x0, y0, min(max(x1 + dx, x0 + least), 1.0), min(max(y1 + dy, y0 + least), 1.0)]
    dx, dy = min(max(dx, -x0), 1 - x1), min(max(dy, -y0), 1 - y1)
    return [x0 + dx, y0 + dy, x1 + dx, y1 + dy]
