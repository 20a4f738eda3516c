"""The contract of a backend, and the whole store on a disk and on objects in memory; `test_object_storage` runs it on a server."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from objtune_cli.errors import BusyError, MissingError, UsageError
from objtune_cli.store import garbage, removal
from objtune_cli.store.artifacts import Record
from objtune_cli.store.backend import Backend, Local, TakenError
from objtune_cli.store.checkpoints import Checkpoint, list_checkpoints
from objtune_cli.store.refs import Ref
from objtune_cli.store.remote_backend import Remote
from objtune_cli.store.store import Store

RECORD = Record("mask", "rex", {"rex": "dog"}, {}, {"edge_softness": 0.5}, {})
LATER = 4e9


@pytest.fixture(params=["local", "memory"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return Local(tmp_path / "project") if request.param == "local" else Remote(f"memory://{uuid.uuid4().hex}")


def test_a_created_file_is_never_overwritten_and_equal_bytes_are_fine(backend: Backend) -> None:
    for parts in ([b"one ", memoryview(b"two")], [b"one two"]):
        backend.create("artifacts/mask/a/v001.safetensors", parts)
    for other in (b"other", b"one two!", b"one", b""):
        with pytest.raises(TakenError):
            backend.create("artifacts/mask/a/v001.safetensors", [other])
    assert backend.read("artifacts/mask/a/v001.safetensors", 4, 2) == b"tw"
    with backend.open("artifacts/mask/a/v001.safetensors") as file:
        assert (file.read(), file.seek(4), file.read()) == (b"one two", 4, b"two")


def test_a_picture_that_is_written_again_has_the_last_bytes(backend: Backend) -> None:
    for data in (b"one", b"longer", b""):
        Store(backend).write("artifacts/mask/a/v001/overlay.png", data)
        assert backend.read("artifacts/mask/a/v001/overlay.png") == data
        assert backend.stat("artifacts/mask/a/v001/overlay.png").size == len(data)


def test_listings_are_sorted_and_shallow_or_deep(backend: Backend) -> None:
    assert list(backend.list("artifacts/")) == []
    for key in ("artifacts/b/1", "artifacts/a/2", "artifacts/a/1", "artifacts/a/c/3", "other"):
        backend.create(key, [key.encode()])
    assert [entry.key for entry in backend.list("artifacts/")] == ["artifacts/a/", "artifacts/b/"]
    assert [entry.name for entry in backend.list("artifacts/a/")] == ["1", "2", "c"]
    deep = list(backend.list("artifacts/", deep=True))
    assert [entry.key for entry in deep] == ["artifacts/a/1", "artifacts/a/2", "artifacts/a/c/3", "artifacts/b/1"]
    assert all(
        entry.size == backend.stat(entry.key).size
        and abs(entry.modified - backend.now()) < 60
        and entry.size == len(entry.key)
        for entry in deep
    )


def test_deleted_files_are_gone_and_missing_ones_are_no_error(backend: Backend) -> None:
    for key in ("artifacts/a/1", "artifacts/a/c/2", "artifacts/ab"):
        backend.create(key, [b"x"])
    for key in ("artifacts/a/", "artifacts/a/", "artifacts/none"):
        backend.delete(key)
    assert [entry.key for entry in backend.list("artifacts/", deep=True)] == ["artifacts/ab"]
    backend.delete("artifacts/ab")
    for read in (backend.open, backend.stat):
        with pytest.raises(FileNotFoundError):
            read("artifacts/ab")


def chain(store: Store) -> list[Ref]:
    """A mask with an image, an embedding from it, and an adapter from that."""
    made = [store.create(RECORD, {"mask": np.ones((2, 2), np.uint8)})]
    store.write_image(made[0], "overlay.png", b"picture")
    for kind, role in (("embedding", "mask"), ("adapter", "embedding.rex")):
        inputs = {role: {"ref": str(made[-1]), "sha256": store.verify(made[-1])[1]}}
        record = Record(kind, "rex", {"rex": "dog"}, inputs, {}, {})
        made.append(store.create(record, {"token.rex": np.ones(3, np.float32)}))
    return made


def test_the_whole_store_works_on_it(backend: Backend) -> None:
    store = Store(backend)
    mask, embedding, adapter = chain(store)
    newer = store.create(RECORD, {"mask": np.zeros((2, 2), np.uint8)})
    assert list(store.list()) == [mask, newer, embedding, adapter]
    assert store.find_identical(RECORD) == newer and store.find("rex@1", ("mask", "prior")) == mask
    assert store.read(mask)[1]["mask"].tolist() == [[1, 1], [1, 1]] and store.find_bad_tensor(adapter) == ""
    assert [path.read_bytes() for path in store.list_images(mask)] == [b"picture"]
    with pytest.raises(UsageError, match="embedding/rex@1 was made from mask/rex@1"):
        store.delete(mask)
    assert removal.rename_object(store, "rex", "max")[0] == (mask, Ref("mask", "max", 1))
    assert store.resolve(mask) == Ref("mask", "max", 1) and list(store.list_names("mask")) == ["max"]
    assert [path.read_bytes() for path in store.list_images(Ref("mask", "max", 1))] == [b"picture"]
    store.delete(Ref("mask", "max", 2))
    with pytest.raises(MissingError, match="was removed"):
        store.resolve(Ref("mask", "max", 2))
    assert store.create(replace(RECORD, name="max"), {"mask": np.ones(1)}).version == 3
    assert removal.find_unreferenced(store, LATER) == []
    assert [store.verify(ref)[0].ref for ref in store.list()] == list(store.list())


def test_checkpoints_and_garbage_are_keys_of_it(backend: Backend) -> None:
    store, state = Store(backend), Checkpoint(Store(backend), "a" * 64)
    assert state.load() is None
    state.about = {"runs": {"rex": {"step": 1, "total": 2, "inputs": ""}}, "config": {}, "base": {}, "computed": ""}
    for step in (1, 2, 3):
        state.save({"step": np.array([step])})
    loaded = state.load()
    assert loaded and loaded["step"].tolist() == [3]
    (unfinished,) = list_checkpoints(store)
    assert unfinished.runs["rex"]["total"] == 2
    backend.create("artifacts/mask/rex/v009/overlay.png", [b"picture"])
    assert garbage.find_garbage(store, 0) == []
    found = garbage.find_garbage(store, LATER)
    assert [(entry.key, entry.size > 0) for entry in found] == [
        (unfinished.file.replace("3.", "2."), True),
        (unfinished.file, True),
        ("artifacts/mask/rex/v009/", True),
    ]
    garbage.delete(store, found)
    assert state.load() is None and garbage.find_garbage(store, LATER) == []


def test_both_hold_the_same_keys_and_bytes(backend: Backend, tmp_path: Path) -> None:
    local, other = Local(tmp_path / "other"), backend
    for each in (local, other):
        refs = chain(Store(each))
        Store(each).delete(refs[-1])
    listed, remote = (
        {entry.key: each.read(entry.key) for entry in each.list("", deep=True)} for each in (local, other)
    )
    assert listed == remote and len(listed) == 4


def saved(state: Checkpoint) -> int:
    loaded = state.load()
    return int(loaded["step"]) if loaded else 0


def test_a_run_that_another_process_went_on_with_stops(backend: Backend) -> None:
    """A stopped process that wakes: after the next save of the other one, after many, and after its end."""
    sleeper, other = (Checkpoint(Store(backend), "a" * 64) for _ in range(2))
    assert saved(sleeper) == 0
    sleeper.save({"step": np.array(1)})
    assert saved(other) == 1
    for step in (2, 3, 4):
        other.save({"step": np.array(step)})
        with pytest.raises(BusyError, match="another process went on") as caught:
            sleeper.save({"step": np.array(100)})
        assert caught.value.code == 8 and saved(Checkpoint(Store(backend), "a" * 64)) == step
    assert len(list(backend.list(".objtune/state/", deep=True))) == 2
    other.discard()
    sleeper.save({"step": np.array(100)})
    sleeper.discard()
    assert not other.exists() and list(backend.list(".objtune/state/", deep=True)) == []


def test_two_processes_that_begin_the_same_run_are_told_apart(backend: Backend) -> None:
    first, second = (Checkpoint(Store(backend), "a" * 64) for _ in range(2))
    assert saved(first) == saved(second) == 0
    first.save({"step": np.array(1)})
    with pytest.raises(BusyError):
        second.save({"step": np.array(2)})


def test_an_earlier_file_stands_in_for_a_damaged_one_and_older_projects_have_one_file(backend: Backend) -> None:
    state = Checkpoint(Store(backend), "a" * 64)
    state.save({"step": np.array(1)})
    (unnumbered,) = (entry.key for entry in backend.list(".objtune/state/", deep=True))
    data, old = backend.read(unnumbered), f".objtune/state/{'a' * 32}.safetensors"
    state.discard()
    backend.create(old, [data])
    assert saved(state) == 1 and state.name == backend.locate(old)
    state.save({"step": np.array(2)})
    assert saved(state) == 2 and len(list(backend.list(".objtune/state/", deep=True))) == 2
    backend.delete(f".objtune/state/{'a' * 32}/000000001.safetensors")
    backend.create(f".objtune/state/{'a' * 32}/000000001.safetensors", [data[:-3]])
    assert saved(state) == 1 and state.exists()
    state.save({"step": np.array(3)})
    state.save({"step": np.array(4)})
    assert saved(state) == 4 and [entry.name for entry in backend.list(f".objtune/state/{'a' * 32}/")] == [
        "000000002.safetensors",
        "000000003.safetensors",
    ]


def published(store: Store, value: float = 1, record: Record = RECORD) -> Ref:
    return store.create(record, {"mask": np.full(4, value)}, accepts=lambda record: True)


def test_equal_work_has_one_version(backend: Backend) -> None:
    store = Store(backend)
    assert published(store, 1) == published(store, 2) == Ref("mask", "rex", 1)
    assert published(store, 1, replace(RECORD, config={"edge_softness": 1.0})).version == 2
    assert store.create(RECORD, {"mask": np.full(4, 3.0)}).version == 3  # as `--force`
    assert store.create(RECORD, {"mask": np.full(4, 3.0)}, accepts=lambda record: record.version != 3).version == 1


def test_equal_work_by_sixteen_writers_at_once_has_one_version(backend: Backend) -> None:
    """Values differ as on different machines; whoever is first counts."""
    with ThreadPoolExecutor(16) as pool:
        refs = list(pool.map(lambda i: published(Store(backend), i), range(16)))
    assert set(refs) == {Ref("mask", "rex", 1)} and len(list(Store(backend).list())) == 1
