"""A project: a folder, or a prefix of a bucket, with `objtune.toml`, in which all artifacts and other files of objtune lie."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from objtune_cli import paths
from objtune_cli.errors import BusyError, UsageError
from objtune_cli.store import disk_errors
from objtune_cli.store.backend import TEMPORARY, TakenError
from objtune_cli.store.remote_backend import Remote, open_remote
from objtune_cli.store.store import Store

SETTINGS_FILE = "objtune.toml"
TEMPLATE = """\
# Marks an objtune project and holds the default settings of its commands. docs/reference/settings.md lists them.
# An unknown key is an error that names similar keys. Example:
#
# base = "toybox"
# [train]
# steps = 300
"""


@dataclass(frozen=True, slots=True)
class Project:
    """A project's folder and its parts.

    Attributes:
        folder: For a project in a bucket, a folder of this process with copies of files.
        remote: The bucket; None: the project is the folder.
    """

    folder: Path
    remote: Remote | None = None

    @property
    def location(self) -> str:
        """The folder or the address, as `--project` takes it."""
        return str(self.folder) if self.remote is None else self.remote.address

    @property
    def local_folder(self) -> Path:
        """Where files lie that belong to this machine, such as logs: the folder, or for a bucket the current folder."""
        return self.folder if self.remote is None else paths.current_folder()

    @property
    def store(self) -> Store:
        """The project's artifacts, and all other files that objtune writes there."""
        return Store.at(self.folder) if self.remote is None else Store(self.remote)

    @property
    def temporary(self) -> Path | None:
        """Folder of files that are being written, and of reservations of disk space; None in a bucket, which has neither."""
        return self.store.backend.path(TEMPORARY) if self.remote is None else None

    @contextlib.contextmanager
    def lock(self, *, exclusive: bool = False) -> Iterator[None]:
        """Lock the project, so that `rm`, `gc` and `mv` never run while others read artifacts.

        The lock is the system's and is on the folder itself: nothing is written, and it ends with its process. Where a
        disk has no such locks, or there is no folder, nothing is locked.

        Args:
            exclusive: Exclude all others, as `rm`, `gc` and `mv` do.

        Raises:
            BusyError: Another process works in the project.
        """
        handle = _lock_folder(self.folder, exclusive) if self.remote is None else None
        try:
            yield
        finally:
            if handle is not None:
                os.close(handle)

    @property
    def settings(self) -> Path:
        """The project's file of settings, or a copy of it; it need not exist."""
        return self.store.backend.path(SETTINGS_FILE)

    def require_folder(self, what: str) -> Path:
        """The folder, for work that needs one.

        Raises:
            UsageError: The project is in a bucket.
        """
        if self.remote is not None:
            raise UsageError(f"{what} needs a project in a folder, not in {self.location}", "give `--project DIR`")
        return self.folder


def _lock_folder(folder: Path, exclusive: bool) -> int | None:
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        who = "other objtune commands work in" if exclusive else "`objtune gc`, `rm` or `mv` works in"
        raise BusyError(f"{who} {folder}", "wait for it, then run the same command") from None
    except OSError:
        pass
    return handle


def find_project(folder: Path | str | None, *, create: bool = False) -> Project:
    """Find the project: `folder`, else the nearest folder upwards with `objtune.toml`, else the current folder.

    Args:
        folder: A folder, or as text the address of object storage, `s3://bucket/prefix`.
        create: Write `objtune.toml` where there is none yet.

    Raises:
        UsageError: `folder` is not a folder. ResourceError: object storage cannot be reached or written.
    """
    if folder is not None and paths.is_storage_address(folder):
        return _find_remote(folder, create)
    folder = None if folder is None else Path(folder)
    try:
        usable = folder is None or folder.is_dir() or (create and not folder.exists())
    except OSError:  # a text too long for a file name
        usable = False
    if not usable:
        raise UsageError(f"{folder} is not a folder", "`objtune init` in a folder makes it a project")
    start = Path(os.path.abspath(folder or paths.current_folder()))
    root = start
    if folder is None:
        root = next((p for p in (start, *start.parents) if (p / SETTINGS_FILE).is_file()), start)
    project = Project(root)
    if create and not project.settings.exists():
        with disk_errors.translate_os_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            project.settings.write_text(TEMPLATE, encoding="utf-8")
    return project


def _find_remote(address: str, create: bool) -> Project:
    remote = open_remote(address)
    project = Project(remote.folder, remote)
    if create and not project.store.has(SETTINGS_FILE):
        with contextlib.suppress(TakenError):  # another process has made it since
            remote.create(SETTINGS_FILE, [TEMPLATE.encode()])
    return project
