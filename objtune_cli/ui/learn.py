"""The screen Learn: start a training of one or more objects, follow its samples and curves, stop it and go on."""

from collections.abc import Callable, Sequence

from fastapi import Request
from nicegui import ui

from objtune_cli.errors import ObjtuneError
from objtune_cli.ui import command_lines, parts
from objtune_cli.ui.object_fields import ObjectList, Wanted, group_wanted
from objtune_cli.ui.task_cards import TaskList
from objtune_cli.ui.unfinished import UnfinishedList
from objtune_cli.ui.workspace import Workspace

MAX_STEPS = 100_000


def register(get: Callable[[], Workspace]) -> None:
    """Add the screen to the application."""

    @ui.page("/learn")
    def learn_screen(request: Request) -> None:
        workspace, query = get(), request.query_params
        with parts.frame(workspace, "/learn"):
            lists = (query.getlist(key) for key in ("photo", "mask", "class", "name"))
            LearnScreen(workspace, group_wanted(*lists))


class LearnScreen:
    """One open screen."""

    def __init__(self, workspace: Workspace, wanted: Sequence[Wanted]) -> None:
        self.workspace = workspace
        parts.text("h1", "Learn")
        with ui.element("section").classes("panel wide").props('aria-label="New training"'):
            self.objects = ObjectList(workspace.list_photos(), wanted, self.update)
            with ui.element("div").classes("fields"):
                self.steps = parts.number("Steps (empty: auto)", None, low=1, high=MAX_STEPS, on_change=self.update)
                self.every = parts.number("Samples every … steps", None, low=0, high=MAX_STEPS, on_change=self.update)
                self.seed = parts.number("Seed", None, low=0, high=2**31 - 1, on_change=self.update)
            self.note = parts.text("p", "", "faint").props('role="status"')
            self.start_button = parts.button("Start", self.start, "main")
            self.command = parts.CommandLine()
        with ui.element("section").props('id="queue" aria-label="Queue"'):
            parts.text("h2", "Queue")
            self.tasks = TaskList(workspace, "train")
            UnfinishedList(workspace, self.tasks)
        self.update()

    def words(self) -> list[str]:
        """The command line of the fields.

        Raises:
            InputError: A photo or mask is not there any more.
        """
        options: dict[str, command_lines.Value] = {
            "--steps": _whole(self.steps.value),
            "--sample-every": _whole(self.every.value),
            "--seed": _whole(self.seed.value),
        }
        objects = [each.read(self.workspace) for each in self.objects.objects]
        return [*command_lines.train(objects, options), *self.workspace.shared]

    def update(self) -> None:
        """Show the command line, and whether it can start."""
        if not hasattr(self, "command"):
            return
        problem = self.objects.find_problem()
        self.note.set_text(problem or self.objects.describe_masks())
        self.start_button.set_enabled(not problem)
        example = ["train", "photo.jpg", "--class", "dog", *self.workspace.shared]
        try:
            self.command.show(example if problem else self.words())
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


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
