"""How long `objtune --help` takes beside a bare Typer program of as many commands."""

import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from objtune_cli.cli.app import COMMANDS
from objtune_cli.store.artifacts import Record
from objtune_cli.store.store import Store

BARE = """
from typing import Annotated
import typer
app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False)
@app.callback()
def root(project: Annotated[str, typer.Option(help="A folder.")] = "", json: Annotated[bool, typer.Option("--json", help="JSON.")] = False) -> None:
    "A program."
def make(name):
    def command(
        ref: Annotated[str, typer.Argument(help="A ref.")],
        steps: Annotated[int, typer.Option(help="Steps.")] = 1,
        out: Annotated[str, typer.Option(help="A folder.")] = "",
        force: Annotated[bool, typer.Option("--force", help="Again.")] = False,
    ) -> None:
        "Do it."
    app.command(name)(command)
for i in range(COUNT):
    make(f"command-{i}")
app()
"""
RUNS = 15


def seconds(command: list[str], folder: Path, **variables: str) -> float:
    """User and system time of one command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        command, cwd=folder, env={**os.environ, **variables}, stdout=subprocess.DEVNULL, check=True, timeout=60
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
def test_help_beside_a_bare_program(project: Path, say: Callable[[str], None]) -> None:
    """In turns, so that a busy moment of the machine meets both."""
    (project / "bare.py").write_text(f"COUNT = {len(COMMANDS)}\n{BARE}")
    commands = [sys.executable, "bare.py", "--help"], [sys.executable, "-m", "objtune_cli", "--help"]
    turns = [[seconds(command, project) for command in commands] for _ in range(RUNS)]
    bare, ours = (statistics.median(column) for column in zip(*turns, strict=True))
    say(
        f"F15 objtune --help {ours * 1000:.0f} ms, bare Typer {bare * 1000:.0f} ms, ratio {ours / bare:.2f} (user+sys, median of {RUNS})"
    )


LOADED = """
import sys
from objtune_cli.cli.app import run
try:
    run(["--help"])
except SystemExit:
    pass
print(*(name for name in sys.modules if name.startswith("objtune_cli.")), file=sys.stderr)
"""


def test_help_loads_no_command(project: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], cwd=project, capture_output=True, text=True, timeout=60)
    assert "Commands:\n  segment " in done.stdout
    assert set(done.stderr.split()) == {f"objtune_cli.{name}" for name in (
        "cli", "cli.app", "cli.environment", "cli.options", "cli.launcher", "cli.signals", "cli.streams", "errors", "paths",
        "version", "workflow", "workflow.metric_loggers"
    )}  # fmt: skip


ENDED = """
import atexit, gc, sys
atexit.register(lambda: print(gc.get_threshold()[0], gc.get_freeze_count() > 0, file=sys.stderr))
from objtune_cli.cli.app import main
sys.argv = ["objtune", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("line", [["bases"], ["--help"], ["show", "mask/none"]])
def test_what_was_imported_is_not_looked_through_again(project: Path, line: list[str]) -> None:
    """Neither while more is imported nor at the interpreter's end, however the command ends."""
    done = subprocess.run([sys.executable, "-c", ENDED, *line], cwd=project, capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "20000 True"
    assert done.returncode == (4 if line[0] == "show" else 0)


MANY = 10_000


@pytest.mark.slow
def test_list_over_ten_thousand_artifacts(
    project: Path, monkeypatch: pytest.MonkeyPatch, say: Callable[[str], None]
) -> None:
    """At most a second of user and system time, start-up included."""
    store = Store.at(project)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for number in range(MANY // 50):
        record = Record(
            "mask",
            f"dog-{number}",
            {f"dog-{number}": "dog"},
            {"photo": {"ref": "", "sha256": "0" * 64}},
            {"edge": 0.5},
            {},
        )
        for _ in range(50):
            store.create(record, {"mask": np.ones(3, np.uint8)})
    command = [sys.executable, "-m", "objtune_cli", "list"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=60)
    assert len(done.stdout.splitlines()) == MANY
    taken = min(seconds(command, project) for _ in range(5))  # other programs only ever add
    say(f"F15 objtune list over {MANY} artifacts {taken:.2f} s (user+sys, best of 5)")
    assert taken <= 1.0


@pytest.mark.slow
def test_light_commands(project: Path, dog_photo: Path, say: Callable[[str], None]) -> None:
    """Printed; the limit is far above what they take, since a busy machine is slower."""
    quick = (
        "train.max_steps=1",
        "train.self_evaluation=false",
        "init-embedding.steps=1",
        "prior.num_class_images=1",
        "prior.num_predictions=1",
    )
    train = [
        "train",
        str(dog_photo),
        "--class",
        "dog",
        "--name",
        "rex",
        *(word for setting in quick for word in ("--set", setting)),
    ]
    completing = {"_OBJTUNE_COMPLETE": "complete_bash", "COMP_WORDS": "objtune show ", "COMP_CWORD": "2"}
    lines = {
        "--help": ["--help"],
        "list": ["list"],
        "show": ["show", "adapter/rex"],
        "verify": ["verify"],
        "a reused train": train,
        "doctor --quick": ["doctor", "--quick"],
        "TAB": [],
    }
    seconds([sys.executable, "-m", "objtune_cli", *train], project)
    found = {
        name: min(
            seconds([sys.executable, "-m", "objtune_cli", *line], project, **({} if line else completing))
            for _ in range(7)
        )
        for name, line in lines.items()
    }
    say("F15 " + ", ".join(f"{name} {taken * 1000:.0f} ms" for name, taken in found.items()) + " (user+sys, best of 7)")
    assert all(taken < 1.0 for taken in found.values())
