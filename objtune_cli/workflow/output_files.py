"""Files that commands write outside the project: all checked before the first is written, and nothing replaced that cannot be made again."""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from objtune_cli.errors import ResourceError, UsageError
from objtune_cli.store import atomic_files, disk_errors, regular_files

MAX_BYTES = 1 << 30
"""A file that is larger than this is no export of ours, bytes."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
UNSUPPORTED_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".zip", ".safetensor")
REPLACE_HINT = "`--force` replaces it; or give another folder with `--out DIR`"


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file to be written.

    Attributes:
        is_own: Whether given bytes, which lie at the path, can be made again from this project: an export of another version of the same object.
    """

    path: Path
    data: bytes
    is_own: Callable[[bytes], bool] = lambda data: False


def is_file_name(out: Path) -> bool:
    """Whether `--out` names a file, not a folder.

    Raises:
        UsageError: It names a file of a format that is not written.
    """
    if out.suffix.lower() in UNSUPPORTED_SUFFIXES and not out.is_dir():
        raise UsageError(
            f"{out} is the name of a file that is not written",
            "give a folder, or a file that ends in .safetensors, with `--out`",
        )
    return out.suffix.lower() == ".safetensors" and not out.is_dir()


def write_files(
    files: Sequence[OutputFile], *, force: bool = False, note: Callable[[str], None] = lambda text: None
) -> list[Path]:
    """Write all files, or none; those that are there already with these bytes are left alone.

    Args:
        force: Replace files that are not ours.

    Raises:
        UsageError: A path holds something else, or two files would have one path. ResourceError: A folder cannot be written.
    """
    _check_distinct(files)
    lines: list[str] = []
    waiting = [file for file in files if _is_wanted(file, force, lines.append)]
    for line in lines:  # only now is it sure that all of them are written
        note(line)
    for file in waiting:
        with _hint_at_out():
            atomic_files.write_file(_follow_link(file.path), file.data)
    return [file.path for file in files]


def check_folder(out: Path) -> None:
    """Refuse, before anything is drawn for it, a folder that cannot take files.

    Raises:
        UsageError: It is a file, or the name of one. ResourceError: it cannot be written.
    """
    if out.suffix.lower() in IMAGE_SUFFIXES and not out.is_dir():
        raise UsageError(
            f"{out} is the name of a picture", "`--out` takes a folder; the pictures in it are named after their scenes"
        )
    _check_parents(out / "picture", "give a folder with `--out`")
    with _hint_at_out():
        disk_errors.check_writable(out)


def write_numbered(path: Path, data: bytes) -> Path:
    """Write a file under the first of `name`, `name-2`, … that is free or has these bytes already; its path."""
    for number in itertools.count(1):
        target = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        if not os.path.lexists(target):
            with _hint_at_out():
                atomic_files.write_file(target, data)
            return target
        if target.is_file() and _read(target) == data:
            return target
    raise AssertionError


@contextlib.contextmanager
def _hint_at_out() -> Iterator[None]:
    """Disk trouble with the remedy of a folder outside the project."""
    try:
        yield
    except ResourceError as error:
        hint = (
            "check its owner and mode, or give another folder with `--out DIR`"
            if "--project" in error.hint
            else error.hint
        )
        raise ResourceError(error.message, hint) from error


def _check_distinct(files: Sequence[OutputFile]) -> None:
    """Refuse two files of one name; case does not tell them apart, for on Windows and macOS it does not."""
    by_target: dict[str, Path] = {}
    for file in files:
        key = os.path.realpath(file.path).casefold()
        if key in by_target:
            raise UsageError(f"two files would be {file.path}", "export them one by one, each with its own `--out`")
        by_target[key] = file.path


def _follow_link(path: Path) -> Path:
    """Where a path leads: a link stays a link, and the file behind it is replaced."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _is_wanted(file: OutputFile, force: bool, note: Callable[[str], None]) -> bool:
    """Whether a file must be written.

    Raises:
        UsageError: Something else is at its path.
    """
    path = file.path
    _check_parents(path, "give a folder, or a file that ends in .safetensors, with `--out`")
    if not os.path.lexists(path):
        return True
    if path.is_dir():
        raise UsageError(f"{path} is a folder; the file would have its name", "give another folder with `--out DIR`")
    if not path.exists():
        raise UsageError(f"{path} is a link that leads nowhere", "remove it, or give another folder with `--out DIR`")
    if not path.is_file():
        raise UsageError(f"{path} is no regular file", "give a folder with `--out DIR`")
    content = _read(path)
    if content == file.data:
        return False
    if content is not None and file.is_own(content):
        note(f"{path} held another export of the same object; it is replaced")
    elif force:
        note(f"{path} is replaced")
    else:
        raise UsageError(f"{path} is there already and is not an export of this object from this project", REPLACE_HINT)
    return True


def _check_parents(path: Path, hint: str) -> None:
    """Refuse a path below something that is no folder."""
    folder = next(each for each in path.parents if os.path.lexists(each))
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a folder", hint)


def _read(path: Path) -> bytes | None:
    """The bytes of a file; None where it is too large to be ours, or cannot be read."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        with regular_files.open_regular(path) as file:
            return file.read()
    except OSError:
        return None
