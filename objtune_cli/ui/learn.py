"""The screen Learn: start a training, follow its samples and curves, stop it and go on, one after another."""

from collections.abc import Callable
from typing import Any

from fastapi import Request
from nicegui import ui

from objtune_cli.errors import ObjtuneError
from objtune_cli.store import checkpoints
from objtune_cli.ui import command_lines, parts
from objtune_cli.ui.command_lines import TrainingPhoto, clean_text
from objtune_cli.ui.task_cards import TaskList
from objtune_cli.ui.workspace import Workspace

MAX_STEPS = 100_000


def register(get: Callable[[], Workspace]) -> None:
    """Add the screen to the application."""

    @ui.page("/learn")
    def learn_screen(request: Request) -> None:
        workspace, query = get(), request.query_params
        with parts.frame(workspace, "/learn"):
            photos, masks = query.getlist("photo"), query.getlist("mask")
            pairs = list(zip(photos, [*masks, *[""] * len(photos)], strict=False))
            LearnScreen(workspace, pairs, query.get("class", ""), query.get("name", ""))


class LearnScreen:
    """One open screen."""

    def __init__(self, workspace: Workspace, photos: list[tuple[str, str]], class_word: str, name: str) -> None:
        self.workspace = workspace
        known = workspace.list_photos()
        self.masks = {name: mask for name, mask in photos if name in known}
        parts.text("h1", "Learn the object")
        with ui.element("section").classes("panel wide").props('aria-label="New training"'):
            self.photos = ui.select(known, multiple=True, label="Photos", value=list(self.masks), on_change=self.update)
            self.photos.props("outlined dense use-chips").classes("grow")
            with ui.element("div").classes("fields"):
                self.word = parts.field("Class, for example dog", clean_text(class_word), on_change=self.update)
                self.name = parts.field("Name (optional)", clean_text(name), on_change=self.update)
                self.steps = parts.number(
                    "Steps (empty: until it is learned)", None, low=1, high=MAX_STEPS, on_change=self.update
                )
                self.every = parts.number("Samples every … steps", None, low=0, high=MAX_STEPS, on_change=self.update)
                self.seed = parts.number("Seed", None, low=0, high=2**31 - 1, on_change=self.update)
            self.note = parts.text("p", "", "faint")
            self.start_button = parts.button("Start", self.start, "main")
            self.command = parts.CommandLine()
        with ui.element("section").props('id="queue" aria-label="Queue"'):
            parts.text("h2", "Queue")
            self.tasks = TaskList(workspace, "train")
            show_unfinished(workspace)
        self.update()

    def words(self) -> list[str]:
        """The command line of the fields.

        Raises:
            InputError: A photo or mask is not there any more.
        """
        locate = self.workspace
        photos = [
            TrainingPhoto(
                locate.shorten(locate.locate_photo(name)),
                locate.shorten(locate.locate_mask(mask)) if (mask := self.masks.get(name, "")) else "",
            )
            for name in self.photos.value
        ]
        options: dict[str, Any] = {
            "--steps": _whole(self.steps.value),
            "--sample-every": _whole(self.every.value),
            "--seed": _whole(self.seed.value),
        }
        words = command_lines.train(
            photos, clean_text(self.word.value or ""), clean_text(self.name.value or ""), options
        )
        return [*words, *self.workspace.shared]

    def update(self) -> None:
        """Show the command line, and whether it can start."""
        masked = [name for name in self.photos.value if self.masks.get(name)]
        is_complete = bool(self.photos.value and self.word.value)
        self.note.set_text(
            "Choose a photo and type the class of the object in it."
            if not is_complete
            else describe_masks(len(masked), len(self.photos.value))
        )
        self.start_button.set_enabled(is_complete)
        try:
            self.command.show(
                self.words() if is_complete else ["train", "photo.jpg", "--class", "dog", *self.workspace.shared]
            )
        except ObjtuneError as error:
            self.start_button.disable()
            self.note.set_text(f"{error.message}. {error.hint}")

    def start(self) -> None:
        """Put the command into the queue."""
        try:
            self.workspace.queue.add(self.words())
        except ObjtuneError as error:
            return parts.explain(error)
        ui.notify("In the queue")
        self.tasks.refresh()
        return None


def show_unfinished(workspace: Workspace) -> None:
    """Say which runs stopped before this page was opened, in another one or in a shell."""
    if any(task.is_active for task in workspace.queue.tasks):
        return
    for run in checkpoints.list_checkpoints(workspace.store):
        for name, state in run.runs.items():
            text = f"A training of {name} stopped at step {state['step']} of {state['total']}. The same photo, mask and settings go on with it."
            parts.text("p", text, "faint")


def describe_masks(masked: int, count: int) -> str:
    """How the object is found in the photos, in words."""
    if masked == count:
        return "The masks are those of the screen Find."
    by_class = "The class word finds the object in the photo" if count == 1 else "The class word finds the object"
    return (
        f"{by_class}."
        if not masked
        else f"{masked} of {count} photos have a mask of the screen Find; {by_class.lower()} in the others."
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
