"""Artifacts: published whole under the next free version or not at all, and checked when read."""

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from objtune_cli.errors import DamagedError, GateError, MissingError, ResourceError
from objtune_cli.store import artifacts, exclusive_names
from objtune_cli.store.artifacts import Record
from objtune_cli.store.atomic_files import write_file
from objtune_cli.store.refs import Ref
from objtune_cli.store.regular_files import file_sha256
from objtune_cli.store.store import Store

REX = Record(
    "mask", "rex", {"rex": "dog"}, {"photo": {"ref": "", "sha256": "0" * 64}}, {"edge": 0.004}, {}, {"area": 0.25}
)
TENSORS = {
    "rgb": np.arange(48, dtype=np.uint8).reshape(4, 4, 3),
    "mask": np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4),
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.at(tmp_path)


def files(store: Store) -> list[str]:
    """Every file of the project, hidden ones too."""
    return sorted(
        p.relative_to(store.backend.path("")).as_posix() for p in store.backend.path("").rglob("*") if not p.is_dir()
    )


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    one, two = Store.at(tmp_path / "one"), Store.at(tmp_path / "two")
    first = one.create(REX, TENSORS)
    shuffled = replace(REX, config=dict(reversed(REX.config.items())))
    second = two.create(shuffled, dict(reversed(TENSORS.items())))
    assert one.path(first).read_bytes() == two.path(second).read_bytes()


def test_other_content_gives_other_bytes(tmp_path: Path) -> None:
    one, two = Store.at(tmp_path / "one"), Store.at(tmp_path / "two")
    other = TENSORS | {"mask": TENSORS["mask"][::-1]}
    assert one.compute_sha256(one.create(REX, TENSORS)) != two.compute_sha256(two.create(REX, other))


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_published_files_are_read_only_whatever_the_umask(umask: int, store: Store) -> None:
    before = os.umask(umask)
    try:
        path = store.path(store.create(REX, TENSORS))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_versions_count_up_and_old_ones_stay(store: Store) -> None:
    first = store.create(REX, TENSORS)
    digest = store.compute_sha256(first)
    later = [store.create(REX, TENSORS) for _ in range(3)]
    assert [str(r) for r in (first, *later)] == ["mask/rex@1", "mask/rex@2", "mask/rex@3", "mask/rex@4"]
    assert store.compute_sha256(first) == digest
    assert store.read_record(later[-1]).version == 4


def test_a_gap_is_not_filled(store: Store) -> None:
    """A number that was removed by hand must not come back with other content."""
    for _ in range(3):
        store.create(REX, TENSORS)
    store.path(Ref("mask", "rex", 2)).unlink()
    assert store.create(REX, TENSORS).version == 4


def test_eight_writers_lose_nothing(store: Store) -> None:
    def write(writer: int) -> list[int]:
        return [store.create(replace(REX, metrics={"writer": writer, "n": n}), TENSORS).version for n in range(10)]

    with ThreadPoolExecutor(8) as pool:
        numbers = [n for found in pool.map(write, range(8)) for n in found]
    assert sorted(numbers) == list(range(1, 81))
    assert store.list_versions("mask", "rex") == list(range(1, 81))
    told = {
        (r.metrics["writer"], r.metrics["n"]) for r in (store.read_record(Ref("mask", "rex", n)) for n in range(1, 81))
    }
    assert len(told) == 80
    assert len(files(store)) == 80


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int32", "uint8", "bool"])
def test_arrays_come_back_as_they_were(dtype: str, store: Store) -> None:
    values = np.array([[0, 1, 2], [3, 0, 5]]).astype(dtype)
    tensors = {"x": values, "turned": values.T, "scalar": values[1, 2], "none": values[:0], "odd": np.ones(3, np.uint8)}
    ref = store.create(REX, tensors)
    _, found = store.read(ref, store.compute_sha256(ref))
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert np.array_equal(found[name], value)


def test_big_endian_arrays_are_written_little_endian(store: Store) -> None:
    _, found = store.read(store.create(REX, {"x": np.array([1.5, -2], ">f4")}))
    assert found["x"].tolist() == [1.5, -2]


def test_load_gives_the_record(store: Store) -> None:
    record, _ = store.read(store.create(REX, TENSORS))
    assert record == replace(REX, version=1, digest=record.digest)
    assert len(record.digest) == 64


def test_load_checks_the_bytes(store: Store) -> None:
    path = store.path(store.create(REX, TENSORS))
    right = file_sha256(path)
    assert right == hashlib.sha256(path.read_bytes()).hexdigest()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=r"v001\.safetensors is not the file that was recorded"):
        store.read(Ref("mask", "rex", 1), right)


def test_a_renamed_file_is_damage(store: Store) -> None:
    path = store.path(store.create(REX, TENSORS))
    path.rename(path.with_name("v007.safetensors"))
    with pytest.raises(DamagedError, match="says it is mask/rex@1"):
        store.read_record(Ref("mask", "rex", 7))


def test_what_is_not_there_is_missing(store: Store) -> None:
    with pytest.raises(MissingError, match=r"there is no .*v001\.safetensors"):
        store.read_record(Ref("mask", "rex", 1))


def test_existing_finds_the_same_work(store: Store) -> None:
    assert store.find_identical(REX) is None
    first = store.create(REX, TENSORS)
    store.create(replace(REX, config={"edge": 0.5}), TENSORS)
    assert store.find_identical(replace(REX, metrics={"area": 0.9}, tools={"torch": "9"}, version=5)) == first


def test_existing_prefers_the_newest(store: Store) -> None:
    store.create(REX, TENSORS)
    assert store.find_identical(REX) == Ref("mask", "rex", 1)
    store.create(REX, TENSORS)
    assert store.find_identical(REX) == Ref("mask", "rex", 2)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "max"}, {"kind": "prior"}, {"objects": {"rex": "cat"}}, {"inputs": {"photo": {"ref": "", "sha256": "1" * 64}}}, {"inputs": {}},
        {"config": {"edge": 0.005}}, {"config": {"edge": 0.004, "more": 1}}, {"base": {"id": "toybox"}},
    ],
    ids=repr,
)  # fmt: skip
def test_other_work_is_not_reused(change: dict[str, Any], store: Store) -> None:
    store.create(REX, TENSORS)
    assert store.find_identical(replace(REX, **change)) is None


def failing(number: int, after: int = 0) -> Callable[..., Any]:
    """A system call that works `after` times and then fails with an error number."""
    calls = iter(range(after))

    def call(*_args: Any, **_named: Any) -> None:
        if next(calls, None) is None:
            raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_and_leaves_nothing(number: int, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = store.create(REX, TENSORS)
    digest = store.compute_sha256(first)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(number))
        with pytest.raises(ResourceError, match="no space left to write below") as caught:
            store.create(REX, TENSORS)
    assert caught.value.code == 7
    assert files(store) == ["artifacts/mask/rex/v001.safetensors"]
    assert store.compute_sha256(first) == digest
    assert store.create(REX, TENSORS).version == 2


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_closed_disk_is_said(number: int, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exclusive_names, "name_exclusively", failing(number))
    with pytest.raises(ResourceError, match="artifacts cannot be written"):
        store.create(REX, TENSORS)
    assert files(store) == []


def test_other_disk_trouble_has_no_traceback_either(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(ResourceError, match="cannot be written: Input/output error"):
        store.create(REX, TENSORS)
    assert files(store) == []


def test_a_file_in_the_way_is_said(store: Store) -> None:
    store.backend.path("artifacts").write_text("not a folder")
    with pytest.raises(ResourceError, match="artifacts cannot be written"):
        store.create(REX, TENSORS)
    assert store.backend.path("artifacts").read_text() == "not a folder"


def test_an_interrupted_write_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        store.create(REX, TENSORS)
    assert files(store) == []


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("metrics", [{"loss": NAN}, {"loss": INF}, {"leakage": [[0.5, NAN]]}, {"by": {"a": -INF}}])
def test_a_metric_that_is_not_finite_is_not_published(store: Store, metrics: dict) -> None:
    with pytest.raises(GateError, match=f"{next(iter(metrics))} contains NaN or infinite values"):
        store.create(replace(REX, metrics=metrics), TENSORS)
    assert files(store) == []


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "bfloat16"])
def test_a_tensor_that_is_not_finite_is_not_published(store: Store, kind: str, value: float) -> None:
    bad = torch.ones(3, 3, dtype=getattr(torch, kind))
    bad[1, 2] = value
    with pytest.raises(GateError, match="bad contains NaN or infinite values"):
        store.create(REX, {"good": torch.ones(2), "bad": bad})
    assert files(store) == []
    largest = torch.full((3,), torch.finfo(bad.dtype).max, dtype=bad.dtype)
    assert store.find_bad_tensor(store.create(REX, {"largest": largest, "none": largest[:0]})) == ""


def test_a_bad_tensor_of_an_earlier_version_is_found(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "check_finite", lambda record, arrays: None)
    bad = torch.tensor([1.0, NAN], dtype=torch.bfloat16)
    assert store.find_bad_tensor(store.create(REX, {"a": torch.ones(2), "b": bad, "c": torch.ones(1)})) == "b"


def test_flushed_before_it_is_visible(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order of a publish: the bytes reach the disk, then the name appears, then the folder reaches the disk."""
    said: list[str] = []
    fsync, link = os.fsync, os.link

    def flush(handle: int) -> None:
        said.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def publish_name(*args: Any) -> None:
        said.append("link")
        link(*args)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "link", publish_name)
    store.create(REX, TENSORS)
    assert said == ["file", "link", "folder"]


@pytest.mark.parametrize("inside", [True, False])
def test_a_file_is_replaced_whole_or_not_at_all(inside: bool, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "artifacts/scene/x/v001/a.png"
    path = store.backend.path(key)

    def write(data: bytes) -> None:
        store.write(key, data) if inside else write_file(path, data)

    write(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(errno.ENOSPC))
        with pytest.raises(ResourceError, match=r"no space left to write below .*a\.png"):
            write(b"new")
    assert path.read_bytes() == b"old"
    write(b"new")
    assert path.read_bytes() == b"new"
    assert files(store) == ["artifacts/scene/x/v001/a.png"]
