"""Errors of disks as one line with a remedy, and checks that a disk can be written."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from objtune_cli.errors import ResourceError
from objtune_cli.store import temp_files

UNSUPPORTED = {
    errno.EPERM,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
    errno.EINVAL,
    errno.EACCES,
    errno.EBADF,
    errno.ENOTTY,
    errno.EISDIR,
}
"""Error numbers of a disk that does not have an operation at all."""
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def check_accepts_files(folder: Path) -> None:
    """Refuse a folder for temporary files in which no file can be made; a file that a crash leaves there is cleaned as they are.

    Raises:
        ResourceError: Read-only, of another owner, or full.
    """
    with translate_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / temp_files.temp_name()
        path.touch(exist_ok=False)
        path.unlink()


def check_writable(folder: Path) -> None:
    """Refuse a folder in which no file can be made, or the nearest existing one above it. Writes nothing.

    Raises:
        ResourceError: Read-only, of another owner, or behind a link that leads nowhere.
    """
    here = next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))
    with translate_os_errors(here):
        if not here.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "a file lies where a folder is needed", str(here))
        if not os.access(here, os.W_OK | os.X_OK):
            read_only = hasattr(os, "statvfs") and os.statvfs(here).f_flag & os.ST_RDONLY
            raise PermissionError(errno.EROFS if read_only else errno.EACCES, "not writable", str(here))


@contextlib.contextmanager
def translate_os_errors(where: Path) -> Iterator[None]:
    """Raise errors of the system as one line with its remedy.

    Raises:
        ResourceError: The disk is full, read-only, or refuses for another reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise ResourceError(
                f"no space left to write below {where}", "free some space and run the same command again"
            ) from error
        if error.errno == errno.EROFS:
            raise ResourceError(
                f"{where} cannot be written: the disk is read-only", "use a project on another disk: `--project DIR`"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise ResourceError(
                f"{where} cannot be written", "check its owner and mode, or use `--project DIR`"
            ) from error
        if where.is_symlink() and not where.exists():
            raise ResourceError(
                f"{where} cannot be written: it is a link that leads nowhere",
                "mount the disk that it leads to, or remove the link",
            ) from error
        raise ResourceError(
            f"{where} cannot be written: {error.strerror or error}", "check the path, or use `--project DIR`"
        ) from error
