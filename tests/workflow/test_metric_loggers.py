"""Metric loggers: every registered one gets the same steps, notes and images, and one more needs one class and one entry."""

import json
from pathlib import Path

import numpy as np
import pytest

from objtune_cli.errors import ResourceError
from objtune_cli.images import png
from objtune_cli.workflow import metric_loggers, trackers
from objtune_cli.workflow.metric_loggers import JsonLinesLogger, LoggerOption, MetricLoggers, Step
from objtune_cli.workflow.reporting import CommandReporter


class RecordingLogger:
    """Remembers what it gets, as a logger of another format would write it."""

    def __init__(self, path: Path, command: str) -> None:
        self.path, self.seen = path, [("open", command)]
        path.mkdir()

    def hyperparameters(self, values):
        self.seen.append(("hyperparameters", dict(values)))

    def log(self, step, values):
        self.seen += [(f"{step.stage}/{name}", step.number, value) for name, value in values.items()]

    def image(self, step, name, rgb):
        self.seen.append((f"{step.stage}/{name}", step.number, rgb.shape))

    def text(self, text):
        self.seen.append(("text", text))

    def close(self, code):
        self.seen.append(("close", code))
        (self.path / "scalars.json").write_text(json.dumps(self.seen))


class SilentProgress:
    def note(self, text):
        pass

    def step(self, stage, done, total, **values):
        return 1.26


def test_every_logger_gets_steps_notes_and_images(tmp_path):
    recording = RecordingLogger(tmp_path / "run", "train")
    lines = JsonLinesLogger(tmp_path / "events", "train")
    report = CommandReporter(SilentProgress(), MetricLoggers([recording, lines]))
    report.note("begins")
    report.hyperparameters({"train.rank": 8})
    report.step("train", 3, 4, loss=0.5)
    report.image("preview", 5, "dog", np.zeros((2, 3, 3), np.uint8))
    report.loggers.close(130)
    assert recording.seen == [
        ("open", "train"),
        ("text", "begins"),
        ("hyperparameters", {"train.rank": 8}),
        ("train/loss", 3, 0.5),
        ("preview/dog", 5, (2, 3, 3)),
        ("close", 130),
    ]
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert all(event.pop("seconds") >= 0 for event in events)
    assert events == [
        {"event": "start", "command": "train"},
        {"event": "note", "text": "begins"},
        {"event": "step", "stage": "train", "step": 3, "total": 4, "eta": 1.3, "loss": 0.5},
        {"event": "end", "code": 130},
    ]


def test_a_metric_never_replaces_a_key_of_the_step(tmp_path):
    lines = JsonLinesLogger(tmp_path / "events", "train")
    lines.log(Step("train", 1, 2), {"total": 7.0, "loss": 0.1})
    event = json.loads((tmp_path / "events").read_text().splitlines()[1])
    assert (event["total"], event["eta"], event["loss"]) == (2, None, 0.1)


def test_only_options_with_a_value_open_a_logger(tmp_path, monkeypatch):
    monkeypatch.setitem(metric_loggers.LOGGERS, "scalars", LoggerOption("DIR", "Scalars.", RecordingLogger))
    assert trackers.open_loggers({"events": None, "quiet": True}, "train").loggers == ()
    both = trackers.open_loggers({"events": tmp_path / "e", "scalars": tmp_path / "s"}, "train").loggers
    assert [type(each) for each in both] == [JsonLinesLogger, RecordingLogger]


ONE_MORE = """
import sys
from objtune_cli.workflow import metric_loggers
from tests.workflow.test_metric_loggers import RecordingLogger
metric_loggers.LOGGERS["scalars"] = metric_loggers.LoggerOption("DIR", "Write scalars there.", RecordingLogger)
from objtune_cli.cli.app import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize("before", [True, False])
def test_one_entry_gives_every_command_the_option(before, project, tmp_path):
    import subprocess
    import sys

    option, repository = ["--scalars", str(tmp_path / "log")], Path(__file__).parents[2]
    line = [*option, "list"] if before else ["list", *option]
    done = subprocess.run(
        [sys.executable, "-c", ONE_MORE, "--project", str(project), *line],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "log/scalars.json").read_text()) == [["open", "list"], ["close", 0]]
    shown = subprocess.run(
        [sys.executable, "-c", ONE_MORE, "train", "--help"], cwd=repository, capture_output=True, text=True, timeout=60
    )
    assert "--scalars DIR" in shown.stdout and "Write scalars there." in shown.stdout


def test_live_images_are_the_newest_of_each_stage(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "live"
    logger = metric_loggers.LOGGERS["live"].open(folder, "train")
    for value in (10, 200):
        logger.image(Step("samples", value, value), "dog", np.full((4, 6, 3), value, np.uint8))
    assert sorted(path.name for path in folder.iterdir()) == ["samples-dog.png", "samples.png"]
    logger.image(Step("samples", 3, 3), "cup", np.full((4, 6, 3), 7, np.uint8))
    assert png.read(folder / "samples-cup.png").tolist() == png.read(folder / "samples.png").tolist()
    assert png.read(folder / "samples-dog.png").tolist() == np.full((4, 6, 3), 200).tolist()
    logger.close(0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="images cannot be written to"):
        metric_loggers.LOGGERS["live"].open(tmp_path / "file" / "live", "train")


def test_one_of_several_processes_logs(cli, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert cli("train", "dog.jpg", "--steps", "many", "--events", "events", "--log", "tensorboard").code == 2
    assert not Path("events").exists() and not Path("runs").exists()
