"""A project is a folder with `objtune.toml`; everything objtune keeps lies below it."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from objtune_cli import paths
from objtune_cli.errors import BusyError, UsageError
from objtune_cli.store import disk_errors
from objtune_cli.store.backend import TEMPORARY
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
    """Where things are."""

    folder: Path

    @property
    def store(self) -> Store:
        """The project's artifacts, and all other files that objtune writes there."""
        return Store.at(self.folder)

    @property
    def temporary(self) -> Path:
        """Files that are being written, and reservations of disk space; always local."""
        return self.store.backend.path(TEMPORARY)

    @contextlib.contextmanager
    def lock(self, *, alone: bool = False) -> Iterator[None]:
        """Keep `rm`, `gc` and `mv` (those that hold it `alone`) and work that reads artifacts apart.

        The lock is the system's, on the folder itself: nothing is written, and a killed process leaves none. Where a
        disk has no such locks, or the folder is gone, there is none.

        Raises:
            BusyError: Somebody is at work.
        """
        handle = _lock_folder(self.folder, alone)
        try:
            yield
        finally:
            if handle is not None:
                os.close(handle)

    @property
    def settings(self) -> Path:
        return self.folder / SETTINGS_FILE


def _lock_folder(folder: Path, alone: bool) -> int | None:
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        who = "other objtune commands work in" if alone else "`objtune gc`, `rm` or `mv` works in"
        raise BusyError(f"{who} {folder}", "wait for it, then run the same command") from None
    except OSError:
        pass
    return handle


def find_project(given: Path | None, *, create: bool = False) -> Project:
    """The project: `given`, else the nearest folder upwards with `objtune.toml`, else here.

    Args:
        create: Make the mark where there is none yet.

    Raises:
        UsageError: `given` is not a folder.
    """
    try:
        usable = given is None or given.is_dir() or (create and not given.exists())
    except OSError:  # a text too long for a file name
        usable = False
    if not usable:
        raise UsageError(f"{given} is not a folder", "`objtune init` in a folder makes it a project")
    start = Path(os.path.abspath(given or paths.current_folder()))
    folder = start
    if given is None:
        folder = next((p for p in (start, *start.parents) if (p / SETTINGS_FILE).is_file()), start)
    project = Project(folder)
    if create and not project.settings.exists():
        with disk_errors.translate_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            project.settings.write_text(TEMPLATE, encoding="utf-8")
    return project
