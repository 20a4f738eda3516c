"""Names a finished file without ever overwriting another one, on disks with and without hard links."""

import contextlib
import ctypes
import errno
import os
import sys
from pathlib import Path

from objtune_cli.store.disk_errors import UNSUPPORTED
from objtune_cli.store.file_locks import is_named, lock

NO_HARD_LINKS = UNSUPPORTED | {errno.EMLINK, errno.EXDEV}
"""Errors of a disk without hard links. A rename that follows fails again where another cause is behind them."""
_AT_HERE, _NO_REPLACE, _RENAME_EXCL = -100, 1, 4


def name_exclusively(partial: Path, path: Path) -> None:
    """Give a finished file its name by the operation of this disk that never overwrites: a hard link, an exclusive rename, or a claim.

    A server of NFS may make the link and lose its reply; the second request then finds the name taken. The file's
    number of links tells (link(2), open(2)): with two, the name is its own.

    Raises:
        FileExistsError: The name is taken.
    """
    try:
        os.link(partial, path)
    except FileExistsError:
        if partial.stat().st_nlink < 2:
            raise
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        if not _rename_exclusively(partial, path):
            _rename_claimed(partial, path)


def _rename_exclusively(partial: Path, path: Path) -> bool:
    """Rename unless the name is taken, in one step of the system; False where the system or the disk has no such step.

    Raises:
        FileExistsError: The name is taken.
    """
    if os.name == "nt":
        partial.rename(path)  # never replaces on Windows
        return True
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        source, target = os.fsencode(partial), os.fsencode(path)
        if sys.platform == "darwin":
            failed = libc.renamex_np(source, target, _RENAME_EXCL)
        else:
            failed = libc.renameat2(_AT_HERE, source, _AT_HERE, target, _NO_REPLACE)
    except (OSError, AttributeError):  # another C library
        return False
    number = ctypes.get_errno() if failed else 0
    if number in UNSUPPORTED:
        return False
    if number:
        raise OSError(number, os.strerror(number), str(path))
    return True


def _rename_claimed(partial: Path, path: Path) -> None:
    """Rename under a claim, a file beside the name that one writer at a time can own; that writer checks that the name is free.

    A dead writer's claim is taken over where the disk has locks; elsewhere the name is lost, and `gc` deletes the claim.

    Raises:
        FileExistsError: The name is taken, or somebody is about to take it.
    """
    claim = path.with_suffix(".claim")
    handle = _open_claim(claim)
    try:
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        partial.rename(path)
    finally:
        with contextlib.suppress(OSError):
            claim.unlink()
        os.close(handle)


def _open_claim(claim: Path) -> int:
    """Open a claim for this process until it is closed; its descriptor.

    Raises:
        FileExistsError: Another process has it.
    """
    error = FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(claim))
    try:
        handle, new = os.open(claim, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
    except FileExistsError:
        try:
            handle, new = os.open(claim, os.O_RDWR), False
        except FileNotFoundError:  # its owner deleted it
            raise error from None
    try:
        locked = lock(handle)
        if not (locked or new) or not is_named(handle, claim):
            raise error
    except BlockingIOError:
        os.close(handle)
        raise error from None
    except BaseException:
        os.close(handle)
        raise
    return handle
