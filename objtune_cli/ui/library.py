"""The screen Library: objects with their versions and lineage; report, export, rename and remove."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

from nicegui import ui

from objtune_cli.errors import MissingError, ObjtuneError
from objtune_cli.report import contents
from objtune_cli.report.contents import TrainedObject
from objtune_cli.store.refs import Ref
from objtune_cli.ui import command_lines, objects, parts, tasks
from objtune_cli.ui.lineage_graph import show_lineage
from objtune_cli.ui.objects import AdapterVersions
from objtune_cli.ui.task_cards import image_address
from objtune_cli.ui.workspace import Workspace

EXPORTS = "exports"
"""Folder of a project in which the page keeps exported files and reports."""
MAX_SCENES = 40
"""Scenes that are looked through for those of an object."""
FORMATS = {
    "diffusers": "diffusers (LoRA and embedding)", "kohya": "kohya (A1111, ComfyUI)", "embedding": "embedding only", "bundle": "bundle (one file)",
}  # fmt: skip


def register(get: Callable[[], Workspace]) -> None:
    """Add the screen to the application."""

    @ui.page("/library")
    def library_screen(object: str = "") -> None:
        workspace = get()
        with parts.frame(workspace, "/library"):
            LibraryScreen(workspace, object)


def find_export(workspace: Workspace, folder: str, name: str) -> Path:
    """The file of an export.

    Raises:
        MissingError: There is none, or the name leads elsewhere.
    """
    path = workspace.folder / EXPORTS / folder / name
    if (
        any(part in ("", ".", "..") or part != Path(part).name for part in (folder, name))
        or not path.is_file()
        or path.is_symlink()
    ):
        raise MissingError(f"there is no export {name!r}", "export it again")
    return path


class LibraryScreen:
    """One open screen."""

    def __init__(self, workspace: Workspace, opened: str) -> None:
        self.workspace = workspace
        parts.text("h1", "Library")
        parts.text("p", parts.describe_project(workspace), "faint")
        self.place = ui.element("div").classes("library")
        adapters, problems = objects.list_adapters(workspace.store)
        with ui.element("section").classes("row report"):
            parts.button("Write a report", self.report).set_enabled(bool(adapters))
            self.report_place = ui.element("span")
        report = parts.CommandLine("The report on the command line")
        report.show(self._report_words())
        with self.place:
            for adapter in adapters:
                ObjectCard(workspace, adapter, is_open=adapter.record.name == opened)
            if not adapters:
                parts.text("p", "No object is learned yet. Begin with a photo on the screen Find.", "empty")
            for problem in problems:
                parts.text("p", problem, "note")

    def _report_words(self) -> list[str]:
        out = self.workspace.shorten(self.workspace.folder / EXPORTS / "report" / "report.html")
        return [*command_lines.build("report", [], {"--out": out}), *self.workspace.project_words]

    async def report(self) -> None:
        """Write the report and link it."""
        (self.workspace.folder / EXPORTS / "report").mkdir(parents=True, exist_ok=True)
        if await run_quick(self._report_words()) is not None:
            self.report_place.clear()
            with self.report_place:
                parts.link("Open report.html", "/files/export/report/report.html").props('target="_blank"')


class ObjectCard:
    """One adapter: what it is, what led to it, and what can be done with it."""

    def __init__(self, workspace: Workspace, adapter: AdapterVersions, *, is_open: bool) -> None:
        self.workspace, self.adapter, self.name = workspace, adapter, adapter.record.name
        record = adapter.record
        with ui.element("article").classes("card object"):
            names = {path.name for path in workspace.store.list_images(record.ref)}
            if "preview.png" in names:
                parts.picture(image_address(record.ref, "preview.png"), f"Preview of {record.ref}", "sheet")
            with ui.element("div").classes("row spread"):
                parts.text("h2", self.name)
                parts.text(
                    "span", f"{record.class_word} · version {record.version} · {record.base.get('id', '')}", "faint"
                )
            with ui.element("div").classes("row"):
                parts.link("Draw", f"/draw?{urlencode({'object': next(iter(record.objects))})}", "button")
                parts.button("Export", self._ask_export).props("dense")
                parts.button("Rename", self._ask_name).props("dense")
                parts.button("Remove", self._ask_removal).props("dense")
            with ui.expansion("Versions and lineage", value=is_open).classes("faint-box") as details:
                self._details = ui.element("div")
        if is_open:
            self._show_details()
        else:
            details.on_value_change(lambda event: self._show_details() if event.value else None)

    def _show_details(self) -> None:
        self._details.clear()
        try:
            scenes = objects.list_scenes_of(self.workspace.store, self.adapter.record.ref, MAX_SCENES)
            shown = contents.read_object(self.workspace.store, self.adapter.record.ref, scenes)
        except ObjtuneError as error:
            parts.explain(error)
            return
        with self._details:
            show_scores(shown)
            parts.text("h3", "Lineage")
            show_lineage(shown.lineage)
            parts.text("h3", "Versions")
            with ui.element("ul"):
                for version in self.adapter.versions:
                    parts.text("li", Ref("adapter", self.name, version))
            with ui.element("div").classes("sheets"):
                for image in (each for each in shown.images if not each.key.endswith("preview.png")):
                    ref, name = image.key.removesuffix(".png").rpartition("/")[::2]
                    kind, owner, folder = ref.split("/")[1:]
                    parts.picture(f"/files/artifact/{kind}/{owner}/{int(folder[1:])}/{name}.png", image.title)

    # What can be done

    def _ask_export(self) -> None:
        with parts.dialog(f"Export {self.name}") as dialog, ui.card().classes("dialog"):
            parts.text("h2", f"Export {self.name}")
            form = ui.select(FORMATS, value="diffusers", label="Format").props("outlined dense")
            place = ui.element("div")
            command = parts.CommandLine()
            command.show(self._export_words("diffusers"))
            form.on_value_change(lambda event: command.show(self._export_words(event.value)))

            async def export() -> None:
                document = await run_quick(self._export_words(form.value))
                place.clear()
                with place:
                    for file in document["files"] if document else ():
                        name = Path(file).name
                        parts.link(name, f"/files/export/{self.name}/{name}").props("download").classes("download")

            with ui.element("div").classes("row"):
                parts.button("Export", export, "main")
                parts.button("Close", dialog.close, "bare")
        dialog.open()

    def _export_words(self, form: str) -> list[str]:
        out = self.workspace.shorten(self.workspace.folder / EXPORTS / self.name)
        words = command_lines.build("export", [str(self.adapter.record.ref)], {"--format": form, "--out": out})
        return [*words, *self.workspace.project_words]

    def _ask_name(self) -> None:
        with parts.dialog(f"Rename {self.name}") as dialog, ui.card().classes("dialog"):
            parts.text("h2", f"Rename {self.name}")
            field = parts.field("New name", self.name)
            command = parts.CommandLine()

            def words() -> list[str]:
                new = command_lines.clean_text(field.value or "")
                return [*command_lines.build("mv", [self.name, new], {}), *self.workspace.project_words]

            command.show(words())
            field.on_value_change(lambda: command.show(words()))
            self._confirm(dialog, "Rename", words)
        dialog.open()

    def _ask_removal(self) -> None:
        with parts.dialog(f"Remove {self.adapter.record.ref}?") as dialog, ui.card().classes("dialog"):
            parts.text("h2", f"Remove {self.adapter.record.ref}?")
            parts.text("p", "The version is deleted. Its number is not used again.")
            force = ui.checkbox("Also if images were drawn with it")
            command = parts.CommandLine()

            def words() -> list[str]:
                options: dict[str, command_lines.Value] = {"--force": bool(force.value)}
                return [
                    *command_lines.build("rm", [str(self.adapter.record.ref)], options),
                    *self.workspace.project_words,
                ]

            command.show(words())
            force.on_value_change(lambda: command.show(words()))
            self._confirm(dialog, "Remove", words, kind="danger")
        dialog.open()

    def _confirm(
        self, dialog: ui.dialog, label: str, words: Callable[[], list[str]], kind: Literal["main", "danger"] = "main"
    ) -> None:
        async def confirm() -> None:
            if await run_quick(words()) is not None:
                dialog.close()
                ui.navigate.to("/library")

        with ui.element("div").classes("row"):
            parts.button(label, confirm, kind)
            parts.button("Cancel", dialog.close, "bare")


def show_scores(shown: TrainedObject) -> None:
    """The scores of self-evaluation with their meaning."""
    if not shown.scores:
        return
    with ui.element("table"):
        for score in shown.scores:
            with ui.element("tr"):
                parts.text("th", score.name).props('scope="row"')
                parts.text("td", f"{score.value:.2f}")
                parts.text("td", score.meaning, "faint")


async def run_quick(words: list[str]) -> dict[str, Any] | None:
    """Run a quick command; its JSON document, or None where it fails, with the reason shown."""
    finished = await asyncio.to_thread(tasks.run_now, words)
    if finished.error:
        parts.explain(finished.error)
        return None
    return finished.document
