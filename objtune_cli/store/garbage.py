"""Finds files in a project that nothing needs any more, for `gc` and `doctor`."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from objtune_cli.store import KINDS, atomic_files, temp_files
from objtune_cli.store.project import Project


def find_garbage(project: Project, before: float) -> list[Path]:
    """Leftovers of killed writers; and, written before that time, unfinished runs, refused masks, pictures of no artifact, notes that are made again when they are asked for."""
    old = [path for path in _find_old(project) if _modified_time(path) < before]
    beside = [
        file
        for folder in _temp_parents(project)
        for file in temp_files.find_orphaned(folder / atomic_files.TEMP_FOLDER)
    ]
    return temp_files.find_orphaned(project.temporary) + beside + old


def _temp_parents(project: Project) -> Iterator[Path]:
    """Folders beside whose files others may be written."""
    yield project.artifacts
    for kind in KINDS:
        yield from _list_folder(project.artifacts / kind)


def _find_old(project: Project) -> Iterator[Path]:
    yield from _list_folder(project.states)
    yield from _list_folder(project.folder / ".objtune" / "rejected")
    yield from _list_folder(project.folder / ".objtune" / "hashes")
    for kind in KINDS:
        for folder in _list_folder(project.artifacts / kind):
            for pictures in _list_folder(folder):
                if (
                    pictures.is_dir()
                    and not pictures.with_suffix(".safetensors").exists()
                    and pictures.name.startswith("v")
                ):
                    yield pictures
                if pictures.suffix == ".claim":
                    yield pictures


def _list_folder(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(folder.iterdir())
    return []


def _modified_time(path: Path) -> float:
    """When it was written; of a folder, its youngest file."""
    try:
        return max(p.stat().st_mtime for p in (path, *(path.iterdir() if path.is_dir() else ())))
    except OSError:
        return float("inf")


def delete(paths: list[Path]) -> None:
    """Delete files and folders of pictures; what cannot be deleted stays."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
