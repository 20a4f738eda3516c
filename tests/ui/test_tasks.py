"""The queue of the page: one command at a time, progress from its events, stop and go on."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from objtune_cli.ui import tasks
from objtune_cli.ui.tasks import Progress, TaskQueue

PROGRAM = """
import json, signal, sys, time
events = open(sys.argv[sys.argv.index("--events") + 1], "a", buffering=1)
def stop(*_):
    print(json.dumps({"command": "train", "error": {"code": 130, "message": "stopped", "hint": ""}}))
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
print(json.dumps({"event": "step", "seconds": 1, "stage": "train", "step": 3, "total": 9, "eta": 2.5, "loss": 0.5}), file=events)
if "fail" in sys.argv:
    print(json.dumps({"command": "train", "error": {"code": 3, "message": "no photo", "hint": "give one"}}))
    sys.exit(3)
while "wait" in sys.argv:
    time.sleep(0.02)
print(json.dumps({"command": "train", "refs": [{"ref": "adapter/rex@1"}]}))
"""
"""Stands for objtune: one step, then the end, an error, or waiting for a signal."""


def until(condition: Callable[[], Any]) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TaskQueue]:
    def start(words: list[str], out: Any, err: Any, place: Path | None) -> Any:
        return subprocess.Popen([sys.executable, "-S", "-c", PROGRAM, *words], stdout=out, stderr=err, cwd=place)

    monkeypatch.setattr(tasks, "start_process", start)
    queue = TaskQueue(tmp_path)
    yield queue
    queue.close()


def test_commands_run_one_after_another(queue: TaskQueue) -> None:
    first, second, third = queue.add(["train", "wait"]), queue.add(["train", "fail"]), queue.add(["train", "it's"])
    until(lambda: (first.refresh(), first.progress.step)[1] == 3)
    assert [task.state for task in (first, second, third)] == ["running", "waiting", "waiting"]
    assert (first.progress.stage, first.progress.total, first.progress.seconds_left) == ("train", 9, 2.5)
    assert first.progress.curves == {"loss": [(3, 0.5)]}
    queue.stop(first)
    until(lambda: third.state == "done")
    assert (first.state, first.code, first.error) == ("stopped", 130, "")
    assert (second.state, second.error) == ("failed", "no photo. give one")
    assert third.document["refs"] == [{"ref": "adapter/rex@1"}]
    assert third.command == """objtune train 'it'"'"'s'"""


def test_a_stopped_command_goes_on_as_the_same_command(queue: TaskQueue) -> None:
    task = queue.add(["train", "wait"])
    until(lambda: (task.refresh(), task.progress.step)[1] == 3)
    queue.stop(task)
    until(lambda: task.state == "stopped")
    queue.resume(task)
    until(lambda: task.state == "running" and (task.refresh(), task.progress.step)[1] == 3)
    assert task.words == ("train", "wait") and queue.tasks == [task]
    assert task.progress.curves == {"loss": [(3, 0.5)]}  # the step is repeated, and counts once
    queue.remove(task)
    assert queue.tasks == [task]  # it runs


def test_what_waits_can_be_taken_back(queue: TaskQueue) -> None:
    first, second = queue.add(["train", "wait"]), queue.add(["train"])
    until(lambda: first.state == "running")
    queue.stop(second)
    assert second.state == "stopped"
    queue.remove(second)
    assert queue.tasks == [first] and queue.find(2) is None


def test_a_closing_server_stops_what_runs_and_starts_nothing(queue: TaskQueue) -> None:
    first, second = queue.add(["train", "wait"]), queue.add(["train"])
    until(lambda: (first.refresh(), first.progress.step)[1] == 3)
    queue.close()
    assert (first.state, second.state) == ("stopped", "waiting")
    assert first.process is not None and first.process.poll() == 130


def test_a_command_is_stopped_before_it_has_a_process(queue: TaskQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    start = tasks.start_process

    def start_after_stop(*given: Any) -> Any:
        queue.stop(queue.tasks[0])
        return start(*given)

    monkeypatch.setattr(tasks, "start_process", start_after_stop)
    task = queue.add(["train", "wait"])
    until(lambda: task.state == "stopped")
    assert task.process is not None and task.process.poll() != 0


def test_long_curves_are_thinned() -> None:
    progress = Progress()
    for step in range(1, 3001):
        event = {
            "event": "step",
            "seconds": 1,
            "stage": "train",
            "step": step,
            "total": 3000,
            "eta": None,
            "loss": 1 / step,
        }
        progress.add(json.loads(json.dumps(event)))
    curve = progress.curves["loss"]
    assert len(curve) <= tasks.MAX_POINTS and curve[0][0] == 1 and curve[-1][0] == 3000


def test_a_quick_command_returns_its_document_or_its_error(project: Path) -> None:
    assert tasks.run_now(["list"]).document["refs"] == []
    refused = tasks.run_now(["rm", "adapter/rex"])
    assert refused.code == 4 and "there is no adapter/rex" in refused.error


@pytest.mark.parametrize(("seconds", "text"), [(3.2, "3 s"), (89, "89 s"), (200, "3 min"), (7500, "2 h 5 min")])
def test_durations_are_words(seconds: float, text: str) -> None:
    assert tasks.format_seconds(seconds) == text
