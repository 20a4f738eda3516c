"""Files that appear whole under their name or not at all."""

import contextlib
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from objtune_cli.store import temp_files
from objtune_cli.store.disk_errors import UNSUPPORTED, translate_os_errors

TEMP_FOLDER = ".tmp"
"""Folder for files being written into a folder that lies on another disk than the project."""


def temp_folders(root: Path, folder: Path) -> list[Path]:
    """Folders for the temporary file of a file in `folder`, best first: the project's, the store's, or one beside the file.

    All are on the folder's own disk as far as the system shows it; the last one certainly is.
    """
    own = root.parent / ".objtune" / "tmp"
    own.mkdir(parents=True, exist_ok=True)
    here = folder.stat().st_dev
    return [
        place for place, on in ((own, own), (root / TEMP_FOLDER, root)) if on.is_dir() and on.stat().st_dev == here
    ] + [folder / TEMP_FOLDER]


@contextlib.contextmanager
def temp_path(folder: Path) -> Iterator[Path]:
    """A new name for a temporary file in a folder; the file is deleted afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    temp_files.clean_once(folder)
    path = folder / temp_files.temp_name()
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def write_new(path: Path, parts: Iterable[bytes]) -> None:
    """Write a new file and flush it to the disk."""
    with path.open("xb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        _flush_file(file.fileno())


def write_file(path: Path, data: bytes) -> None:
    """Replace a file outside a project atomically.

    Raises:
        ResourceError: The disk does not take it.
    """
    with translate_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}")
        try:
            write_new(partial, [data])
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Flush a folder, so that a new name in it survives a power cut; does nothing where the disk cannot."""
    if os.name == "nt":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return
        raise
    try:
        _flush_file(handle)
    finally:
        os.close(handle)


def _flush_file(handle: int) -> None:
    """Flush a file to the disk; does nothing on network disks without such a call."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def make_read_only(path: Path) -> None:
    """Protect a file against accidental writes, where the disk has permissions."""
    with contextlib.suppress(OSError):
        path.chmod(0o444)
