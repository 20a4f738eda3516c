"""The screen Find: a photo, a class word, clicks and a brush, and the mask that follows."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from nicegui import events, ui

from objtune_cli.errors import ObjtuneError
from objtune_cli.ui import command_lines, hint_shapes, hints, parts
from objtune_cli.ui.canvas import Canvas, Pointer
from objtune_cli.ui.hints import BoxHint, PhotoHints, PointHint, Stroke
from objtune_cli.ui.learned_masks import name_object, save_masks
from objtune_cli.ui.photo_drop import photo_drop
from objtune_cli.ui.photo_strip import PhotoStrip, address_of, show_known_photos
from objtune_cli.ui.workspace import Workspace

if TYPE_CHECKING:
    from objtune_cli.segmentation.interactive import InteractivePhoto

TOOLS = {"object": "Object", "other": "Not it", "box": "Box", "add": "Brush +", "erase": "Brush −"}
"""Tools of the picture, and their labels."""
MIN_BOX = 4.0
"""Least side of a box, px; a shorter drag is a click."""
PAUSE_SECONDS = 0.4
"""How long after the last hint the finished outline is computed."""


def register(get: Callable[[], Workspace]) -> None:
    """Add the screen to the application."""

    @ui.page("/")
    def find_screen(photo: str = "") -> None:
        workspace = get()
        with parts.frame(workspace, "/"):
            FindScreen(workspace, photo or next(iter(workspace.opened), ""))


class FindScreen:
    """One open screen; its state is the page's and ends with it."""

    def __init__(self, workspace: Workspace, first: str) -> None:
        self.workspace = workspace
        self.photos: dict[str, PhotoHints] = {}
        self.arrived: set[str] = set()
        self.current: PhotoHints | None = None
        self.canvas: Canvas | None = None
        self.drag: list[tuple[float, float]] = []
        self.change = 0
        self.mask_shape = ""
        parts.text("h1", "Find the object")
        with ui.element("div").classes("split"):
            with ui.element("div").classes("stage"):
                with ui.element("div").classes("tools").props('role="toolbar" aria-label="Tools"'):
                    self.tool = ui.toggle(TOOLS, value="object").props("no-caps unelevated")
                    parts.button("Undo", self.undo, "bare").props("dense")
                    parts.button("Clear", self.clear, "bare").props("dense")
                with ui.element("div").classes("picture-place") as self.place:
                    parts.text("p", "Drop a photo to begin, or choose one.", "empty")
                self._build_further_tools()
            with ui.element("div").classes("panel"):
                self._build_form()
        self.update()
        if first:
            ui.timer(0.05, lambda: self.open(first), once=True)

    def _build_further_tools(self) -> None:
        parts.text("p", "Click the object. Shift-click or right-click what is not part of it.", "faint")
        with ui.element("div").classes("tools"):
            self.width = ui.slider(min=2, max=80, value=24).classes("brush")
            self.width.props('label aria-label="Width of the brush, px"')
            parts.text("span", "brush", "faint")
            self.typed = parts.field("Point x,y or box x0,y0,x1,y1 (px)").classes("typed")
            self.typed.on("keydown.enter", self.add_typed)
            parts.button("Add", self.add_typed, "bare").props("dense")

    def _build_form(self) -> None:
        self.upload = photo_drop(self.receive)
        self.strip = PhotoStrip(self.photos, self.open)
        show_known_photos(self.workspace.list_photos(), self.open)
        self.word = parts.field("Class, for example dog", on_change=self.type_object)
        self.name = parts.field("Name (optional)", on_change=self.type_object)
        self.search_button = parts.button("Find it by its class", self.find_by_class)
        self.verdict = parts.text("p", "", "verdict").props('role="status" aria-live="polite"')
        self.learn_button = parts.button("Learn this object", self.learn, "main")
        self.command = parts.CommandLine()

    async def receive(self, event: events.UploadEventArguments) -> None:
        """Keep an uploaded photo, and open it unless another one of the same drop is waiting for its first hint."""
        data = await event.file.read()
        try:
            name = await asyncio.to_thread(self.workspace.add_photo, event.file.name, data)
        except ObjtuneError as error:
            return parts.explain(error)
        if self.current is not None and self.current.photo in self.arrived and not self.current.actions:
            await self._add(name)
            self.strip.show(self.current.photo)
        else:
            await self.open(name)
        self.arrived.add(name)
        return None

    async def _add(self, name: str) -> "InteractivePhoto":
        """Add a photo to those of the screen, with the class and name that are typed now.

        Raises:
            InputError: There is no such photo.
        """
        shown = await asyncio.to_thread(self.workspace.open_photo, name)
        if name not in self.photos:
            self.photos[name] = hints.open_hints(shown, name)
            self.photos[name].class_word, self.photos[name].name = self.word.value or "", self.name.value or ""
        return shown

    async def open(self, name: str) -> None:
        """Show a photo."""
        try:
            shown = await self._add(name)
        except ObjtuneError as error:
            return parts.explain(error)
        self.current = self.photos[name]
        for field, text in ((self.word, self.current.class_word), (self.name, self.current.name)):
            field.set_value(text)
        self._show_picture(name, self.current.size)
        self.redraw()
        self.update()
        await asyncio.to_thread(shown.prepare)
        return None

    def _show_picture(self, name: str, size: tuple[int, int]) -> None:
        """Show a photo on the canvas, which is made once: a picture that goes while it loads is an error in the browser."""
        label = f"Photo {command_lines.clean_text(name)}: click the object"
        if self.canvas is None:
            self.place.clear()
            with self.place:
                self.canvas = Canvas(size, self.point, source=address_of(name), label=label)
        else:
            self.canvas.show(address_of(name), size, label)

    # Hints

    async def point(self, pointer: Pointer) -> None:
        """Follow the pointer: a click is a point, a drag a box or a stroke."""
        tool = self.tool.value
        if pointer.kind == "down":
            self.drag = [(pointer.x, pointer.y)]
        elif self.drag:
            self.drag.append((pointer.x, pointer.y))
        if pointer.kind != "up":
            return self.redraw()
        drag, self.drag = self.drag, []
        if not drag:
            return None
        (x0, y0), (x1, y1) = drag[0], drag[-1]
        if tool in ("add", "erase"):
            adds = (tool == "add") != pointer.is_second
            await self.add(Stroke(tuple(drag), float(self.width.value), adds))
        elif tool == "box" and min(abs(x1 - x0), abs(y1 - y0)) >= MIN_BOX:
            await self.add(BoxHint(hint_shapes.box_of(drag)))
        else:
            await self.add(PointHint((x0, y0), (tool != "other") != pointer.is_second))
        return None

    async def add_typed(self) -> None:
        """Add the point or box that is typed."""
        try:
            values = [float(part) for part in self.typed.value.replace(";", ",").split(",")]
        except ValueError:
            values = []
        if self.current is None or len(values) not in (2, 4):
            return parts.explain("a point is x,y and a box is x0,y0,x1,y1, in pixels of the photo")
        scaled = [value * self.current.scale for value in values]
        self.typed.set_value("")
        if len(scaled) == 4:
            await self.add(BoxHint((scaled[0], scaled[1], scaled[2], scaled[3])))
        else:
            await self.add(PointHint((scaled[0], scaled[1]), self.tool.value != "other"))
        return None

    async def add(self, action: PointHint | BoxHint | Stroke) -> None:
        """Add a hint and follow it."""
        if self.current is not None:
            self.current.actions.append(action)
            await self.follow(sketch=not isinstance(action, Stroke))

    async def undo(self) -> None:
        """Take the last hint back."""
        if self.current and self.current.actions:
            await self.follow(sketch=not isinstance(self.current.actions.pop(), Stroke))

    async def clear(self) -> None:
        """Take all hints back."""
        if self.current:
            self.current.actions.clear()
            self.current.found, self.current.is_finished = None, False
            await self.follow(sketch=False)

    async def follow(self, *, sketch: bool) -> None:
        """Show the mask of the hints: a sketch at once, the finished outline after a pause."""
        current = self.current
        assert current is not None
        self.change += 1
        change, current.verdict = self.change, None
        if sketch:
            current.found = await self._call("sketch") if current.can_sketch else None
            current.is_finished = False
        self.redraw()
        self.update()
        if current.can_sketch and not current.is_finished:
            ui.timer(PAUSE_SECONDS, lambda: self._finish(current, change), once=True)
        else:
            await self._judge_mended(current)

    async def _judge_mended(self, current: PhotoHints) -> None:
        """The verdict on a mask with strokes."""
        mask = current.mask()
        if mask is not None:
            opened = await asyncio.to_thread(self.workspace.open_photo, current.photo)
            target = current.target(self.class_word, self.object_name)
            current.verdict = await asyncio.to_thread(opened.judge, mask, target)
        self.update()

    async def _finish(self, current: PhotoHints, change: int) -> None:
        """Replace a sketch by the finished mask unless another hint came since."""
        if change != self.change:
            return
        finished = await self._call("segment")
        if finished is None or change != self.change:
            return
        current.found, current.verdict = finished
        current.is_finished = True
        self.redraw()
        if current.strokes:
            await self._judge_mended(current)
        self.update()

    async def find_by_class(self) -> None:
        """Find the object by its class word alone, or with the hints that are there."""
        if self.current is None or not self.word.value:
            return parts.explain("open a photo and type the class of the object")
        self.verdict.set_text("Looking …")
        self.search_button.disable()
        self.change += 1
        try:
            await self._finish(self.current, self.change)
        finally:
            self.search_button.enable()
            self.update()
        return None

    async def _call(self, what: str) -> Any:
        """Call `sketch` or `segment` with the hints; None where it is refused, with the reason shown."""
        current = self.current
        assert current is not None
        try:
            opened = await asyncio.to_thread(self.workspace.open_photo, current.photo)
            return await asyncio.to_thread(getattr(opened, what), current.target(self.class_word, self.object_name))
        except ObjtuneError as error:
            parts.explain(error)
            return None

    # What is shown

    def type_object(self) -> None:
        """Keep class and name of the photo that is shown."""
        if self.current is not None:
            self.current.class_word, self.current.name = self.word.value or "", self.name.value or ""
        self.update_command()

    @property
    def class_word(self) -> str:
        return command_lines.clean_text(self.word.value or "") or "object"

    @property
    def object_name(self) -> str:
        return name_object(self.class_word, command_lines.clean_text(self.name.value or ""))

    def redraw(self) -> None:
        """Draw mask, box, points and the stroke that is being drawn."""
        current = self.current
        if current is None or self.canvas is None:
            return
        if not self.drag:  # the mask stays while a stroke is drawn
            self.mask_shape = hint_shapes.draw_mask(current.mask())
        preview = hint_shapes.draw_drag(self.tool.value, self.drag, float(self.width.value), current.size)
        self.canvas.draw(self.mask_shape + hint_shapes.draw_hints(current) + preview)

    def update(self) -> None:
        """Show verdict, command and what is possible now."""
        verdict = self.current.verdict if self.current else None
        is_pending = self.current is not None and self.current.mask() is not None
        self.verdict.set_text(hints.describe(verdict) if verdict else "Refining the outline …" if is_pending else "")
        self.verdict.classes(remove="bad good", add="" if verdict is None else "bad" if verdict.problem else "good")
        ready = sum(each.is_usable for each in self.photos.values())
        is_alone = ready == 1 and self.current is not None and self.current.is_usable
        self.learn_button.set_enabled(ready > 0)
        self.learn_button.set_text("Learn this object" if is_alone or not ready else f"Learn from {ready} photos")
        self.strip.show(self.current.photo if self.current else "")
        self.search_button.set_enabled(self.current is not None)
        self.update_command()

    def update_command(self) -> None:
        """Show the command line of this mask."""
        shown = self.workspace.shorten(self.workspace.locate_photo(self.current.photo)) if self.current else "photo.jpg"
        options: dict[str, command_lines.Value] = {
            "--class": self.class_word,
            "--name": command_lines.clean_text(self.name.value or ""),
        }
        if self.current and self.current.strokes:
            mask = self.workspace.mask_path(self.current.photo, self.object_name)
            options["--mask"] = self.workspace.shorten(mask)
        elif self.current:
            options |= self.current.options()
        self.command.show([*command_lines.build("segment", [shown], options), *self.workspace.shared])

    async def learn(self) -> None:
        """Save the masks that the gate takes, and go on to the screen that learns from them."""
        query = await asyncio.to_thread(save_masks, self.workspace, list(self.photos.values()))
        ui.navigate.to(f"/learn?{urlencode(query)}")
