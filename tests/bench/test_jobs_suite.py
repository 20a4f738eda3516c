"""A jobs file by two commands a job and by `run`: what runs, and what is compared."""

import json
from pathlib import Path

import pytest

from objtune_cli.bench.suites import jobs
from objtune_cli.config.sections import Bench
from objtune_cli.errors import ObjtuneError, UsageError


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would run, and the jobs of the file of `run`."""
    said: list[list[str]] = []

    def measured(ctx, command, label, variables=None):
        said.append(command[4:])
        if command[4] != "run":
            return {"refs": []}, 1.0, 0.0
        document = json.loads(Path(command[5]).read_text())
        files = [job[key] for job in document["job"] for key in ("photo", "mask")]
        assert all((Path(command[5]).parent / file).is_file() for file in files)
        said.append(document)
        return {"jobs": [{"code": 0, "message": ""} for _ in document["job"]]}, 2.0, 0.0

    monkeypatch.setattr(jobs.command_runner, "run_command", measured)
    monkeypatch.setattr(jobs.command_runner, "processor_seconds", lambda: float(len(said)))
    return said


def test_both_ways_have_the_same_jobs_and_settings(context, project, commands):
    rows = {(r["method"], r["measure"]): r["mean"] for r in jobs.run(context(), Path("out"), 3, Bench(), 7)}
    *lines, document = commands
    trained = [words for words in lines if words[0] == "train"]
    assert len(trained) == 3 and [words[0] for words in lines].count("generate") == 3
    assert {words[words.index("--name") + 1] for words in trained} == {job["name"] for job in document["job"]}
    assert all(words[words.index("--set") + 1] == "train.max_steps=7" for words in trained)
    assert document["defaults"]["set"] == ["train.max_steps=7"] and document["defaults"]["n"] == 1
    assert rows["batches", "seconds"] == 2.0 and rows["batches", "objects_per_hour"] == 5400
    assert rows["ratio", "cpu_s"] == pytest.approx(2 / 6, abs=1e-3) and list((project / "out").iterdir()) == []


def test_a_job_that_fails_ends_the_measurement(context, project, commands, monkeypatch):
    fail = {"jobs": [{"code": 3, "message": "no picture"}] * 2}
    monkeypatch.setattr(
        jobs.command_runner,
        "run_command",
        lambda ctx, command, *_: (fail if command[4] == "run" else {"refs": []}, 1.0, 0.0),
    )
    with pytest.raises(ObjtuneError, match="no picture"):
        jobs.run(context(), project / "out", 2, Bench(), 0)
    with pytest.raises(UsageError, match="N is 1"):
        jobs.run(context(), project / "out", 1, Bench(), 0)
