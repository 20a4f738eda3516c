"""Temporary files in `.objtune/tmp`: their names hold their writer, so that the files of dead writers can be deleted."""

import contextlib
import os
import threading
import time
import uuid
import zlib
from pathlib import Path

GRACE_SECONDS = 24 * 3600.0
"""Age from which a temporary file counts as orphaned, seconds."""


def _host() -> str:
    """A hash of the machine's name, its boot and its process namespace: machines and containers may share a name, but not their process ids."""
    node = os.uname().nodename if hasattr(os, "uname") else ""
    with contextlib.suppress(OSError):
        node += Path("/proc/sys/kernel/random/boot_id").read_text()
    with contextlib.suppress(OSError):
        node += Path("/proc/self/ns/pid").readlink().as_posix()
    return f"{zlib.crc32(node.encode()):08x}"


_HOST = _host()
_cleaned: set[Path] = set()
_cleaned_lock = threading.Lock()


def temp_name() -> str:
    """A new name for a file of this process: machine (hashed), process, and a random part."""
    return f"{_HOST}.{os.getpid()}.{uuid.uuid4().hex}"


def find_orphaned(folder: Path, now: float | None = None) -> list[Path]:
    """Find files whose writer on this machine is dead, or that are older than `GRACE_SECONDS`.

    Whether a process of another machine is alive cannot be seen, so only the age of its files counts.
    """
    now = time.time() if now is None else now
    try:
        files = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [path for path in files if _is_writer_dead(path.name) or now - _modified_time(path, now) > GRACE_SECONDS]


def clean(folder: Path) -> list[Path]:
    """Delete orphaned files and return their paths; files that cannot be deleted stay, without an error."""
    orphaned = find_orphaned(folder, read_disk_clock(folder))
    for path in orphaned:
        with contextlib.suppress(OSError):
            path.unlink()
    return orphaned


def read_disk_clock(folder: Path) -> float:
    """The time by the disk's clock, which may be days from this machine's on a file server."""
    path = folder / temp_name()
    try:
        path.touch()
        now = path.stat().st_mtime
        path.unlink()
    except OSError:
        return time.time()
    return now


def clean_once(folder: Path) -> None:
    """Clean a folder the first time this process writes there."""
    with _cleaned_lock:
        is_first = folder not in _cleaned
        _cleaned.add(folder)
    if is_first:
        clean(folder)


def _modified_time(path: Path, missing: float) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return missing


def _is_writer_dead(name: str) -> bool:
    parts = name.split(".")
    if len(parts) != 3 or parts[0] != _HOST or not parts[1].isdecimal() or os.name == "nt":
        return False
    try:
        os.kill(int(parts[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:  # somebody else's process
        return False
    return False
