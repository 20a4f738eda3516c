"""The queue: long commands, one after another, each a process of its own that outlives the browser's page."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from objtune_cli.ui import command_lines

State = Literal["waiting", "running", "stopping", "stopped", "done", "failed"]
MAX_POINTS = 400
"""Points of a curve; of more, every second one is dropped."""
STOP_SECONDS = 60.0
"""How long a closing server waits for a command to save."""
MAX_NOTES = 50
LIVE = re.compile(r"samples-[a-z0-9._+-]+\.png")
"""Files of samples, one an object, in the folder of a command."""


@dataclass(slots=True)
class Progress:
    """What a command has reported so far.

    Attributes:
        curves: Metric to (step, value) points of the training steps. notes: Lines for the user, the newest last.
    """

    stage: str = ""
    step: int = 0
    total: int = 0
    seconds_left: float | None = None
    seconds: float = 0.0
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, event: dict[str, Any]) -> None:
        """Add one event; docs/schemas/event.json describes it."""
        self.seconds = event.get("seconds", self.seconds)
        if event.get("event") == "note":
            self.notes = [*self.notes, event["text"]][-MAX_NOTES:]
        if event.get("event") != "step":
            return
        self.stage, self.step, self.total = event["stage"], event["step"], event["total"]
        self.seconds_left = event["eta"]
        if self.stage not in ("train", "samples"):
            return
        for name in event.keys() - {"event", "seconds", "stage", "step", "total", "eta"}:
            if event[name] is not None:
                curve = self.curves.setdefault(name, [])
                while curve and curve[-1][0] >= self.step:  # a run that goes on repeats the steps after its checkpoint
                    curve.pop()
                curve.append((self.step, float(event[name])))
                if len(curve) > MAX_POINTS:
                    del curve[1::2]


@dataclass(slots=True)
class Task:
    """One command in the queue.

    Attributes:
        words: Its command line without `objtune`. place: The folder in which it runs; None: the server's.
        folder: Its events, output and live images.
        document: Its JSON document, once it has ended.
    """

    number: int
    words: tuple[str, ...]
    folder: Path
    place: Path | None = None
    state: State = "waiting"
    progress: Progress = field(default_factory=Progress)
    document: dict[str, Any] = field(default_factory=dict)
    code: int = 0
    process: "subprocess.Popen[bytes] | None" = None
    _read: int = 0

    @property
    def command(self) -> str:
        """The command line as a shell reads it."""
        line = command_lines.show(self.words)
        return line if self.place in (None, Path.cwd()) else f"cd {shlex.quote(str(self.place))} && {line}"

    @property
    def is_active(self) -> bool:
        """Whether it runs or will run."""
        return self.state in ("waiting", "running", "stopping")

    @property
    def error(self) -> str:
        """Why it failed, with the hint; "" if it did not."""
        if self.state != "failed":
            return ""
        return _read_error(self.document) or self._last_error_line() or f"it ended with code {self.code}"

    def live_images(self) -> list[Path]:
        """The newest samples of each object, once there are some."""
        with contextlib.suppress(OSError):
            return sorted(path for path in self.folder.iterdir() if LIVE.fullmatch(path.name))
        return []

    def refresh(self) -> None:
        """Read the events that were written since the last call."""
        with contextlib.suppress(OSError), (self.folder / "events.jsonl").open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                with contextlib.suppress(ValueError, KeyError):
                    self.progress.add(json.loads(line))

    def reset(self) -> None:
        """Prepare another run of the same command, which goes on with the curves of this one."""
        progress = Progress(curves=self.progress.curves)
        self.state, self.progress, self.document, self.code, self._read = "waiting", progress, {}, 0, 0

    def _last_error_line(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self.folder / "stderr.txt").read_text(errors="replace").strip().splitlines()
            return lines[-1] if lines else ""
        return ""


class TaskQueue:
    """Runs tasks one after another in a thread; the objects live as long as the server."""

    def __init__(self, folder: Path) -> None:
        """`folder`: For events, outputs and live images of tasks."""
        self.folder = folder
        self.tasks: list[Task] = []
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run_all, name="tasks", daemon=True)
        self._thread.start()

    def add(self, words: Sequence[str], place: Path | None = None) -> Task:
        """Add a command behind those that wait; `place`: the folder in which it runs, if not the server's."""
        with self._changed:
            number = 1 + max((task.number for task in self.tasks), default=0)
            task = Task(number, tuple(words), self.folder / str(number), place)
            self.tasks.append(task)
            self._changed.notify_all()
        return task

    def find(self, number: int) -> Task | None:
        """The task of a number; None if there is none."""
        return next((task for task in self.tasks if task.number == number), None)

    def stop(self, task: Task) -> None:
        """Ask a command to save its state and stop; a waiting one does not start."""
        with self._changed:
            if task.state == "waiting":
                task.state = "stopped"
            elif task.state == "running":
                task.state = "stopping"
                _interrupt(task)

    def resume(self, task: Task) -> None:
        """Run the same command again behind those that wait; it goes on where it stopped."""
        with self._changed:
            if not task.is_active:
                task.reset()
                self.tasks.remove(task)
                self.tasks.append(task)
                self._changed.notify_all()

    def remove(self, task: Task) -> None:
        """Take a task that has ended from the list; what it made stays in the project."""
        with self._changed:
            if not task.is_active:
                self.tasks.remove(task)

    def close(self) -> None:
        """Stop what runs, and wait until it has saved."""
        with self._changed:
            self._is_closed = True
            running = [task for task in self.tasks if task.state in ("running", "stopping")]
            self._changed.notify_all()
        for task in running:
            self.stop(task)
        self._thread.join(STOP_SECONDS)

    def _run_all(self) -> None:
        while (task := self._take()) is not None:
            try:
                self._run(task)
            except OSError as error:
                task.state, task.document = "failed", {"error": {"message": str(error), "hint": ""}}

    def _take(self) -> Task | None:
        """Wait for the next task; None once the queue is closed."""
        with self._changed:
            while True:
                if self._is_closed:
                    return None
                task = next((each for each in self.tasks if each.state == "waiting"), None)
                if task is not None:
                    task.state = "running"
                    return task
                self._changed.wait()

    def _run(self, task: Task) -> None:
        task.folder.mkdir(parents=True, exist_ok=True)
        events = task.folder / "events.jsonl"
        events.write_bytes(b"")
        plumbing = ["--json", "--events", str(events), "--live", str(task.folder)]
        with (task.folder / "stdout.json").open("wb") as out, (task.folder / "stderr.txt").open("wb") as err:
            with self._changed:
                task.process = start_process([*plumbing, *task.words], out, err, task.place)
                if task.state == "stopping":  # since before there was a process
                    _interrupt(task)
            task.code = task.process.wait()
        task.document = _parse_document((task.folder / "stdout.json").read_bytes())
        task.refresh()
        was_stopped = task.state == "stopping"
        task.state = (
            "done" if task.code == 0 else "stopped" if was_stopped or task.code < 0 or task.code >= 128 else "failed"
        )


def _interrupt(task: Task) -> None:
    """Send Ctrl-C to the process of a task, if it has one."""
    if task.process is not None:
        with contextlib.suppress(ProcessLookupError):
            task.process.send_signal(signal.SIGINT)


def start_process(words: Sequence[str], out: Any, err: Any, place: Path | None = None) -> "subprocess.Popen[bytes]":
    """Start `objtune` in a session of its own, so that the terminal's signals reach the server alone."""
    command = [sys.executable, "-P", "-m", "objtune_cli", *words]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        cwd=place,
        start_new_session=True,
        env={**os.environ, "NO_COLOR": "1"},
    )


@dataclass(frozen=True, slots=True)
class Finished:
    """A quick command that has ended: its exit code and its JSON document."""

    code: int
    document: dict[str, Any]

    @property
    def error(self) -> str:
        """Why it failed, with the hint; "" if it did not."""
        return "" if self.code == 0 else _read_error(self.document) or f"it ended with code {self.code}"


def run_now(words: Sequence[str], seconds: float = 120.0) -> Finished:
    """Run a quick command, such as `mv`, and wait for it."""
    process = start_process(["--json", *words], subprocess.PIPE, subprocess.DEVNULL)
    try:
        out, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        out, _ = process.communicate()
    return Finished(process.returncode, _parse_document(out))


def _read_error(document: dict[str, Any]) -> str:
    """Message and hint of a document; "" where it has no error."""
    error = document.get("error", {})
    return ". ".join(part for part in (error.get("message", ""), error.get("hint", "")) if part)


def _parse_document(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def format_seconds(seconds: float) -> str:
    """A duration for people: 45 s, 3 min, 2 h 5 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
