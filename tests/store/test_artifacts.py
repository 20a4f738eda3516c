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
from objtune_cli.store import artifacts, atomic_files, refs
from objtune_cli.store.artifacts import Record, file_sha256, find_identical, load, publish, read_record, write_file
from objtune_cli.store.refs import Ref

REX = Record(
    "mask", "rex", {"rex": "dog"}, {"photo": {"ref": "", "sha256": "0" * 64}}, {"edge": 0.004}, {}, {"area": 0.25}
)
TENSORS = {
    "rgb": np.arange(48, dtype=np.uint8).reshape(4, 4, 3),
    "mask": np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


def files(root: Path) -> list[str]:
    """Every file of the project, hidden ones too."""
    return sorted(p.relative_to(root.parent).as_posix() for p in root.parent.rglob("*") if not p.is_dir())


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "one" / "artifacts", tmp_path / "two" / "artifacts"
    first = publish(one, REX, TENSORS)
    shuffled = replace(REX, config=dict(reversed(REX.config.items())))
    second = publish(two, shuffled, dict(reversed(TENSORS.items())))
    assert first.path(one).read_bytes() == second.path(two).read_bytes()


def test_other_content_gives_other_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "one" / "artifacts", tmp_path / "two" / "artifacts"
    other = TENSORS | {"mask": TENSORS["mask"][::-1]}
    assert file_sha256(publish(one, REX, TENSORS).path(one)) != file_sha256(publish(two, REX, other).path(two))


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_published_files_are_read_only_whatever_the_umask(umask: int, root: Path) -> None:
    before = os.umask(umask)
    try:
        path = publish(root, REX, TENSORS).path(root)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_versions_count_up_and_old_ones_stay(root: Path) -> None:
    first = publish(root, REX, TENSORS)
    digest = file_sha256(first.path(root))
    later = [publish(root, REX, TENSORS) for _ in range(3)]
    assert [str(r) for r in (first, *later)] == ["mask/rex@1", "mask/rex@2", "mask/rex@3", "mask/rex@4"]
    assert file_sha256(first.path(root)) == digest
    assert read_record(root, later[-1]).version == 4


def test_a_gap_is_not_filled(root: Path) -> None:
    """A number that was removed by hand must not come back with other content."""
    for _ in range(3):
        publish(root, REX, TENSORS)
    Ref("mask", "rex", 2).path(root).unlink()
    assert publish(root, REX, TENSORS).version == 4


def test_eight_writers_lose_nothing(root: Path) -> None:
    def write(writer: int) -> list[int]:
        return [publish(root, replace(REX, metrics={"writer": writer, "n": n}), TENSORS).version for n in range(10)]

    with ThreadPoolExecutor(8) as pool:
        numbers = [n for found in pool.map(write, range(8)) for n in found]
    assert sorted(numbers) == list(range(1, 81))
    assert refs.list_versions(root, "mask", "rex") == list(range(1, 81))
    told = {
        (r.metrics["writer"], r.metrics["n"]) for r in (read_record(root, Ref("mask", "rex", n)) for n in range(1, 81))
    }
    assert len(told) == 80
    assert len(files(root)) == 80


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int32", "uint8", "bool"])
def test_arrays_come_back_as_they_were(dtype: str, root: Path) -> None:
    values = np.array([[0, 1, 2], [3, 0, 5]]).astype(dtype)
    tensors = {"x": values, "turned": values.T, "scalar": values[1, 2], "none": values[:0], "odd": np.ones(3, np.uint8)}
    ref = publish(root, REX, tensors)
    _, found = load(root, ref, file_sha256(ref.path(root)))
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert np.array_equal(found[name], value)


def test_big_endian_arrays_are_written_little_endian(root: Path) -> None:
    _, found = load(root, publish(root, REX, {"x": np.array([1.5, -2], ">f4")}))
    assert found["x"].tolist() == [1.5, -2]


def test_load_gives_the_record(root: Path) -> None:
    record, _ = load(root, publish(root, REX, TENSORS))
    assert record == replace(REX, version=1, digest=record.digest)
    assert len(record.digest) == 64


def test_load_checks_the_bytes(root: Path) -> None:
    path = publish(root, REX, TENSORS).path(root)
    right = file_sha256(path)
    assert right == hashlib.sha256(path.read_bytes()).hexdigest()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=r"v001\.safetensors is not the file that was recorded"):
        load(root, Ref("mask", "rex", 1), right)


def test_a_renamed_file_is_damage(root: Path) -> None:
    path = publish(root, REX, TENSORS).path(root)
    path.rename(path.with_name("v007.safetensors"))
    with pytest.raises(DamagedError, match="says it is mask/rex@1"):
        read_record(root, Ref("mask", "rex", 7))


def test_what_is_not_there_is_missing(root: Path) -> None:
    with pytest.raises(MissingError, match=r"there is no .*v001\.safetensors"):
        read_record(root, Ref("mask", "rex", 1))


def test_existing_finds_the_same_work(root: Path) -> None:
    assert find_identical(root, REX) is None
    first = publish(root, REX, TENSORS)
    publish(root, replace(REX, config={"edge": 0.5}), TENSORS)
    assert find_identical(root, replace(REX, metrics={"area": 0.9}, tools={"torch": "9"}, version=5)) == first


def test_existing_prefers_the_newest(root: Path) -> None:
    publish(root, REX, TENSORS)
    assert find_identical(root, REX) == Ref("mask", "rex", 1)
    publish(root, REX, TENSORS)
    assert find_identical(root, REX) == Ref("mask", "rex", 2)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "max"}, {"kind": "prior"}, {"objects": {"rex": "cat"}}, {"inputs": {"photo": {"ref": "", "sha256": "1" * 64}}}, {"inputs": {}},
        {"config": {"edge": 0.005}}, {"config": {"edge": 0.004, "more": 1}}, {"base": {"id": "toybox"}},
    ],
    ids=repr,
)  # fmt: skip
def test_other_work_is_not_reused(change: dict[str, Any], root: Path) -> None:
    publish(root, REX, TENSORS)
    assert find_identical(root, replace(REX, **change)) is None


def failing(number: int, after: int = 0) -> Callable[..., Any]:
    """A system call that works `after` times and then fails with an error number."""
    calls = iter(range(after))

    def call(*_args: Any, **_named: Any) -> None:
        if next(calls, None) is None:
            raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_and_leaves_nothing(number: int, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = publish(root, REX, TENSORS)
    digest = file_sha256(first.path(root))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(number))
        with pytest.raises(ResourceError, match="no space left to write below") as caught:
            publish(root, REX, TENSORS)
    assert caught.value.code == 7
    assert files(root) == ["artifacts/mask/rex/v001.safetensors"]
    assert file_sha256(first.path(root)) == digest
    assert publish(root, REX, TENSORS).version == 2


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_closed_disk_is_said(number: int, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic_files, "name_exclusively", failing(number))
    with pytest.raises(ResourceError, match="artifacts cannot be written"):
        publish(root, REX, TENSORS)
    assert files(root) == []


def test_other_disk_trouble_has_no_traceback_either(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(ResourceError, match="cannot be written: Input/output error"):
        publish(root, REX, TENSORS)
    assert files(root) == []


def test_a_file_in_the_way_is_said(root: Path) -> None:
    root.write_text("not a folder")
    with pytest.raises(ResourceError, match="artifacts cannot be written"):
        publish(root, REX, TENSORS)
    assert root.read_text() == "not a folder"


def test_an_interrupted_write_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        publish(root, REX, TENSORS)
    assert files(root) == []


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("metrics", [{"loss": NAN}, {"loss": INF}, {"leakage": [[0.5, NAN]]}, {"by": {"a": -INF}}])
def test_a_metric_that_is_not_finite_is_not_published(root: Path, metrics: dict) -> None:
    with pytest.raises(GateError, match=f"{next(iter(metrics))} holds NaN or infinite values"):
        publish(root, replace(REX, metrics=metrics), TENSORS)
    assert files(root) == []


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "bfloat16"])
def test_a_tensor_that_is_not_finite_is_not_published(root: Path, kind: str, value: float) -> None:
    bad = torch.ones(3, 3, dtype=getattr(torch, kind))
    bad[1, 2] = value
    with pytest.raises(GateError, match="bad holds NaN or infinite values"):
        publish(root, REX, {"good": torch.ones(2), "bad": bad})
    assert files(root) == []
    largest = torch.full((3,), torch.finfo(bad.dtype).max, dtype=bad.dtype)
    assert artifacts.find_bad_tensor(root, publish(root, REX, {"largest": largest, "none": largest[:0]})) == ""


def test_a_bad_tensor_of_an_earlier_version_is_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "check_finite", lambda record, arrays: None)
    bad = torch.tensor([1.0, NAN], dtype=torch.bfloat16)
    assert (
        artifacts.find_bad_tensor(root, publish(root, REX, {"a": torch.ones(2), "b": bad, "c": torch.ones(1)})) == "b"
    )


def test_flushed_before_it_is_visible(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    publish(root, REX, TENSORS)
    assert said == ["file", "link", "folder"]


@pytest.mark.parametrize("inside", [True, False])
def test_write_file_replaces_whole_or_not_at_all(inside: bool, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = root / "scene" / "x" / "v001" / "a.png"
    store = root if inside else None
    write_file(path, b"old", store)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(errno.ENOSPC))
        with pytest.raises(ResourceError, match=r"no space left to write below .*a\.png"):
            write_file(path, b"new", store)
    assert path.read_bytes() == b"old"
    write_file(path, b"new", store)
    assert path.read_bytes() == b"new"
    assert files(root) == ["artifacts/scene/x/v001/a.png"]
