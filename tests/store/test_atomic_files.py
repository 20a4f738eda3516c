"""Disks that lack something: hard links, exclusive renames, locks, permissions, flushing, room, or that lie elsewhere."""

import errno
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objtune_cli.errors import BusyError, ResourceError
from objtune_cli.store import atomic_files, exclusive_names, garbage, removal, temp_files
from objtune_cli.store.backend import Local, TakenError
from objtune_cli.store.checkpoints import Checkpoint
from objtune_cli.store.disk_reservation import DiskReservation
from objtune_cli.store.project import Project
from objtune_cli.store.store import Store
from tests.faults.test_store_faults import REX, child, crashing, ended, kept, sound

DATA = {"x": np.arange(9, dtype=np.uint8)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.at(tmp_path)


def refusing(number: int) -> Callable[..., Any]:
    def call(*_args: Any, **_named: Any) -> None:
        raise OSError(number, os.strerror(number))

    return call


def without_links(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A disk without hard links: with an exclusive rename; without one; and without locks either."""
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    if how != "rename":
        monkeypatch.setattr(exclusive_names, "_rename_exclusively", lambda *_: False)
    if how == "claim, no locks":
        monkeypatch.setattr("fcntl.flock", refusing(errno.ENOLCK))


WAYS = ("rename", "claim", "claim, no locks")


@pytest.mark.parametrize("number", sorted(exclusive_names.NO_HARD_LINKS))
def test_no_hard_links(number: int, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = (
        Store.at(store.backend.path("whole")).path(Store.at(store.backend.path("whole")).create(REX, DATA)).read_bytes()
    )
    monkeypatch.setattr(os, "link", refusing(number))
    assert store.path(store.create(REX, DATA)).read_bytes() == wanted
    assert store.create(REX, DATA).version == 2
    assert len(sound(store)) == 2
    assert sorted(p.name for p in (store.backend.path("artifacts/mask/rex")).iterdir()) == [
        "v001.safetensors",
        "v002.safetensors",
    ]
    assert list(store.backend.path(".objtune/tmp").iterdir()) == []


@pytest.mark.parametrize("how", WAYS)
def test_nothing_is_ever_overwritten(how: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that looked for a number before another one took it."""
    first = store.create(REX, DATA)
    before = store.path(first).read_bytes()
    without_links(monkeypatch, how)
    monkeypatch.setattr(Store, "list_files", lambda *_: [])
    assert store.create(REX, {"x": np.zeros(3)}).version == 2
    with pytest.raises(TakenError):
        store.create(REX, {"x": np.zeros(3)}, version=1)
    assert store.path(first).read_bytes() == before
    assert not list(store.backend.path("artifacts").rglob("*.claim"))


@pytest.mark.parametrize("how", WAYS)
def test_several_writers_get_a_number_each(how: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    without_links(monkeypatch, how)
    pids = [child(lambda n=n: [store.create(REX, {"x": np.array([n, i])}) for i in range(8)]) for n in range(4)]
    assert [ended(pid) for pid in pids] == [0] * 4
    every = sound(store)
    told = {tuple(store.read(ref)[1]["x"].tolist()) for ref in every}
    assert len(every) == 32 and told == {(n, i) for n in range(4) for i in range(8)}
    assert (
        not list(store.backend.path("artifacts").rglob("*.claim"))
        and list(store.backend.path(".objtune/tmp").iterdir()) == []
    )


@pytest.mark.parametrize("how", WAYS)
def test_a_crash_at_every_boundary_without_links(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each: nothing half is visible, and the same again publishes; where there are no locks, a number may be lost."""
    without_links(monkeypatch, how)

    def work(store: Store) -> None:
        if not store.list_versions("mask", "rex"):
            store.create(REX, DATA)

    crashes = 0
    for at in range(1, 99):
        store = Store.at(tmp_path / str(at))
        code = crashing(lambda store=store: work(store), at)
        sound(store)
        if code == 0:
            break
        crashes += 1
        assert ended(child(lambda store=store: work(store))) == 0
        every = sound(store)
        assert len(every) == 1 and (every[0].version == 1 or how == "claim, no locks"), at
        left = garbage.find_garbage(store, time.time() + 9)
        assert all(entry.key.endswith(".claim") for entry in left)
        garbage.delete(store, left)
        assert list(kept(store)) == [every[0].key.removeprefix("artifacts/")]
    assert crashes > 8


def other_disk(tmp_path: Path) -> Path:
    """A folder on another file system than the tests' own."""
    place = Path("/dev/shm")
    if not place.is_dir() or place.stat().st_dev == tmp_path.stat().st_dev or not os.access(place, os.W_OK):
        pytest.skip("no second file system here")
    folder = place / f"objtune-test-{os.getpid()}-{tmp_path.name}"
    folder.mkdir()
    return folder


def everything(store: Store) -> None:
    """What a store's files go through: published, pictures beside them, removed; nothing but the results is left."""
    ref = store.create(REX, DATA)
    store.write_image(ref, "overlay.png", b"picture")
    second = store.create(REX, {"x": np.zeros(3)})
    removal.replace_by_tombstone(store, second)
    store.verify(ref)
    assert sorted(kept(store)) == ["mask/rex/v001.safetensors", "mask/rex/v001/overlay.png", "mask/rex/v002.gone"]
    assert list(store.backend.path(".objtune/tmp").iterdir()) == []


def test_a_file_of_a_project_that_has_no_artifacts_yet(store: Store) -> None:
    store.write(".objtune/rejected/dog.png", b"picture")
    assert (
        not store.backend.path("artifacts").exists()
        and (store.backend.path(".objtune/rejected/dog.png")).read_bytes() == b"picture"
    )


def test_artifacts_on_another_disk(store: Store, tmp_path: Path) -> None:
    place = other_disk(tmp_path)
    try:
        store.backend.path("artifacts").symlink_to(place)
        everything(store)
        assert not list(place.rglob(f"mask/rex/{atomic_files.TEMP_FOLDER}"))
        stale = place / atomic_files.TEMP_FOLDER / temp_files.temp_name().replace(f".{os.getpid()}.", ".999999999.")
        stale.touch()
        assert garbage.find_garbage(store, 0) == [store.backend.stat(f"artifacts/{stale.relative_to(place)}")]
    finally:
        shutil.rmtree(place)


def test_a_boundary_that_looks_like_one_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bind mounts: the same device number, and neither a link nor a rename across."""
    link, replace = os.link, os.replace

    def across(work: Callable[..., None]) -> Callable[..., None]:
        def call(source: Path, target: Path) -> None:
            if source.parent.parent != target.parent:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            work(source, target)

        return call

    monkeypatch.setattr(os, "link", across(link))
    monkeypatch.setattr(os, "replace", across(replace))
    monkeypatch.setattr(exclusive_names, "_rename_exclusively", across(lambda source, target: True))
    everything(store)


def test_a_link_that_leads_nowhere_is_said(store: Store) -> None:
    store.backend.path("artifacts").symlink_to(store.backend.path("unplugged"))
    with pytest.raises(ResourceError, match="a link that leads nowhere") as caught:
        store.create(REX, DATA)
    assert "mount the disk" in caught.value.hint
    with pytest.raises(ResourceError, match="a link that leads nowhere"):
        store.check_writable("mask", "rex")


@pytest.mark.parametrize(
    ("call", "number"),
    [("fsync", errno.EINVAL), ("fsync", errno.ENOSYS), ("chmod", errno.EPERM), ("chmod", errno.ENOSYS)],
)
def test_what_a_network_disk_may_lack(call: str, number: int, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, call, refusing(number))
    everything(store)


def test_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(tmp_path)
    for number in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
        monkeypatch.setattr("fcntl.flock", refusing(number))
        with project.lock(), project.lock(exclusive=True), Checkpoint(project.store, "a" * 64).lock():
            pass


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_room_that_cannot_be_reserved_stops_nothing(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", refusing(number))
    with DiskReservation(Project(tmp_path)) as room:
        room.reserve(1 << 20)
    assert list(Project(tmp_path).temporary.iterdir()) == []


def test_a_disk_that_says_it_has_no_room_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    usage = type("Usage", (), {"free": 0})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with DiskReservation(Project(tmp_path)) as room:
        room.reserve(1 << 20)
    usage.free = 5
    with DiskReservation(Project(tmp_path)) as room, pytest.raises(ResourceError, match="it takes 1"):
        room.reserve(1 << 20)


def test_a_clock_that_is_days_ahead_sweeps_nobody_elses_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = tmp_path / f"{'0' * 8}.1.{'a' * 32}"
    theirs.touch()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3 * temp_files.GRACE_SECONDS)
    assert temp_files.clean(tmp_path) == [] and theirs.exists()
    os.utime(theirs, (now - 2 * temp_files.GRACE_SECONDS,) * 2)
    assert temp_files.clean(tmp_path) == [theirs]


def test_a_folder_of_another_owner_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after work with sudo: the project is ours, and one kind's folder is not."""
    theirs = store.backend.path("artifacts/mask")
    theirs.mkdir(parents=True)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != theirs and access(path, mode))
    project = Project(store.backend.path(""))
    store.check_writable("embedding", "rex")
    with pytest.raises(ResourceError, match="artifacts/mask cannot be written") as caught:
        store.check_writable("mask", "rex")
    assert "owner and mode" in caught.value.hint
    assert (
        sorted(p.name for p in store.backend.path("artifacts").rglob("*")) == ["mask"]
        and list(project.temporary.iterdir()) == []
    )


def test_a_project_that_cannot_be_written_is_refused_before_any_work(
    cli, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from objtune_cli.workflow.context import StageContext

    data = {"rgb": np.zeros((64, 64, 3), np.uint8), "mask": np.full((64, 64), 255, np.uint8)}
    Store.at(project).create(REX, data)
    monkeypatch.setattr(Path, "touch", refusing(errno.EROFS))
    monkeypatch.setattr(StageContext, "load_base_model", lambda *_args, **_named: pytest.fail("a model was loaded"))
    for line in (
        ("train", "mask/rex", "--steps", 2),
        ("init-embedding", "mask/rex"),
        ("generate", "a dog"),
        ("segment", Path(__file__).parents[2] / "docs/examples/photo.jpg", "--class", "dog"),
    ):
        done = cli(*line)
        assert (done.code, done.out) == (7, "") and "the disk is read-only" in done.err, done.err
    assert cli("list").code == 0 and cli("verify").code == 0


def test_a_link_whose_reply_was_lost_is_its_own(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS: the link is made, the reply is lost, the request is sent again and finds the name taken."""
    link = os.link

    def link_twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_twice)
    assert [store.create(REX, {"x": np.full(3, i)}).version for i in range(2)] == [1, 2]
    assert [ref.version for ref in sound(store)] == [1, 2]


def test_a_listing_of_a_minute_ago_makes_neither_doubles_nor_many_writes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS: others published since this machine read the folder, and it may not see their files by name either."""
    for i in range(30):
        store.create(REX, {"x": np.full(3, i)})
    other = replace(REX, config={"edge_softness": 1.0})
    equal = store.create(other, DATA)
    created: list[str] = []
    create = Local.create
    monkeypatch.setattr(Local, "create", lambda self, key, parts: (created.append(key), create(self, key, parts)))
    monkeypatch.setattr(Store, "list_files", lambda *_: [])
    assert store.create(other, {"x": np.zeros(3)}, accepts=lambda record: True) == equal and created == []
    third = replace(REX, config={"edge_softness": 2.0})
    assert store.create(third, DATA, accepts=lambda record: True).version == 32 and len(created) == 1
    monkeypatch.setattr(Store, "has", lambda *_: False)
    monkeypatch.setattr(Store, "list_files", lambda *_: [(i, "safetensors") for i in range(1, 31)])
    assert store.create(other, {"x": np.zeros(3)}, accepts=lambda record: True) == equal and len(created) == 2


def test_equal_work_that_is_published_between_two_looks_has_one_version(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer publishes right after this one has looked for equal work, or right before it writes."""
    wanted = Store.has

    def publish_meanwhile(self: Store, key: str) -> bool:
        monkeypatch.setattr(Store, "has", wanted)
        store.create(REX, {"x": np.zeros(3)})
        return False

    monkeypatch.setattr(Store, "has", publish_meanwhile)
    assert store.create(REX, DATA, accepts=lambda record: True).version == 1 and len(sound(store)) == 1


def test_a_writer_gives_up_when_every_version_is_taken(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: Local, key: str, _parts: object) -> None:
        refused.append(key)
        raise TakenError(key)

    refused: list[str] = []
    monkeypatch.setattr(Local, "create", refuse)
    monkeypatch.setattr("objtune_cli.store.publishing.LONGEST_PAUSE", 0)
    with pytest.raises(BusyError, match="mask/rex: others took the next version"):
        store.create(REX, DATA)
    assert len(refused) == len(set(refused)) == 200


def test_files_are_old_by_the_clock_of_the_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's clock is a month ahead of the file server's."""
    month = 30 * 24 * 3600
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + month)
    assert abs(store.backend.now() - time.time() + month) < 60


@pytest.mark.parametrize("file", ["/proc/self/ns/pid", "/proc/sys/kernel/random/boot_id"])
def test_machines_and_containers_of_one_name_are_told_apart(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A living writer elsewhere has a process id that is nobody's here: its file stays."""
    if not Path(file).exists():
        pytest.skip("Linux alone has these files")
    own, readlink, read_text = temp_files._host(), Path.readlink, Path.read_text
    monkeypatch.setattr(Path, "readlink", lambda path: Path("other") if str(path) == file else readlink(path))
    monkeypatch.setattr(Path, "read_text", lambda path: "other" if str(path) == file else read_text(path))
    theirs = tmp_path / f"{temp_files._host()}.999999999.{'a' * 32}"
    dead = tmp_path / f"{own}.999999999.{'b' * 32}"
    theirs.touch()
    dead.touch()
    assert temp_files.clean(tmp_path) == [dead] and theirs.exists()
