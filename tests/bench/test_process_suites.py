"""`bench speed --start` and `--pictures`: what runs, and what is compared."""

from pathlib import Path

import pytest

from objtune_cli.bench.suites import pictures, start
from objtune_cli.config.sections import Bench
from objtune_cli.errors import ResourceError


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would run; each of them imports one light module."""
    seen: list[list[str]] = []

    def probed(ctx, command, label, variables=None):
        seen.append(command[5:])
        Path(command[4]).write_text("decimal\nno_such_module")
        return {"refs": []}, 1.0, 0.0

    monkeypatch.setattr(start.command_runner, "run_command", probed)
    return seen


def test_each_command_that_opens_a_base_is_timed_beside_the_pipeline(context, probes, monkeypatch):
    monkeypatch.setattr(start, "IMPORT_PIPELINE", "import sys; assert sys.argv[1] == 'StableDiffusionPipeline'")
    rows = {(r["method"], r["measure"]): r for r in start.run(context(), Bench(timing_rounds=3))}
    commands = ["segment", "train", "generate", "compose", "evaluate"]
    assert [words[0] for words in probes] == commands
    assert all(rows[name, "import_s"]["mean"] > 0.01 and rows[name, "import_s"]["n"] == 3 for name in commands)
    assert {name for name, _ in rows} == {start.PIPELINE, *commands, *(f"ratio of {name}" for name in commands)}
    assert rows["ratio of train", "import_s"]["mean"] > 1, "an interpreter with imports beside a bare one"


def test_an_import_that_fails_is_an_error_with_its_last_line(context, probes, monkeypatch):
    monkeypatch.setattr(start, "IMPORT_PIPELINE", "raise ImportError('no operator nms')")
    with pytest.raises(ResourceError, match="ImportError: no operator nms"):
        start.run(context(), Bench(timing_rounds=1))


def test_a_command_that_fails_is_an_error_with_its_message(context, monkeypatch):
    failed = {"error": {"code": 7, "message": "the disk is full"}}
    monkeypatch.setattr(start.command_runner, "run_command", lambda *_: (failed, 1.0, 0.0))
    with pytest.raises(ResourceError, match="`segment` failed: the disk is full"):
        start.run(context(), Bench(timing_rounds=1))
    with pytest.raises(ResourceError, match="train failed: the disk is full"):
        pictures.run(context(), Bench(timing_rounds=1))


def test_generate_is_measured_beside_the_script_with_and_without_its_additions(context, monkeypatch):
    lines: list[tuple[str, list[str]]] = []
    seconds = {pictures.SCRIPT: 4.0, "generate": 8.0, "generate, as many calls": 5.0, "train": 1.0}

    def measured(ctx, command, label, variables=None):
        lines.append((label, command))
        slow = 100.0 if len(lines) == 2 else 0.0  # an outlier does not move the median
        return {"refs": []}, seconds[label] + slow, 100 * seconds[label]

    monkeypatch.setattr(pictures.command_runner, "run_command", measured)
    monkeypatch.setattr(pictures.command_runner, "processor_seconds", lambda: float(len(lines)))
    rows = {(r["method"], r["measure"]): r["mean"] for r in pictures.run(context(), Bench(timing_rounds=3))}
    assert rows["ratio of generate", "seconds"] == 2 and rows["ratio of generate", "memory_mb"] == 2
    assert rows["ratio of generate, as many calls", "seconds"] == 1.25
    by_name = {name: command for name, command in lines}
    extra = set(by_name["generate, as many calls"]) - set(by_name["generate"])
    assert extra == {"--set", "generate.prompt_guidance_scale=0", "generate.subject_conditioning_start=1"}
    turns = [name for name, _ in lines[1:]]
    assert turns[:3] == turns[3:6][::-1] == turns[6:], "in turns"
    compile(pictures.PLAIN_SCRIPT, "script", "exec")
