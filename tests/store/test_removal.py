"""rm, gc and mv: what may go, what stays, and that a number is given once."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objtune_cli.errors import BusyError, DamagedError, MissingError, UsageError
from objtune_cli.store import atomic_files, garbage, refs, removal, temp_files
from objtune_cli.store.artifacts import Record, file_sha256, load, publish, read_record, verify
from objtune_cli.store.project import Project
from objtune_cli.store.refs import Ref

LATER = 4e9
"""As an age limit: everything is older."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


def made(root: Path, kind: str, name: str, *sources: Ref, **changes: Any) -> Ref:
    """An artifact made from others."""
    inputs = {
        f"{source.kind}.{source.name}" if kind != "embedding" else "mask": given(root, source) for source in sources
    }
    tensors = {f"token.{name}": np.ones(3, np.float32)} if kind == "adapter" else {"x": np.ones(3, np.uint8)}
    return publish(root, replace(Record(kind, name, {name: "dog"}, inputs, {}, {}), **changes), tensors)


def given(root: Path, ref: Ref) -> dict[str, str]:
    return {"ref": str(ref), "sha256": file_sha256(ref.path(root))}


@pytest.fixture
def line(root: Path) -> list[Ref]:
    """mask, embedding and adapter of rex, and a scene of it."""
    mask = made(root, "mask", "rex")
    embedding = made(root, "embedding", "rex", mask)
    adapter = made(root, "adapter", "rex", embedding)
    return [mask, embedding, adapter, made(root, "scene", "rex", adapter)]


def everything(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_a_removed_number_is_never_given_again(root: Path) -> None:
    for _ in range(3):
        made(root, "mask", "rex")
    removal.remove(root, [Ref("mask", "rex", 3), Ref("mask", "rex", 1)])
    assert refs.list_versions(root, "mask", "rex") == [2]
    assert made(root, "mask", "rex") == Ref("mask", "rex", 4)
    removal.remove(root, refs.list_refs(root))
    assert refs.list_names(root, "mask") == []
    assert made(root, "mask", "rex") == Ref("mask", "rex", 5)


def test_a_tombstone_says_what_was_there(root: Path) -> None:
    ref = made(root, "mask", "rex")
    digest = file_sha256(ref.path(root))
    removal.remove(root, [ref])
    assert everything(root) == {
        "mask/rex/v001.gone": f'{{"moved":"","ref":"mask/rex@1","sha256":"{digest}"}}\n'.encode()
    }
    with pytest.raises(MissingError, match=r"mask/rex@1 was removed"):
        refs.resolve(root, ref)


def test_a_removed_number_is_not_given_to_who_looked_before(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between looking for a free number and taking it, another writer publishes under it and removes that again."""
    taken = refs.used_versions
    looked: list[list[int]] = []

    def slow(*args: Any) -> list[int]:
        found = taken(*args)
        if not looked:
            looked.append(found)
            removal.remove(root, [made(root, "mask", "rex")])
        return found

    monkeypatch.setattr(refs, "used_versions", slow)
    assert made(root, "mask", "rex") == Ref("mask", "rex", 2)
    assert refs.list_versions(root, "mask", "rex") == [2]


def test_what_others_were_made_from_stays(root: Path, line: list[Ref]) -> None:
    before = everything(root)
    for gone in (line[:1], line[:2], line[1:2], line[:3]):
        with pytest.raises(UsageError, match=r"was made from") as caught:
            removal.remove(root, gone)
        assert "--force" in caught.value.hint
    assert everything(root) == before
    removal.remove(root, line)
    assert refs.list_refs(root) == []


def test_force_removes_it_all_the_same_and_the_rest_stays_sound(root: Path, line: list[Ref]) -> None:
    removal.remove(root, line[:1], force=True)
    assert refs.list_refs(root) == [line[1], line[2], line[3]]
    grave = refs.read_tombstone(root, line[0])
    assert grave and grave["sha256"] == read_record(root, line[1]).inputs["mask"]["sha256"]


def test_pictures_go_with_their_artifact(root: Path) -> None:
    ref, other = made(root, "mask", "rex"), made(root, "mask", "rex")
    for each in (ref, other):
        folder = each.path(root).with_suffix("")
        folder.mkdir()
        (folder / "overlay.png").write_bytes(b"picture")
    removal.remove(root, [ref])
    assert not ref.path(root).with_suffix("").exists()
    assert (other.path(root).with_suffix("") / "overlay.png").exists()


@pytest.mark.parametrize("step", ["os.unlink", "os.replace"])
def test_a_removal_that_was_cut_short_is_finished_by_the_same_again(
    step: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = made(root, "mask", "rex")

    def killed(*_args: Any, **_named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path if step == "os.unlink" else os, step.partition(".")[2], killed)
        with pytest.raises(KeyboardInterrupt, match="^$"):
            removal.remove(root, [ref])
    assert verify(root, ref)[0].name == "rex"  # old state: whole
    removal.remove(root, [ref])
    assert refs.list_refs(root) == []
    assert made(root, "mask", "rex").version == 2


def test_gc_takes_what_is_superseded_and_served_no_result(root: Path, line: list[Ref]) -> None:
    lonely = [made(root, kind, "max") for kind in ("mask", "embedding", "prior", "adapter", "scene") for _ in range(2)]
    newer = made(root, "mask", "rex")
    assert removal.find_unreferenced(root, 0) == []
    found = removal.find_unreferenced(root, LATER)
    assert found == [Ref("mask", "max", 1), Ref("embedding", "max", 1), Ref("prior", "max", 1)]
    assert not set(found) & {*line, newer}
    removal.remove(root, found)
    assert set(refs.list_refs(root)) == {*line, newer, *lonely} - set(found)


def test_gc_keeps_through_all_stages(root: Path, line: list[Ref]) -> None:
    """The scene and the adapter hold the first mask, although three newer ones exist."""
    for _ in range(3):
        made(root, "mask", "rex")
        made(root, "embedding", "rex")
    assert removal.find_unreferenced(root, LATER) == [
        Ref("mask", "rex", 2),
        Ref("mask", "rex", 3),
        Ref("embedding", "rex", 2),
        Ref("embedding", "rex", 3),
    ]


def test_gc_keeps_what_is_young(root: Path) -> None:
    old, young, newest = (made(root, "mask", "rex") for _ in range(3))
    os.utime(old.path(root), (1e9, 1e9))
    assert removal.find_unreferenced(root, 1e9 + 1) == [old]
    assert removal.find_unreferenced(root, LATER) == [old, young]
    assert newest in refs.list_refs(root)


def test_gc_takes_nothing_while_a_record_cannot_be_read(root: Path) -> None:
    made(root, "mask", "rex")
    path = made(root, "mask", "rex").path(root)
    path.chmod(0o644)
    path.write_bytes(b"broken")
    with pytest.raises(DamagedError, match=r"v002\.safetensors"):
        removal.find_unreferenced(root, LATER)


def test_a_renamed_object_is_what_would_have_been_made_under_that_name(
    root: Path, line: list[Ref], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    made(other, "adapter", "max", made(other, "embedding", "max", made(other, "mask", "max")))
    moved = removal.rename(root, "rex", "max")
    assert [f"{a} {b}" for a, b in moved] == [f"{kind}/rex@1 {kind}/max@1" for kind in ("mask", "embedding", "adapter")]
    for kind in ("mask", "embedding", "adapter"):
        ref = Ref(kind, "max", 1)
        assert ref.path(root).read_bytes() == ref.path(other).read_bytes()
    assert set(load(root, Ref("adapter", "max", 1))[1]) == {"token.max"}


def test_old_refs_lead_to_the_renamed_object(root: Path, line: list[Ref]) -> None:
    removal.rename(root, "rex", "max")
    removal.rename(root, "max", "bob")
    scene = read_record(root, line[3])
    assert scene.inputs["adapter.rex"]["ref"] == "adapter/rex@1"
    assert refs.resolve(root, refs.parse("adapter/rex@1")) == Ref("adapter", "bob", 1)
    grave = refs.read_tombstone(root, line[2])
    assert grave and grave["sha256"] == scene.inputs["adapter.rex"]["sha256"]
    assert refs.list_names(root, "adapter") == ["bob"]
    assert made(root, "adapter", "rex").version == 2


def test_a_rename_that_was_cut_short_is_finished_by_the_same_again(
    root: Path, line: list[Ref], monkeypatch: pytest.MonkeyPatch
) -> None:
    bury = removal.replace_by_tombstone
    for allowed in (0, 1, 1):
        left = iter(range(allowed))

        def killed(*args: Any, left: Any = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            bury(*args)

        with monkeypatch.context() as patch:
            patch.setattr(removal, "replace_by_tombstone", killed)
            with pytest.raises(KeyboardInterrupt, match="^$"):
                removal.rename(root, "rex", "max")
    removal.rename(root, "rex", "max")
    assert [str(ref) for ref in refs.list_refs(root)] == [
        "mask/max@1",
        "embedding/max@1",
        "adapter/max@1",
        "scene/rex@1",
    ]
    for ref in refs.list_refs(root):
        verify(root, ref)


def test_a_name_that_is_taken_stays_with_its_owner(root: Path, line: list[Ref]) -> None:
    made(root, "embedding", "max")
    before = everything(root)
    with pytest.raises(UsageError, match="the name max is taken: embedding/max@1"):
        removal.rename(root, "rex", "max")
    assert {k: v for k, v in everything(root).items() if k in before} == before


def test_an_object_that_was_learned_with_another_keeps_its_name(root: Path, line: list[Ref]) -> None:
    made(root, "adapter", "rex-cup", line[1])
    before = everything(root)
    with pytest.raises(UsageError, match="adapter/rex-cup@1 was made from embedding/rex@1"):
        removal.rename(root, "rex", "max")
    assert everything(root) == before


def test_leftovers_of_a_dead_process_go_with_the_next_write(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root.parent / ".objtune" / "tmp"
    folder.mkdir(parents=True)
    pid = os.fork()
    if not pid:
        (folder / temp_files.temp_name()).write_bytes(b"half")
        os._exit(0)
    os.waitpid(pid, 0)
    mine, foreign, ancient = folder / temp_files.temp_name(), folder / f"ffffffff.{pid}.{'0' * 32}", folder / "ancient"
    for path in (mine, foreign, ancient):
        path.write_bytes(b"")
    os.utime(ancient, (1e9, 1e9))
    assert len(temp_files.find_orphaned(folder)) == 2
    monkeypatch.setattr(temp_files, "_cleaned", set())
    made(root, "mask", "rex")
    assert sorted(folder.iterdir()) == sorted([mine, foreign])  # alive, and another machine's: only age tells


def test_leavings_are_old_files_that_belong_to_nothing(root: Path) -> None:
    project = Project(root.parent)
    ref = made(root, "mask", "rex")
    for path in (
        project.states / "run.safetensors",
        project.folder / ".objtune/hashes/00.json",
        root / "mask/rex/v001/overlay.png",
        root / "mask/rex/v009/overlay.png",
    ):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
    assert garbage.find_garbage(project, 0) == []
    found = garbage.find_garbage(project, LATER)
    assert [p.relative_to(root.parent).as_posix() for p in found] == [
        ".objtune/state/run.safetensors",
        ".objtune/hashes/00.json",
        "artifacts/mask/rex/v009",
    ]
    garbage.delete(found)
    assert garbage.find_garbage(project, LATER) == []
    assert ref.path(root).exists()


def test_who_works_and_who_cleans_keep_apart(tmp_path: Path) -> None:
    project = Project(tmp_path)
    with (
        project.lock(),
        project.lock(),
        pytest.raises(BusyError, match="other objtune commands work in"),
        project.lock(alone=True),
    ):
        pass
    with project.lock(alone=True), pytest.raises(BusyError, match="`rm` or `mv` works in"), project.lock():
        pass
    assert list(tmp_path.iterdir()) == []
    with atomic_files.temp_path(project.temporary), project.lock(alone=True):
        pass
