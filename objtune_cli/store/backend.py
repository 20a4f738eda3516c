"""Bytes under keys: the four verbs of a place that holds a project, and their implementation on a local disk.

A key is a path below the project's folder with `/` between its parts, such as `artifacts/mask/rex/v001.safetensors`. A copy
of a project has the same keys and bytes wherever it lies. Knows no artifacts.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from objtune_cli.store import atomic_files, disk_errors, exclusive_names, regular_files, temp_files
from objtune_cli.store.refs import ARTIFACTS

TEMPORARY = ".objtune/tmp/"
"""Prefix of files that are being written."""
CHECKS = ".objtune/check/"
"""Prefix of small objects in a bucket that live for a moment: self-checks and readings of the storage's clock."""


class TakenError(Exception):
    """A key belongs to another file, or did once."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file in a listing.

    Attributes:
        key: Its key; in a shallow listing a folder has a key that ends with `/`, and neither size nor time.
        size: Bytes.
        modified: When it was written, in seconds since 1970 by the clock of the disk.
    """

    key: str
    size: int = 0
    modified: float = 0.0

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rstrip("/").rpartition("/")[2]


class Backend(Protocol):
    """A place for a project's bytes: `create`, `read`, `list` and `delete`, and views of them.

    Files appear whole or not at all, and survive a power cut once a call has returned. Nothing is ever overwritten and
    nothing is locked: correct results depend on `create` alone.
    """

    def create(self, key: str, parts: Sequence[Any]) -> None:
        """Write a file, never over another one; equal bytes under the key count as written.

        Raises:
            TakenError: Other bytes have the key. ResourceError: the place does not take the file.
        """

    def read(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        """Read `size` bytes of a file from `start`, or all bytes to its end.

        Raises:
            FileNotFoundError: There is none. OSError: it cannot be read.
        """

    def open(self, key: str) -> BinaryIO:
        """Open a file for reading, with `seek`: `read` in parts.

        Raises:
            FileNotFoundError: There is none. OSError: it cannot be read.
        """

    def stat(self, key: str) -> Entry:
        """Return size and time of a file.

        Raises:
            FileNotFoundError: There is none.
        """

    def list(self, prefix: str, *, deep: bool = False) -> Iterator[Entry]:
        """List files by key.

        Args:
            prefix: Empty, or a key that ends with `/`.
            deep: All files below it, instead of its own files and folders.
        """

    def delete(self, key: str) -> None:
        """Delete a file, or all files below a key that ends with `/`; one that is not there is no error.

        Raises:
            ResourceError: The place refuses.
        """

    def now(self) -> float:
        """Return the time by the clock that listings use, in seconds since 1970."""

    def locate(self, key: str) -> str:
        """Return what people call a file: its path, or its address."""

    def locate_path(self, path: Path) -> Path | str:
        """Return what people call the file of a local path that `path` returned; any other path as it is."""

    def path(self, key: str) -> Path:
        """Return the local path of a file, or of a copy of it, which people open in other programs."""

    def lock_path(self, key: str) -> Path | None:
        """Return the file that the system locks for a key, so that a second process on this machine is told at once; None: no locks."""

    def check_writable(self, prefix: str) -> None:
        """Refuse a place in which nothing can be written; writes nothing that stays.

        Raises:
            ResourceError: Names the folder.
        """

    def find_orphaned(self) -> Sequence[Entry]:
        """Find unfinished files of writers that were killed."""


@dataclass(frozen=True, slots=True)
class Local:
    """A project's folder on a disk.

    A file is written under a temporary name, flushed, and then named by one operation of the system.

    Attributes:
        folder: The project's folder.
    """

    folder: Path

    def locate(self, key: str) -> str:
        """Return the path of a file as text."""
        return str(self.folder / key)

    def locate_path(self, path: Path) -> Path:
        """Return the path itself."""
        return path

    def path(self, key: str) -> Path:
        """Return the path of a file."""
        return self.folder / key

    def create(self, key: str, parts: Sequence[Any]) -> None:
        """Write a file and name it by an operation that never overwrites; artifacts are read-only.

        Raises:
            TakenError: Other bytes have the key. ResourceError: the disk does not take the file.
        """
        path = self.path(key)
        is_artifact = key.startswith(ARTIFACTS) and key.endswith(".safetensors")

        def give_name(partial: Path) -> None:
            if is_artifact:
                atomic_files.make_read_only(partial)
            try:
                exclusive_names.name_exclusively(partial, path)
            except FileExistsError:
                if not _has_bytes(path, parts):
                    raise TakenError(key) from None

        with disk_errors.translate_os_errors(self.folder / ARTIFACTS if is_artifact else path):
            self._write(path, parts, give_name)

    def read(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        """Read `size` bytes of a file from `start`, or all bytes to its end."""
        with self.open(key) as file:
            file.seek(start)
            return file.read(-1 if size is None else size)

    def _write(self, path: Path, parts: Sequence[Any], give_name: Callable[[Path], object]) -> None:
        """Write a temporary file on the disk that the path is on, name it, and flush its folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        folders = atomic_files.temp_folders(self.folder / ARTIFACTS, path.parent)
        for folder in folders:
            try:
                with atomic_files.temp_path(folder) as partial:
                    atomic_files.write_new(partial, parts)
                    give_name(partial)
                break
            except OSError as error:
                if error.errno != errno.EXDEV or folder is folders[-1]:
                    raise
        atomic_files.flush_folder(path.parent)

    def open(self, key: str) -> BinaryIO:
        """Open a regular file; a pipe or a device never blocks."""
        return regular_files.open_regular(self.path(key))

    def stat(self, key: str) -> Entry:
        """Return size and time of a file.

        Raises:
            FileNotFoundError: There is none.
        """
        status = self.path(key).stat()
        return Entry(key, status.st_size, status.st_mtime)

    def list(self, prefix: str, *, deep: bool = False) -> Iterator[Entry]:
        """List files in the order of their names; a link that leads nowhere is listed, too."""
        try:
            with os.scandir(os.path.join(self.folder, prefix)) as scan:  # noqa: PTH118  (a path object costs more than the listing)
                entries = sorted(scan, key=lambda each: each.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        for each in entries:
            key = prefix + each.name
            follow = not each.is_symlink() or Path(each).exists()
            if each.is_dir(follow_symlinks=follow):
                yield from self.list(f"{key}/", deep=True) if deep else [Entry(f"{key}/")]
            else:
                with contextlib.suppress(FileNotFoundError):  # another process deleted it
                    status = each.stat(follow_symlinks=follow)
                    yield Entry(key, status.st_size, status.st_mtime)

    def now(self) -> float:
        """Return the time by the disk's clock, which may be another one than this machine's."""
        temporary = self.path(TEMPORARY)
        return temp_files.read_disk_clock(temporary if temporary.is_dir() else self.folder)

    def lock_path(self, key: str) -> Path | None:
        """Return the path of a lock file for a key."""
        return self.path(key)

    def delete(self, key: str) -> None:
        """Delete a file, or all files below a key that ends with `/`.

        Raises:
            ResourceError: The disk refuses; files of a folder that cannot be deleted stay.
        """
        path = self.path(key)
        if key.endswith("/"):
            shutil.rmtree(path, ignore_errors=True)
            return
        with disk_errors.translate_os_errors(path):
            path.unlink(missing_ok=True)
            atomic_files.flush_folder(path.parent)

    def check_writable(self, prefix: str) -> None:
        """Refuse a disk on which no file can be made below a prefix; writes nothing that stays.

        Raises:
            ResourceError: Names the folder.
        """
        disk_errors.check_accepts_files(self.path(TEMPORARY))
        disk_errors.check_writable(self.path(prefix))

    def find_orphaned(self) -> Sequence[Entry]:
        """Find temporary files of writers that were killed, in every folder in which files are written."""
        folders = [TEMPORARY, f"{ARTIFACTS}{atomic_files.TEMP_FOLDER}/"]
        for kind in self.list(ARTIFACTS):
            folders += [f"{name.key}{atomic_files.TEMP_FOLDER}/" for name in self.list(kind.key) if name.key[-1] == "/"]
        orphaned = [
            path.relative_to(self.folder).as_posix()
            for folder in folders
            for path in temp_files.find_orphaned(self.path(folder))
        ]
        return [entry for key in orphaned for entry in self._stat_if_there(key)]

    def _stat_if_there(self, key: str) -> Iterator[Entry]:
        with contextlib.suppress(FileNotFoundError):
            yield self.stat(key)


def _has_bytes(path: Path, parts: Sequence[Any]) -> bool:
    """Whether a file is there and has the bytes of `parts` one after another."""
    try:
        with regular_files.open_regular(path) as file:
            return all(file.read(memoryview(part).nbytes) == part for part in parts) and not file.read(1)
    except OSError:
        return False
