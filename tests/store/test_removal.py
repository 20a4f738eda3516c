"""rm, gc and mv: what may go, what stays, and that a number is given once."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objtune_cli.errors import BusyError, DamagedError, MissingError, UsageError
from objtune_cli.store import atomic_files, garbage, refs, removal, temp_files
from objtune_cli.store.artifacts import Record
from objtune_cli.store.project import Project
from objtune_cli.store.refs import Ref
from objtune_cli.store.store import Store

LATER = 4e9
"""As an age limit: everything is older."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.at(tmp_path)


def made(store: Store, kind: str, name: str, *sources: Ref, **changes: Any) -> Ref:
    """An artifact made from others."""
    inputs = {
        f"{source.kind}.{source.name}" if kind != "embedding" else "mask": given(store, source) for source in sources
    }
    tensors = {f"token.{name}": np.ones(3, np.float32)} if kind == "adapter" else {"x": np.ones(3, np.uint8)}
    return store.create(replace(Record(kind, name, {name: "dog"}, inputs, {}, {}), **changes), tensors)


def given(store: Store, ref: Ref) -> dict[str, str]:
    return {"ref": str(ref), "sha256": store.compute_sha256(ref)}


@pytest.fixture
def line(store: Store) -> list[Ref]:
    """mask, embedding and adapter of rex, and a scene of it."""
    mask = made(store, "mask", "rex")
    embedding = made(store, "embedding", "rex", mask)
    adapter = made(store, "adapter", "rex", embedding)
    return [mask, embedding, adapter, made(store, "scene", "rex", adapter)]


def everything(store: Store) -> dict[str, bytes]:
    return {
        p.relative_to(store.backend.path("artifacts")).as_posix(): p.read_bytes()
        for p in sorted(store.backend.path("artifacts").rglob("*"))
        if p.is_file()
    }


def test_a_removed_number_is_never_given_again(store: Store) -> None:
    for _ in range(3):
        made(store, "mask", "rex")
    removal.remove(store, [Ref("mask", "rex", 3), Ref("mask", "rex", 1)])
    assert store.list_versions("mask", "rex") == [2]
    assert made(store, "mask", "rex") == Ref("mask", "rex", 4)
    removal.remove(store, store.list())
    assert store.list_names("mask") == []
    assert made(store, "mask", "rex") == Ref("mask", "rex", 5)


def test_a_tombstone_says_what_was_there(store: Store) -> None:
    ref = made(store, "mask", "rex")
    digest = store.compute_sha256(ref)
    removal.remove(store, [ref])
    assert everything(store) == {
        "mask/rex/v001.gone": f'{{"moved":"","ref":"mask/rex@1","sha256":"{digest}"}}\n'.encode()
    }
    with pytest.raises(MissingError, match=r"mask/rex@1 was removed"):
        store.resolve(ref)


def test_a_removed_number_is_not_given_to_who_looked_before(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between looking for a free number and taking it, another writer publishes under it and removes that again."""
    taken = Store.list_files
    looked: list[list[int]] = []

    def slow(*args: Any) -> list[int]:
        found = taken(*args)
        if not looked:
            looked.append(found)
            removal.remove(store, [made(store, "mask", "rex")])
        return found

    monkeypatch.setattr(Store, "list_files", slow)
    assert made(store, "mask", "rex") == Ref("mask", "rex", 2)
    assert store.list_versions("mask", "rex") == [2]


def test_what_others_were_made_from_stays(store: Store, line: list[Ref]) -> None:
    before = everything(store)
    for gone in (line[:1], line[:2], line[1:2], line[:3]):
        with pytest.raises(UsageError, match=r"was made from") as caught:
            removal.remove(store, gone)
        assert "--force" in caught.value.hint
    assert everything(store) == before
    removal.remove(store, line)
    assert store.list() == []


def test_force_removes_it_all_the_same_and_the_rest_stays_sound(store: Store, line: list[Ref]) -> None:
    removal.remove(store, line[:1], force=True)
    assert store.list() == [line[1], line[2], line[3]]
    grave = store.read_tombstone(line[0])
    assert grave and grave["sha256"] == store.read_record(line[1]).inputs["mask"]["sha256"]


def test_pictures_go_with_their_artifact(store: Store) -> None:
    ref, other = made(store, "mask", "rex"), made(store, "mask", "rex")
    for each in (ref, other):
        folder = store.path(each).with_suffix("")
        folder.mkdir()
        (folder / "overlay.png").write_bytes(b"picture")
    removal.remove(store, [ref])
    assert not store.path(ref).with_suffix("").exists()
    assert (store.path(other).with_suffix("") / "overlay.png").exists()


@pytest.mark.parametrize("step", ["os.unlink", "os.link"])
def test_a_removal_that_was_cut_short_is_finished_by_the_same_again(
    step: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = made(store, "mask", "rex")

    def killed(*_args: Any, **_named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path if step == "os.unlink" else os, step.partition(".")[2], killed)
        with pytest.raises(KeyboardInterrupt, match="^$"):
            removal.remove(store, [ref])
    assert store.verify(ref)[0].name == "rex"  # old state: whole
    removal.remove(store, [ref])
    assert store.list() == []
    assert made(store, "mask", "rex").version == 2


def test_gc_takes_what_is_superseded_and_served_no_result(store: Store, line: list[Ref]) -> None:
    lonely = [made(store, kind, "max") for kind in ("mask", "embedding", "prior", "adapter", "scene") for _ in range(2)]
    newer = made(store, "mask", "rex")
    assert removal.find_unreferenced(store, 0) == []
    found = removal.find_unreferenced(store, LATER)
    assert found == [Ref("mask", "max", 1), Ref("embedding", "max", 1), Ref("prior", "max", 1)]
    assert not set(found) & {*line, newer}
    removal.remove(store, found)
    assert set(store.list()) == {*line, newer, *lonely} - set(found)


def test_gc_keeps_through_all_stages(store: Store, line: list[Ref]) -> None:
    """The scene and the adapter hold the first mask, although three newer ones exist."""
    for _ in range(3):
        made(store, "mask", "rex")
        made(store, "embedding", "rex")
    assert removal.find_unreferenced(store, LATER) == [
        Ref("mask", "rex", 2),
        Ref("mask", "rex", 3),
        Ref("embedding", "rex", 2),
        Ref("embedding", "rex", 3),
    ]


def test_gc_keeps_what_is_young(store: Store) -> None:
    old, young, newest = (made(store, "mask", "rex") for _ in range(3))
    os.utime(store.path(old), (1e9, 1e9))
    assert removal.find_unreferenced(store, 1e9 + 1) == [old]
    assert removal.find_unreferenced(store, LATER) == [old, young]
    assert newest in store.list()


def test_gc_takes_nothing_while_a_record_cannot_be_read(store: Store) -> None:
    made(store, "mask", "rex")
    path = store.path(made(store, "mask", "rex"))
    path.chmod(0o644)
    path.write_bytes(b"broken")
    with pytest.raises(DamagedError, match=r"v002\.safetensors"):
        removal.find_unreferenced(store, LATER)


def test_a_renamed_object_is_what_would_have_been_made_under_that_name(
    store: Store, line: list[Ref], tmp_path: Path
) -> None:
    other = Store.at(tmp_path / "other")
    made(other, "adapter", "max", made(other, "embedding", "max", made(other, "mask", "max")))
    moved = removal.rename_object(store, "rex", "max")
    assert [f"{a} {b}" for a, b in moved] == [f"{kind}/rex@1 {kind}/max@1" for kind in ("mask", "embedding", "adapter")]
    for kind in ("mask", "embedding", "adapter"):
        ref = Ref(kind, "max", 1)
        assert store.path(ref).read_bytes() == other.path(ref).read_bytes()
    assert set(store.read(Ref("adapter", "max", 1))[1]) == {"token.max"}


def test_old_refs_lead_to_the_renamed_object(store: Store, line: list[Ref]) -> None:
    removal.rename_object(store, "rex", "max")
    removal.rename_object(store, "max", "bob")
    scene = store.read_record(line[3])
    assert scene.inputs["adapter.rex"]["ref"] == "adapter/rex@1"
    assert store.resolve(refs.parse("adapter/rex@1")) == Ref("adapter", "bob", 1)
    grave = store.read_tombstone(line[2])
    assert grave and grave["sha256"] == scene.inputs["adapter.rex"]["sha256"]
    assert store.list_names("adapter") == ["bob"]
    assert made(store, "adapter", "rex").version == 2


def test_a_rename_that_was_cut_short_is_finished_by_the_same_again(
    store: Store, line: list[Ref], monkeypatch: pytest.MonkeyPatch
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
                removal.rename_object(store, "rex", "max")
    removal.rename_object(store, "rex", "max")
    assert [str(ref) for ref in store.list()] == [
        "mask/max@1",
        "embedding/max@1",
        "adapter/max@1",
        "scene/rex@1",
    ]
    for ref in store.list():
        store.verify(ref)


def test_a_name_that_is_taken_stays_with_its_owner(store: Store, line: list[Ref]) -> None:
    made(store, "embedding", "max")
    before = everything(store)
    with pytest.raises(UsageError, match="the name max is taken: embedding/max@1"):
        removal.rename_object(store, "rex", "max")
    assert {k: v for k, v in everything(store).items() if k in before} == before


def test_an_object_that_was_learned_with_another_keeps_its_name(store: Store, line: list[Ref]) -> None:
    made(store, "adapter", "rex-cup", line[1])
    before = everything(store)
    with pytest.raises(UsageError, match="adapter/rex-cup@1 was made from embedding/rex@1"):
        removal.rename_object(store, "rex", "max")
    assert everything(store) == before


def test_leftovers_of_a_dead_process_go_with_the_next_write(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store.backend.path(".objtune") / "tmp"
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
    made(store, "mask", "rex")
    assert sorted(folder.iterdir()) == sorted([mine, foreign])  # alive, and another machine's: only age tells


def test_leavings_are_old_files_that_belong_to_nothing(store: Store) -> None:
    project = Project(store.backend.path(""))
    ref = made(store, "mask", "rex")
    for path in (
        store.backend.path(".objtune/state") / "run.safetensors",
        project.folder / ".objtune/hashes/00.json",
        store.backend.path("artifacts/mask/rex/v001/overlay.png"),
        store.backend.path("artifacts/mask/rex/v009/overlay.png"),
    ):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
    assert garbage.find_garbage(store, 0) == []
    found = garbage.find_garbage(store, LATER)
    assert [entry.key for entry in found] == [
        ".objtune/state/run.safetensors",
        ".objtune/hashes/00.json",
        "artifacts/mask/rex/v009/",
    ]
    garbage.delete(store, found)
    assert garbage.find_garbage(store, LATER) == []
    assert store.path(ref).exists()


def test_who_works_and_who_cleans_keep_apart(tmp_path: Path) -> None:
    project = Project(tmp_path)
    with (
        project.lock(),
        project.lock(),
        pytest.raises(BusyError, match="other objtune commands work in"),
        project.lock(exclusive=True),
    ):
        pass
    with project.lock(exclusive=True), pytest.raises(BusyError, match="`rm` or `mv` works in"), project.lock():
        pass
    assert list(tmp_path.iterdir()) == []
    with atomic_files.temp_path(project.temporary), project.lock(exclusive=True):
        pass
