"""Room that is held: it takes up disk, goes back, is swept after a kill, and says what is missing."""

import errno
import os
import signal
from pathlib import Path

import pytest

from objtune_cli.errors import ResourceError
from objtune_cli.store import temp_files
from objtune_cli.store.disk_reservation import DiskReservation
from objtune_cli.store.project import Project

SIZE = 3 << 20


def blocks(project: Path) -> int:
    """Bytes of disk that the project's temporary files take up."""
    return sum(p.stat().st_blocks * 512 for p in (project / ".objtune/tmp").iterdir())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="nothing to hold blocks with")
def test_it_takes_up_disk_and_gives_it_back(project: Path) -> None:
    with DiskReservation(Project(project)) as room:
        room.reserve(2 * SIZE)
        assert blocks(project) >= 2 * SIZE
        with room.lend(SIZE):
            assert blocks(project) == 0
        assert SIZE <= blocks(project) < 2 * SIZE
    assert blocks(project) == 0


def test_no_room_is_7_and_leaves_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    room = DiskReservation(Project(project))
    with pytest.raises(ResourceError, match=r"it takes 3\.1 MB, [0-9.]+ MB are free") as caught:
        room.reserve(SIZE)
    assert caught.value.code == 7
    assert list((project / ".objtune/tmp").iterdir()) == []
    with room.lend(SIZE):
        pass  # what was written is safe; the next write says what is missing


def test_a_limit_on_file_sizes_counts_as_full(project: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, hard))
        with pytest.raises(ResourceError, match="no space for what this will write"):
            DiskReservation(Project(project)).reserve(SIZE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, kept)


def test_where_blocks_cannot_be_held_free_space_is_looked_at(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with DiskReservation(Project(project)) as room:
        room.reserve(SIZE)
        with pytest.raises(ResourceError, match="no space"):
            room.reserve(1 << 60)


def test_what_a_killed_process_held_is_swept(project: Path) -> None:
    pid = os.fork()
    if not pid:
        DiskReservation(Project(project)).reserve(SIZE)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert len(temp_files.find_orphaned(project / ".objtune/tmp")) == 1
    temp_files._cleaned.clear()
    with DiskReservation(Project(project)) as room:
        room.reserve(SIZE)
        assert len(list((project / ".objtune/tmp").iterdir())) == 1
