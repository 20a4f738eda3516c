"""How long `objtune --help` takes beside a bare Typer program of as many commands: printed, not judged."""

import math
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

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
for i in range(11):
    make(f"command-{i}")
app()
"""
RUNS = 15


def seconds(command: list[str], folder: Path) -> float:
    """Median user and system time of one command."""
    spent = []
    for _ in range(RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=folder, env=os.environ, stdout=subprocess.DEVNULL, check=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(spent)


@pytest.mark.slow
def test_help_beside_a_bare_program(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "bare.py").write_text(BARE)
    bare = seconds([sys.executable, "bare.py", "--help"], project)
    ours = seconds([sys.executable, "-m", "objtune_cli", "--help"], project)
    with capsys.disabled():
        print(
            f"\nobjtune --help {ours * 1000:.0f} ms, bare Typer {bare * 1000:.0f} ms, ratio {ours / bare:.2f} (user+sys, median of {RUNS})"
        )
    assert math.isfinite(ours / bare)
