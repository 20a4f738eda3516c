"""Locks on local files, which the system frees when their process ends. Without them, work goes on unlocked."""

import os
from pathlib import Path


def lock(handle: int) -> bool:
    """Lock an open file for this process, until it is closed; False where the disk or the system has no locks.

    Raises:
        BlockingIOError: Another process has it.
    """
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except (ImportError, OSError):
        return False
    return True


def is_named(handle: int, path: Path) -> bool:
    """Whether an open file still has a name: its last owner may have deleted it before this process locked it."""
    try:
        return os.fstat(handle).st_ino == path.stat().st_ino
    except OSError:
        return False


def open_lock_file(path: Path) -> int:
    """Open and lock a file; its descriptor. Without locks on the disk, two equal runs at once only repeat work.

    Raises:
        BlockingIOError: Another process has it.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock(handle)
            if is_named(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def is_locked(path: Path) -> bool:
    """Whether another process has a lock file; False where the disk or the system has no locks."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        lock(handle)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
