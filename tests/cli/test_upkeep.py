"""rm, gc and mv on the command line: what they print, and what they refuse."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objtune_cli.cli import durations
from objtune_cli.errors import UsageError
from objtune_cli.store.artifacts import Record
from objtune_cli.store.project import Project
from objtune_cli.store.refs import Ref
from objtune_cli.store.store import Store

Cli = Callable[..., Any]


@pytest.fixture
def store(project: Path) -> Store:
    """mask/rex@1 and @2, embedding/rex@1 and adapter/rex@1 of the second, and a leftover."""
    store = Store.at(project)
    store.create(Record("mask", "rex", {"rex": "dog"}, {}, {"edge": 1}, {}), {"mask": np.ones(9, np.uint8)})
    made = store.create(Record("mask", "rex", {"rex": "dog"}, {}, {}, {}), {"mask": np.ones(9, np.uint8)})
    for kind, role in (("embedding", "mask"), ("adapter", "embedding.rex")):
        inputs = {role: {"ref": str(made), "sha256": store.compute_sha256(made)}}
        made = store.create(Record(kind, "rex", {"rex": "dog"}, inputs, {}, {}), {"token.rex": np.ones(3, np.float32)})
    leftover = project / ".objtune/tmp/ancient"
    leftover.write_bytes(b"x" * 100)
    os.utime(leftover, (1e9, 1e9))
    return store


def test_rm_prints_what_went_and_asks_for_force(cli: Cli, store: Store) -> None:
    refused = cli("rm", "mask/rex@2")
    assert (refused.code, refused.out) == (2, "")
    assert (
        refused.err == "error: embedding/rex@1 was made from mask/rex@2\nhint: remove those first, or use `--force`\n"
    )
    assert cli("rm", "mask/rex@1", "adapter/rex").out == "mask/rex@1\nadapter/rex@1\n"
    assert cli("rm", "mask/rex", "--force").out == "mask/rex@2\n"
    assert cli("verify").err == "1 artifacts, all intact\n"
    gone = cli("show", "adapter/rex@1")
    assert (gone.code, gone.err.splitlines()[0]) == (4, "error: adapter/rex@1 was removed")


def test_rm_reads_what_list_prints(cli: Cli, store: Store) -> None:
    listed = cli("list").out
    document = json.loads(cli("rm", "-", "--json", stdin=listed).out)
    assert document["removed"] == ["mask/rex@1", "mask/rex@2", "embedding/rex@1", "adapter/rex@1"]
    assert cli("list").out == ""


def test_gc_says_first_and_deletes_then(cli: Cli, store: Store) -> None:
    young = cli("gc")
    assert (young.code, young.out) == (0, ".objtune/tmp/ancient\n")
    assert young.err == "freed 0.0 MB: 0 artifacts, 1 leftovers\n"
    before = sorted(store.backend.path("artifacts").rglob("*"))
    dry = cli("gc", "--older-than", "0", "--dry-run")
    assert dry.out == "mask/rex@1\n"
    assert sorted(store.backend.path("artifacts").rglob("*")) == before
    document = json.loads(cli("gc", "--older-than", "0s", "--json").out)
    size = document.pop("bytes")
    assert size > 0
    assert (document["removed"], document["leftovers"], document["dry_run"]) == (["mask/rex@1"], [], False)
    assert cli("list", "mask").out.startswith("mask/rex@2")
    assert cli("gc", "--older-than", "0").out == ""


@pytest.mark.parametrize("line", [["gc"], ["rm", "mask/rex@1"], ["mv", "rex", "max"]], ids=" ".join)
def test_nothing_is_taken_away_under_work(line: list[str], cli: Cli, store: Store, project: Path) -> None:
    before = sorted(project.rglob("*"))
    with Project(project).lock():
        done = cli(*line)
    assert (done.code, done.out) == (8, "")
    assert "other objtune commands work in" in done.err
    assert sorted(project.rglob("*")) == before
    assert cli(*line).code == 0


def test_mv_renames_the_object_in_every_stage(cli: Cli, store: Store) -> None:
    done = cli("mv", "rex", "max")
    assert done.out == "mask/max@1\nmask/max@2\nembedding/max@1\nadapter/max@1\n"
    assert cli("verify").err == "4 artifacts, all intact\n"
    assert "objects.max\tdog" in cli("show", "adapter/max").out
    assert "embedding/max@1" in cli("list", "adapter").out
    assert cli("show", "adapter/rex@1").out == cli("show", "adapter/max@1").out  # an old ref leads there
    assert cli("show", "adapter/rex").code == 4
    document = json.loads(cli("mv", "max", "rex2", "--json").out)
    assert document["moved"][-1] == {"from": "adapter/max@1", "to": "adapter/rex2@1"}


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (["mv", "nobody", "max"], 4, "no object is called nobody"),
        (["mv", "rex", "rex"], 2, "rex already has that name"),
        (["mv", "rex", "Max!"], 2, "'Max!' cannot be a name"),
        (["mv", "adapter/rex", "max"], 2, "are not both names"),
        (["mv", "rex@1", "max"], 2, "are not both names"),
        (["mv", "rex"], 2, "Missing argument 'new'"),
        (["rm"], 2, "there is no ref"),
        (["rm", "nobody"], 4, "there is no mask/nobody"),
        (["rm", "mask/rex@1", "mask/rex@9"], 4, "there is no mask/rex@9"),
        (["rm", "rex"], 4, "rex is ambiguous"),
        (["gc", "--older-than", "soon"], 2, "--older-than soon is not a duration"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_mistakes(line: list[str], code: int, words: str, cli: Cli, store: Store, project: Path) -> None:
    before = sorted(project.rglob("*"))
    done = cli(*line)
    assert (done.code, done.out) == (code, "")
    assert [said.split(":")[0] for said in done.err.splitlines()] == ["error", "hint"]
    assert words in done.err
    assert sorted(project.rglob("*")) == before


def test_several_refs_are_shown_and_read_from_stdin(cli: Cli, store: Store) -> None:
    one, two = cli("show", "mask/rex@1").out, cli("show", "embedding/rex").out
    assert cli("show", "-", stdin="mask/rex@1\nembedding/rex@1\n").out == one + two
    document = json.loads(cli("show", "mask/rex@1", "embedding/rex", "--json").out)
    assert [a["kind"] for a in document["artifacts"]] == ["mask", "embedding"]


def test_diffusers_files_of_two_objects_would_be_one(cli: Cli, store: Store) -> None:
    store.create(
        Record("adapter", "max", {"max": "dog"}, {}, {}, {"id": "x", "fingerprint": ""}),
        {"token.max": np.ones(3, np.float32)},
    )
    done = cli("export", "-", stdin="adapter/rex\nadapter/max\n")
    assert (done.code, "would have the same name" in done.err) == (2, True)
    done = cli("export", "-", "--format", "embedding", stdin="adapter/rex\nadapter/max\n")
    assert done.out == "rex-objtune.safetensors\nmax-objtune.safetensors\n"


def test_a_store_without_a_right_to_write_can_be_read_and_is_not_cleaned(
    cli: Cli, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_args: Any, **_named: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", closed)
    monkeypatch.setattr(Path, "unlink", closed)
    done = cli("rm", "mask/rex@1")
    assert done.code == 7
    assert store.path(Ref("mask", "rex", 1)).exists()
    for line in (["list"], ["show", "mask/rex"], ["verify"]):
        assert cli(*line).code == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("45m", 2700), ("1h30m", 5400), ("14d", 1209600), ("0", 0), ("1.5h", 5400)],
)
def test_spans_of_time(text: str, seconds: float) -> None:
    assert durations.parse_duration(text, "--max-time") == seconds


@pytest.mark.parametrize("text", ["", " ", "m", "-1", "1 h", "30m1h", "1e3", "nan", "٣"])
def test_what_is_no_span(text: str) -> None:
    with pytest.raises(UsageError, match="is not a duration"):
        durations.parse_duration(text, "--max-time")
