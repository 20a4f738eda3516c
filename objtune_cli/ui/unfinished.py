"""Trainings that stopped before this page was opened, in another one or in a shell, each with a button that resumes it."""

import asyncio
from functools import partial
from pathlib import Path

from nicegui import ui

from objtune_cli.store import checkpoints
from objtune_cli.store.checkpoints import UnfinishedRun
from objtune_cli.ui import parts
from objtune_cli.ui.command_lines import clean_text
from objtune_cli.ui.task_cards import TaskList
from objtune_cli.ui.workspace import Workspace

REFRESH_SECONDS = 4.0


class UnfinishedList:
    """The runs of a project that nobody continues; it follows the project while the page is open."""

    def __init__(self, workspace: Workspace, tasks: TaskList) -> None:
        self.workspace, self.tasks = workspace, tasks
        self.shown: list[UnfinishedRun] = []
        self.place = ui.element("div").classes("cards")
        self._show(list_stopped(workspace))
        ui.timer(REFRESH_SECONDS, self.refresh)

    async def refresh(self) -> None:
        """Show the runs again if there are others."""
        stopped = await asyncio.to_thread(list_stopped, self.workspace)
        if stopped != self.shown:
            self._show(stopped)

    def _show(self, stopped: list[UnfinishedRun]) -> None:
        self.shown = stopped
        self.place.clear()
        with self.place:
            for run in stopped:
                self._show_run(run)

    def _show_run(self, run: UnfinishedRun) -> None:
        with ui.element("article").classes("card").props('aria-label="Stopped training"'):
            with ui.element("div").classes("card-head"):
                steps = (
                    f"{name}: stopped at step {each['step']} of {each['total']}" for name, each in run.runs.items()
                )
                parts.text("span", "; ".join(steps))
                parts.text("span", "stopped", "state")
            if run.words and Path(run.folder).is_dir():
                parts.CommandLine("The command that resumes it").show(resume_words(self.workspace, run))
                with ui.element("div").classes("row"):
                    parts.button("Go on", partial(self._resume, run))
            else:
                text = "The command that started it resumes it, with the same photo, mask and settings."
                parts.text("p", text, "faint")

    def _resume(self, run: UnfinishedRun) -> None:
        self.workspace.queue.add(resume_words(self.workspace, run), Path(run.folder))
        self._show([each for each in self.shown if each.key != run.key])
        self.tasks.refresh()


def list_stopped(workspace: Workspace) -> list[UnfinishedRun]:
    """The unfinished runs that no process has, and that are not in the queue, where they have a button of their own."""
    queued = {task.words for task in workspace.queue.tasks if task.state != "failed"}
    return [
        run
        for run in checkpoints.list_checkpoints(workspace.store)
        if not checkpoints.is_running(workspace.store, run) and tuple(resume_words(workspace, run)) not in queued
    ]


def resume_words(workspace: Workspace, run: UnfinishedRun) -> list[str]:
    """The words that resume a run from its own folder, with `train` first; empty where there are none."""
    words = [clean_text(word) for word in run.words]
    if not words:
        return []
    at = words.index("train") if "train" in words else 0
    words = [words[at], *words[:at], *words[at + 1 :]]
    names_project = any(word == "--project" or word.startswith("--project=") for word in words)
    if not names_project and not Path(run.folder).is_relative_to(workspace.folder.resolve()):
        words[1:1] = ["--project", str(workspace.folder)]
    return words
