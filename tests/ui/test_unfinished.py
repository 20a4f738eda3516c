"""Trainings that stopped before the page was opened: which are listed, and the words that resume them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from objtune_cli import api
from objtune_cli.store.checkpoints import Checkpoint
from objtune_cli.store.store import Store

pytest.importorskip("nicegui", reason="the extra ui is not installed")

from objtune_cli.ui import unfinished
from objtune_cli.ui.workspace import Workspace


def save(store: Store, words: list[str], folder: Path, key: str = "a" * 64) -> Checkpoint:
    """A checkpoint of <rex> at step 3 of 8, as `train` writes it."""
    checkpoint = Checkpoint(store, key)
    checkpoint.about = {
        "runs": {"rex": {"step": 3, "total": 8, "inputs": ""}},
        "config": {},
        "base": {},
        "computed": "cpu",
        **({"command": {"words": words, "folder": str(folder)}} if words else {}),
    }
    checkpoint.save({})
    return checkpoint


@pytest.fixture
def workspace(project: Path) -> Workspace:
    return Workspace(api.project(project), project, queue=SimpleNamespace(tasks=[]))  # type: ignore[arg-type]


def test_a_stopped_run_is_listed_until_a_process_or_the_queue_has_it(workspace: Any, project: Path) -> None:
    checkpoint = save(workspace.store, ["train", "a.jpg", "--class", "dog"], project)
    (run,) = unfinished.list_stopped(workspace)
    assert run.runs["rex"]["step"] == 3 and run.folder == str(project)
    with checkpoint.lock():
        assert unfinished.list_stopped(workspace) == []
    assert unfinished.list_stopped(workspace) == [run]
    task = SimpleNamespace(words=("train", "a.jpg", "--class", "dog"), state="stopped")
    workspace.queue.tasks.append(task)
    assert unfinished.list_stopped(workspace) == []
    task.state = "failed"
    assert unfinished.list_stopped(workspace) == [run]


def test_the_words_resume_in_this_project_from_whatever_folder(workspace: Any, project: Path, tmp_path: Path) -> None:
    def words(typed: list[str], folder: Path) -> list[str]:
        checkpoint = save(workspace.store, typed, folder)
        (run,) = unfinished.list_stopped(workspace)
        checkpoint.discard()
        return unfinished.resume_words(workspace, run)

    assert words(["train", "a.jpg"], project) == ["train", "a.jpg"]
    assert words(["train", "a.jpg"], project / "photos") == ["train", "a.jpg"]
    assert words(["train", "a.jpg"], tmp_path) == ["train", "--project", str(project), "a.jpg"]
    assert words(["--project", "p", "train", "a.jpg"], tmp_path) == ["train", "--project", "p", "a.jpg"]
    assert words([], project) == []
