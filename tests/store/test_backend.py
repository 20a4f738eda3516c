"""The contract of a backend, and the whole store on a backend that has neither folders, links, locks nor renames."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from objtune_cli.errors import MissingError, UsageError
from objtune_cli.store import garbage, removal
from objtune_cli.store.artifacts import Record
from objtune_cli.store.backend import Backend, Entry, Local, TakenError
from objtune_cli.store.checkpoints import Checkpoint, list_checkpoints
from objtune_cli.store.refs import Ref
from objtune_cli.store.store import Store

RECORD = Record("mask", "rex", {"rex": "dog"}, {}, {"edge_softness": 0.5}, {})
LATER = 4e9


class Bucket:
    """Objects in memory, as a bucket has them: keys and bytes, one conditional write, prefixes."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.objects = cache, dict[str, bytes]()

    def create(self, key: str, parts: Sequence[Any]) -> None:
        if key in self.objects:
            raise TakenError(key)
        self.objects[key] = b"".join(bytes(part) for part in parts)

    def replace(self, key: str, data: bytes) -> None:
        self.objects[key] = data

    def open(self, key: str) -> BinaryIO:
        if key not in self.objects:
            raise FileNotFoundError(key)
        return io.BytesIO(self.objects[key])

    def stat(self, key: str) -> Entry:
        return Entry(key, len(self.open(key).read()), 1e9)

    def list(self, prefix: str, *, deep: bool = False) -> Iterator[Entry]:
        keys = sorted(key for key in self.objects if key.startswith(prefix))
        heads = {key: prefix + key.removeprefix(prefix).partition("/")[0] for key in keys}
        listed = keys if deep else sorted({head if head == key else f"{head}/" for key, head in heads.items()})
        yield from (Entry(key) if key.endswith("/") else self.stat(key) for key in listed)

    def delete(self, key: str) -> None:
        gone = [k for k in self.objects if k == key or (key.endswith("/") and k.startswith(key))]
        for each in gone:
            del self.objects[each]

    def path(self, key: str) -> Path:
        path = self.cache / key
        if key in self.objects:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.objects[key])
        return path

    def check_writable(self, prefix: str) -> None:
        """Always writable."""

    def find_orphaned(self) -> Sequence[Entry]:
        return []


@pytest.fixture(params=["local", "bucket"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return Local(tmp_path / "project") if request.param == "local" else Bucket(tmp_path / "cache")


def test_a_created_file_is_never_overwritten(backend: Backend) -> None:
    backend.create("artifacts/mask/a/v001.safetensors", [b"one ", memoryview(b"two")])
    with pytest.raises(TakenError):
        backend.create("artifacts/mask/a/v001.safetensors", [b"other"])
    with backend.open("artifacts/mask/a/v001.safetensors") as file:
        assert (file.read(), file.seek(4), file.read()) == (b"one two", 4, b"two")


def test_a_replaced_file_has_the_last_bytes(backend: Backend) -> None:
    for data in (b"one", b"longer", b""):
        backend.replace(".objtune/state/a", data)
        assert backend.open(".objtune/state/a").read() == data
        assert backend.stat(".objtune/state/a").size == len(data)


def test_listings_are_sorted_and_shallow_or_deep(backend: Backend) -> None:
    assert list(backend.list("artifacts/")) == []
    for key in ("artifacts/b/1", "artifacts/a/2", "artifacts/a/1", "artifacts/a/c/3", "other"):
        backend.replace(key, key.encode())
    assert [entry.key for entry in backend.list("artifacts/")] == ["artifacts/a/", "artifacts/b/"]
    assert [entry.name for entry in backend.list("artifacts/a/")] == ["1", "2", "c"]
    deep = list(backend.list("artifacts/", deep=True))
    assert [entry.key for entry in deep] == ["artifacts/a/1", "artifacts/a/2", "artifacts/a/c/3", "artifacts/b/1"]
    assert all(entry == backend.stat(entry.key) and entry.size == len(entry.key) for entry in deep)


def test_deleted_files_are_gone_and_missing_ones_are_no_error(backend: Backend) -> None:
    for key in ("artifacts/a/1", "artifacts/a/c/2", "artifacts/ab"):
        backend.replace(key, b"x")
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
    assert removal.rename(store, "rex", "max")[0] == (mask, Ref("mask", "max", 1))
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
    for step in (1, 2):
        state.save({"step": np.array([step])})
    loaded = state.load()
    assert loaded and loaded["step"].tolist() == [2]
    (unfinished,) = list_checkpoints(store)
    assert unfinished.runs["rex"]["total"] == 2
    backend.replace("artifacts/mask/rex/v009/overlay.png", b"picture")
    assert garbage.find_garbage(store, 0) == []
    found = garbage.find_garbage(store, LATER)
    assert [(entry.key, entry.size > 0) for entry in found] == [
        (unfinished.file, True),
        ("artifacts/mask/rex/v009/", True),
    ]
    garbage.delete(store, found)
    assert state.load() is None and garbage.find_garbage(store, LATER) == []


def test_both_hold_the_same_keys_and_bytes(tmp_path: Path) -> None:
    local, bucket = Local(tmp_path / "project"), Bucket(tmp_path / "cache")
    for backend in (local, bucket):
        refs = chain(Store(backend))
        Store(backend).delete(refs[-1])
    listed = {entry.key: local.open(entry.key).read() for entry in local.list("", deep=True)}
    assert listed == bucket.objects and len(listed) == 4
