"""The command line that a checkpoint keeps: what resumes the run, without what only reports, and without passwords."""

from pathlib import Path

import pytest

from objtune_cli.cli import typed_command
from objtune_cli.workflow.context import TypedCommand


def test_words_are_kept_without_those_that_only_report(project: Path) -> None:
    words = ["--json", "train", "a.jpg", "--class", "dog", "--events", "e.jsonl", "--live=x", "-q", "--log", "wandb", "--seed", "3"]  # fmt: skip
    assert typed_command.keep(words) == TypedCommand(("train", "a.jpg", "--class", "dog", "--seed", "3"), str(project))


@pytest.mark.parametrize(
    "words",
    [
        ["train", "-"],
        ["train", "https://user:secret@shop.example/a.jpg?signature=1", "--class", "dog"],
        ["run", "jobs.toml"],
        [],
    ],
)
def test_words_that_alone_do_not_resume_or_hold_a_password_are_not_kept(words: list[str]) -> None:
    assert typed_command.keep(words) is None


def test_words_of_several_processes_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert typed_command.keep(["train", "a.jpg", "--class", "dog"]) is None
