"""Photos by a command each and by one: what runs, what is kept, what is told."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from objtune_cli.bench.suites import throughput
from objtune_cli.config.sections import Bench
from objtune_cli.errors import UsageError
from objtune_cli.evaluation import statistics
from objtune_cli.workflow.context import StageContext


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would run; a photo takes 10 s by the wall and 8 of the processor alone, 5 and 4 beside others."""
    said: list[list[str]] = []
    spent = [0.0]

    def measured(ctx, command, label):
        said.append(command)
        names = [command[i + 1] for i, word in enumerate(command) if word == "--name"]
        spent[0] += 8.0 if len(names) == 1 else 4.0 * len(names)
        refs = [{"ref": f"adapter/{name}@1", "sha256": "0"} for name in names]
        return {"refs": refs}, 10.0 if len(names) == 1 else 5.0 * len(names), 0.0

    monkeypatch.setattr(throughput.command_runner, "run_command", measured)
    monkeypatch.setattr(throughput.command_runner, "processor_seconds", lambda: spent[0])
    monkeypatch.setattr(throughput.inference, "load", lambda: None)
    monkeypatch.setattr(
        throughput.ThroughputSuite,
        "score",
        lambda self, network, way, case, ref, sha256: {"identity": 0.9 if way == "alone" else 0.8},
    )
    return said


def test_times_of_all_are_compared_and_quality_is_of_each(
    context: Callable[..., StageContext], project: Path, commands
) -> None:
    rows = {
        (r["method"], r["measure"]): (r["mean"], r["n"])
        for r in throughput.run(context(), project / "out", 3, Bench(prompt_rounds=1))
    }
    assert len(commands) == 4 and [len([w for w in c if w == "--class"]) for c in commands] == [1, 1, 1, 3]
    assert rows["separate-commands", "identity"] == (0.9, 3) and rows["one-command", "identity"] == (0.8, 3)
    assert rows["separate-commands, total", "seconds"] == (30, 1) and rows["one-command, total", "cpu_s"] == (12, 1)
    assert rows["ratio", "seconds"] == (0.5, 1) and rows["ratio", "cpu_s"] == (0.5, 1)
    throughput.run(context(), project / "out", 3, Bench(prompt_rounds=1))
    assert len(commands) == 4  # kept
    throughput.run(context(), project / "out", 4, Bench(prompt_rounds=1))
    assert len(commands) == 6  # one more alone, and another company


def test_each_photo_stands_before_its_own_options(
    context: Callable[..., StageContext], project: Path, commands
) -> None:
    throughput.run(context(), project / "out", 2, Bench(prompt_rounds=1))
    words = commands[-1][commands[-1].index("--force") + 1 :]
    assert [Path(w).name for w in words if w.endswith(".png")] == [
        "dog-000.png",
        "dog-000.mask.png",
        "cat-001.png",
        "cat-001.mask.png",
    ]
    assert words[1:5] == ["--class", "dog", "--name", "dog-000"] and all(
        Path(w).is_file() for w in words if w.endswith(".png")
    )


def test_one_is_not_many(context: Callable[..., StageContext], project: Path, cli) -> None:
    with pytest.raises(UsageError, match="N is 1"):
        throughput.run(context(), project / "out", 1, Bench())
    assert cli("bench", "throughput", "3", "--objects", "2").code == 2


def test_processor_seconds_are_those_of_ended_processes() -> None:
    import subprocess
    import sys

    before = throughput.command_runner.processor_seconds()
    subprocess.run([sys.executable, "-c", "sum(i * i for i in range(3_000_000))"], check=True)
    assert 0.02 < throughput.command_runner.processor_seconds() - before < 60
    assert json.dumps(statistics.table_rows("x", [{"cpu_s": throughput.command_runner.processor_seconds()}]))
