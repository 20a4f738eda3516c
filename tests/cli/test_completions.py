"""Shell completion: the shipped scripts are those that objtune prints, and TAB offers what is there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from objtune_cli.store.artifacts import Record
from objtune_cli.store.store import Store

REPOSITORY = Path(__file__).resolve().parents[2]
OBJTUNE = Path(sys.executable).with_name("objtune")


def objtune(folder: Path, **variables: str) -> str:
    done = subprocess.run(
        [OBJTUNE], cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def stocked(project: Path) -> Path:
    """A project with two masks, an embedding and an adapter."""
    for kind, name in (("mask", "rex"), ("mask", "rex"), ("mask", "cup"), ("embedding", "rex"), ("adapter", "rex")):
        Store.at(project).create(Record(kind, name, {name: "dog"}, {}, {}, {}), {})
    return project


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shipped_script_is_the_printed_one(shell: str, project: Path) -> None:
    """Made by `_OBJTUNE_COMPLETE=source_<shell> objtune > completions/objtune.<shell>`."""
    assert (REPOSITORY / "completions" / f"objtune.{shell}").read_text() == objtune(
        project, _OBJTUNE_COMPLETE=f"source_{shell}"
    )


def offered(folder: Path, line: str) -> list[str]:
    """What bash is offered after a line; an open word is its last."""
    words = line.split(" ")
    return objtune(folder, _OBJTUNE_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1)).split()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("objtune show ", ["mask/cup@1", "mask/rex@1", "mask/rex@2", "embedding/rex@1", "adapter/rex@1"]),
        ("objtune show mask/r", ["mask/rex@1", "mask/rex@2"]),
        ("objtune show adapter", ["adapter/rex@1"]),
        ("objtune show nothing", []),
        ("objtune init-embedding ", ["mask/cup@1", "mask/rex@1", "mask/rex@2"]),
        ("objtune train mask/cup@1 emb", ["embedding/rex@1"]),
        ("objtune export ", ["adapter/rex@1"]),
        ("objtune sh", ["show"]),
        ("objtune --js", ["--json"]),
        ("objtune segment --cl", ["--class"]),
        ("objtune train --precision b", ["bf16"]),
        ("objtune bench m", ["memory", "masks"]),
        ("objtune bench --meth", ["--methods"]),
        ("objtune bench scenes --q", ["--quick", "--quiet"]),
    ],
)
def test_tab_offers_what_is_there(line: str, found: list[str], stocked: Path) -> None:
    assert offered(stocked, line) == found


def test_tab_outside_a_project_offers_nothing(tmp_path: Path, project: Path) -> None:
    assert offered(tmp_path, "objtune show ") == []


def test_tab_looks_into_the_named_project(stocked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OBJTUNE_PROJECT", str(stocked))
    assert "adapter/rex@1" in offered(tmp_path, "objtune show ")


def test_tab_never_complains(stocked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a damaged artifact nor a project that is not there says anything at a prompt."""
    path = stocked / "artifacts/mask/cup/v001.safetensors"
    path.chmod(0o644)
    path.write_bytes(b"")
    assert "mask/cup@1" in offered(stocked, "objtune show ")
    monkeypatch.setenv("OBJTUNE_PROJECT", "/nonexistent")
    assert offered(stocked, "objtune show ") == []


def test_fish_and_zsh_are_offered_the_same(stocked: Path) -> None:
    fish = objtune(
        stocked,
        _OBJTUNE_COMPLETE="complete_fish",
        _TYPER_COMPLETE_FISH_ACTION="get-args",
        _TYPER_COMPLETE_ARGS="objtune export ",
    )
    zsh = objtune(stocked, _OBJTUNE_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS="objtune export ")
    assert fish.split() == ["adapter/rex@1"]
    assert '"adapter/rex@1"' in zsh
