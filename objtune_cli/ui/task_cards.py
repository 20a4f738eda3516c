"""The queue on a screen: a card for each command, with its progress, samples, curves and buttons."""

from typing import Any
from urllib.parse import urlencode

from nicegui import ui

from objtune_cli.store import refs
from objtune_cli.ui import parts
from objtune_cli.ui.presence_table import show_presence
from objtune_cli.ui.tasks import Task, format_seconds
from objtune_cli.ui.workspace import Workspace

REFRESH_SECONDS = 1.0
LABELS = {
    "waiting": "waits", "running": "runs", "stopping": "saves and stops", "stopped": "stopped", "done": "done", "failed": "failed",
}  # fmt: skip
CURVES = ("loss", "object", "background", "class", "identity", "copy")
"""Metrics that are drawn; the logarithmic axis is that of the loss."""
CURVES_OF_SEVERAL = ("loss", "identity")
"""Those of each object of several, which stand behind its name."""
SCORES = ("identity", "copy")
"""Metrics from 0 to 1."""


class TaskList:
    """The cards of all commands of one kind; they follow the queue while the page is open."""

    def __init__(self, workspace: Workspace, *commands: str) -> None:
        self.workspace, self.commands = workspace, commands
        self.cards: dict[int, TaskCard] = {}
        self.empty = parts.text(
            "p", "Nothing runs. What you start stays here, and goes on when you close this page.", "faint"
        )
        self.place = ui.element("div").classes("cards")
        self.refresh()
        ui.timer(REFRESH_SECONDS, self.refresh)

    def refresh(self) -> None:
        """Show the queue as it is now."""
        tasks = [task for task in self.workspace.queue.tasks if task.words[0] in self.commands]
        self.empty.set_visibility(not tasks)
        for number in self.cards.keys() - {task.number for task in tasks}:
            self.cards.pop(number).element.delete()
        for task in reversed(tasks):
            if task.number not in self.cards:
                with self.place:
                    self.cards[task.number] = TaskCard(self.workspace, task)
                    self.cards[task.number].element.move(target_index=0)
            self.cards[task.number].refresh()


class TaskCard:
    """One command of the queue."""

    def __init__(self, workspace: Workspace, task: Task) -> None:
        self.workspace, self.task = workspace, task
        self.samples_written: dict[str, int] = {}
        self.points = 0
        with ui.element("article").classes("card") as self.element:
            self.element.props["aria-label"] = f"Command {task.number}"
            with ui.element("div").classes("card-head"):
                parts.text("code", task.command)
                self.state = parts.text("span", "", "state").props('role="status"')
            self.bar = ui.linear_progress(value=0, show_value=False, size="6px").props('rounded aria-label="Progress"')
            self.step = parts.text("p", "", "faint")
            self.samples = ui.element("div").classes("samples")
            self.chart = ui.element("div").classes("chart")
            self.message = parts.text("p", "", "note")
            self.result = ui.element("div").classes("result")
            with ui.element("div").classes("row"):
                self.stop = parts.button("Stop", lambda: workspace.queue.stop(task))
                self.again = parts.button("Go on", self._resume)
                self.forget = parts.button("Remove from the list", lambda: workspace.queue.remove(task), "bare")
        self.shown_state = ""

    def _resume(self) -> None:
        self.workspace.queue.resume(self.task)
        self.refresh()

    def refresh(self) -> None:
        """Show the progress of the command."""
        task = self.task
        task.refresh()
        progress = task.progress
        if progress.total:
            self.bar.set_value(progress.step / progress.total)
        self.step.set_text(describe_progress(task))
        self._show_samples()
        self._show_curves()
        if task.state == self.shown_state:
            return
        self.shown_state = task.state
        self.state.set_text(LABELS[task.state])
        self.state.classes(replace=f"state {task.state}")
        self.bar.set_visibility(task.state in ("running", "stopping"))
        self.stop.set_visibility(task.state in ("waiting", "running"))
        self.again.set_visibility(task.state in ("stopped", "failed"))
        self.again.set_text("Go on" if task.state == "stopped" else "Try again")
        self.forget.set_visibility(not task.is_active)
        self.message.set_text(task.error)
        self.message.set_visibility(bool(task.error))
        if task.state == "done":
            self.bar.set_value(1)
            self._show_result()

    def _show_samples(self) -> None:
        """The strip of samples of each object, anew when there are more."""
        written = {path.name: path.stat().st_mtime_ns for path in self.task.live_images()}
        if written == self.samples_written:
            return
        self.samples_written = written
        self.samples.clear()
        with self.samples:
            for file, modified in written.items():
                name = file.removeprefix("samples-").removesuffix(".png")
                address = f"/files/task/{self.task.number}/{file}?t={modified}"
                with ui.element("div"):
                    if len(written) > 1:
                        parts.text("p", name, "faint")
                    parts.picture(address, f"Samples of {name} so far: a column for each step")

    def _show_curves(self) -> None:
        curves = choose_curves(self.task.progress.curves)
        count = sum(len(points) for points in curves.values())
        if count == self.points or max(map(len, curves.values()), default=0) < 2:
            return
        self.points = count
        options = chart_options(curves)
        if isinstance(self.chart, ui.echart):
            self.chart.options.update(options)
            self.chart.update()
            return
        with self.chart:
            chart = ui.echart(options).classes("curves")
            chart.props["aria-label"] = "Loss and scores by step"
            chart.props('role="img"')
        self.chart = chart

    def _show_result(self) -> None:
        """Links to what the command made."""
        with self.result:
            for metrics in self.task.document.get("metrics", {}).values():
                show_presence(metrics)
            for each in self.task.document.get("refs", ()):
                ref = refs.parse(each["ref"])
                names = {path.name for path in self.workspace.store.list_images(ref)}
                if "preview.png" in names:
                    parts.picture(image_address(ref, "preview.png"), f"Preview of {ref}", "sheet")
                for name in sorted(names - {"preview.png", "samples.png"}) if ref.kind == "scene" else ():
                    parts.picture(image_address(ref, name), f"{name} of {ref}", "made")
                with ui.element("div").classes("row"):
                    parts.text("code", ref)
                if ref.kind != "adapter":
                    continue
                with ui.element("div").classes("row"):
                    parts.link("Draw it", f"/draw?{urlencode({'object': ref.name})}")
                    parts.link("In the library", f"/library?{urlencode({'object': ref.name})}")


def image_address(ref: refs.Ref, name: str) -> str:
    """The address of an image beside an artifact."""
    return f"/files/artifact/{ref.kind}/{ref.name}/{ref.version}/{name}"


def describe_progress(task: Task) -> str:
    """Stage, step and time left in words."""
    progress = task.progress
    if task.state == "waiting":
        return "It starts when those before it are done."
    if task.state in ("done", "stopped"):
        is_inside = task.state == "stopped" and progress.total
        at = f", in {progress.stage}: {progress.step} of {progress.total}" if is_inside else ""
        return f"after {format_seconds(progress.seconds)}{at}"
    if not progress.stage:
        return "starts …"
    text = f"{progress.stage}: {progress.step} of {progress.total}"
    if progress.seconds_left is not None:
        text += f", {format_seconds(progress.seconds_left)} left"
    return text


def choose_curves(curves: dict[str, list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    """The curves that are drawn; of several objects, those of each."""
    several = [name for name in curves if "/" in name]
    chosen = [name for name in several if name.rpartition("/")[2] in CURVES_OF_SEVERAL] if several else CURVES
    return {name: curves[name] for name in chosen if curves.get(name)}


def chart_options(curves: dict[str, list[tuple[int, float]]]) -> dict[str, Any]:
    """Curves for ECharts: losses on a logarithmic axis, scores from 0 to 1 on the other."""
    scores = {name for name in curves if name.rpartition("/")[2] in SCORES}
    series = [
        {
            "name": name, "type": "line", "showSymbol": name in scores, "yAxisIndex": int(name in scores), "lineStyle": {"width": 1.5},
            "data": [list(point) for point in points if point[1] > 0 or name in scores],
        }
        for name, points in curves.items()
    ]  # fmt: skip
    grey = {"axisLabel": {"color": "#808080"}, "splitLine": {"lineStyle": {"color": "#80808033"}}}
    return {
        "animation": False,
        "grid": {"left": 52, "right": 36, "top": 34, "bottom": 28},
        "legend": {"top": 0, "type": "scroll", "textStyle": {"color": "#808080"}},
        "tooltip": {"trigger": "axis"},
        "xAxis": {"type": "value", "max": "dataMax", **grey},
        "yAxis": [{"type": "log", **grey}, {"type": "value", "min": 0, "max": 1, **grey, "splitLine": {"show": False}}],
        "series": series,
    }
