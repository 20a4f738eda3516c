"""A project is a folder with `objtune.toml`; everything objtune keeps lies below it."""

import os
from dataclasses import dataclass
from pathlib import Path

from objtune_cli.errors import UsageError

MARK = "objtune.toml"
TEMPLATE = """\
# Marks an objtune project. Settings that commands here take by default; docs/cli.md lists them,
# and an unknown key is answered with the known ones. Example:
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
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    @property
    def states(self) -> Path:
        """Unfinished work, to go on from."""
        return self.folder / ".objtune" / "state"

    @property
    def settings(self) -> Path:
        return self.folder / MARK


def locate(given: Path | None, *, create: bool = False) -> Project:
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
    start = Path(os.path.abspath(given or Path.cwd()))
    folder = start
    if given is None:
        folder = next((p for p in (start, *start.parents) if (p / MARK).is_file()), start)
    project = Project(folder)
    if create and not project.settings.exists():
        from objtune_cli.store.artifact import explained

        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            project.settings.write_text(TEMPLATE)
    return project
