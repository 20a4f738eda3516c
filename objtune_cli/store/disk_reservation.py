"""Reserves disk space before long work, so that the disk is not full when the result is written."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from objtune_cli.errors import ResourceError
from objtune_cli.store import disk_errors, temp_files
from objtune_cli.store.project import Project

EXTRA_BYTES = 1 << 20
"""Bytes beside the tensors: headers, folders, a preview."""


class DiskReservation:
    """A file in `.objtune/tmp` as large as the reserved space; the next writer deletes the file of a killed process.

    Disks alone run full: nothing is reserved in object storage.
    """

    def __init__(self, project: Project) -> None:
        self.folder = project.temporary
        self._file: Path | None = None

    def __enter__(self) -> "DiskReservation":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def reserve(self, size: int) -> None:
        """Reserve `size` bytes in place of the earlier reservation.

        Raises:
            ResourceError: The disk does not have them.
        """
        self.release()
        if self.folder is None:
            return
        with disk_errors.translate_os_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            temp_files.clean_once(self.folder)
            self._file = self.folder / temp_files.temp_name()
            try:
                _allocate(self._file, size)
            except OSError as error:
                self.release()
                if error.errno in disk_errors.UNSUPPORTED:
                    return
                if error.errno not in disk_errors.DISK_FULL:
                    raise
                free = _free_bytes(self.folder) or 0
                raise ResourceError(
                    f"no space for what this will write below {self.folder.parent.parent}: it takes {size / 1e6:.1f} MB, {free / 1e6:.1f} MB are free",
                    "free some space (`objtune gc`), or give a project on another disk with `--project DIR`",
                ) from error

    def release(self) -> None:
        """Free the space."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)
        self._file = None

    @contextlib.contextmanager
    def lend(self, left: int) -> Iterator[None]:
        """Release the space for one write, then reserve `left` bytes; if others took the space, the next write reports it."""
        self.release()
        yield
        with contextlib.suppress(ResourceError):
            self.reserve(left)


def _allocate(path: Path, size: int) -> None:
    """Create a file of a size with its blocks allocated; where the system cannot, an empty file if enough space is free."""
    with path.open("xb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        elif 0 < (_free_bytes(path.parent) or size) < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _free_bytes(folder: Path) -> int | None:
    """Free bytes; None where the system does not tell. Some network disks always report 0."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None
