"""Files that appear whole under their name or not at all, on any disk: with and without hard links, locks, permissions or flushing of folders."""

import contextlib
import ctypes
import errno
import os
import sys
import uuid
from collections.abc import Iterable, Iterator
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
"""How a disk says that it does not have an operation at all."""
NO_HARD_LINKS = UNSUPPORTED | {errno.EMLINK, errno.EXDEV}
"""The same of a hard link. A rename that follows says it again where there is more behind it."""
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
TEMP_FOLDER = ".tmp"
"""Folder for files being written into a folder that lies on another disk than the project."""
_AT_HERE, _NO_REPLACE, _RENAME_EXCL = -100, 1, 4


def name_exclusively(partial: Path, path: Path) -> None:
    """Give a complete file its name, by whichever operation of this disk never overwrites: a hard link, an exclusive rename, or a claim.

    Raises:
        FileExistsError: The name is taken.
    """
    try:
        os.link(partial, path)
    except FileExistsError:
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
        partial.rename(path)  # never replaces there
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
    """Rename while holding the name's claim, a file beside it: of several writers one has it, and it looks before it renames.

    A claim whose holder died is taken over where the disk has locks; elsewhere the name is lost, and `gc` deletes the claim.

    Raises:
        FileExistsError: The name is taken, or somebody is about to take it.
    """
    claim = path.with_suffix(".claim")
    held = _open_claim(claim)
    try:
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        partial.rename(path)
    finally:
        with contextlib.suppress(OSError):
            claim.unlink()
        os.close(held)


def _open_claim(claim: Path) -> int:
    """The claim's descriptor, ours until it is closed.

    Raises:
        FileExistsError: Another process has it.
    """
    taken = FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(claim))
    try:
        handle, new = os.open(claim, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
    except FileExistsError:
        try:
            handle, new = os.open(claim, os.O_RDWR), False
        except FileNotFoundError:  # given up since
            raise taken from None
    try:
        locked = lock(handle)
        if not (locked or new) or not _is_named(handle, claim):
            raise taken
    except BlockingIOError:
        os.close(handle)
        raise taken from None
    except BaseException:
        os.close(handle)
        raise
    return handle


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


def _is_named(handle: int, path: Path) -> bool:
    """Whether an open file still has that name: its last holder may have removed it between our opening and locking it."""
    try:
        return os.fstat(handle).st_ino == path.stat().st_ino
    except OSError:
        return False


def open_lock_file(path: Path) -> int:
    """A lock file, held where the disk has locks; without them, two equal runs at once only repeat work.

    Raises:
        BlockingIOError: Another process holds it.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock(handle)
            if _is_named(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def temp_folders(root: Path, folder: Path) -> list[Path]:
    """Folders in which a file for `folder` may be written before it gets its name, best first: the project's, the store's, or one beside it.

    Only what is on the folder's own disk counts; the last one certainly is.
    """
    own = root.parent / ".objtune" / "tmp"
    own.mkdir(parents=True, exist_ok=True)
    here = folder.stat().st_dev
    return [
        place for place, on in ((own, own), (root / TEMP_FOLDER, root)) if on.is_dir() and on.stat().st_dev == here
    ] + [folder / TEMP_FOLDER]


@contextlib.contextmanager
def temp_path(folder: Path) -> Iterator[Path]:
    """A name for a file in a folder of files that are being written, gone afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    temp_files.clean_once(folder)
    path = folder / temp_files.temp_name()
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def write_new(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file that is not there yet, and bring it to the disk."""
    with path.open("xb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        _flush_file(file.fileno())


def write_file(path: Path, data: bytes, root: Path | None = None) -> None:
    """Replace one ordinary file atomically; `root`: the store it lies in, if it lies in one."""
    with translate_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if root is None:
            partial = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}")
            try:
                write_new(partial, [data])
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        else:
            for place in (found := temp_folders(root, path.parent)):
                try:
                    with temp_path(place) as partial:
                        write_new(partial, [data])
                        partial.replace(path)
                    break
                except OSError as error:
                    if error.errno != errno.EXDEV or place is found[-1]:
                        raise
        flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Make a new name survive a power cut, where the system and the disk have a way to."""
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
    """Bring a file's bytes to the disk; some network disks have no such call, and then there is nothing to be had."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def make_read_only(path: Path) -> None:
    """Protect a file from writing by mistake, where the disk has permissions."""
    with contextlib.suppress(OSError):
        path.chmod(0o444)


def check_accepts_files(folder: Path) -> None:
    """Refuse a folder for temporary files in which none can be made; what a crash leaves there is swept as theirs are.

    Raises:
        ResourceError: Read-only, of another owner, or full.
    """
    with translate_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / temp_files.temp_name()
        path.touch(exist_ok=False)
        path.unlink()


def check_writable(folder: Path) -> None:
    """Refuse a folder, or the nearest one above it that is there, in which no file can be made; makes none.

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
    """Disk trouble as one line with its remedy."""
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
