"""Writes files outside the project: all are checked before the first is written, and only reproducible files are replaced."""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from objtune_cli.errors import ResourceError, UsageError
from objtune_cli.store import atomic_files, disk_errors, regular_files

MAX_BYTES = 1 << 30
"""Maximum size of an export, bytes; larger files come from elsewhere."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif")
UNSUPPORTED_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".zip", ".safetensor")
REPLACE_HINT = "`--force` replaces it; or give another folder with `--out DIR`"


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file to write.

    Attributes:
        is_own: Whether the bytes at the path are an export of the same object, which the project can make again.
        what: What such bytes are, for messages.
    """

    path: Path
    data: bytes
    is_own: Callable[[bytes], bool] = lambda data: False
    what: str = "an export of this object from this project"


def is_file_name(out: Path) -> bool:
    """Whether `--out` is a file instead of a folder.

    Raises:
        UsageError: It is a file of an unsupported format.
    """
    if out.suffix.lower() in UNSUPPORTED_SUFFIXES and not out.is_dir():
        raise UsageError(
            f"{out} has a file format that is not written",
            "use `--out` with a folder or a .safetensors file",
        )
    return out.suffix.lower() == ".safetensors" and not out.is_dir()


def write_files(
    files: Sequence[OutputFile], *, force: bool = False, note: Callable[[str], None] = lambda text: None
) -> list[Path]:
    """Write all files or none; existing files with the same bytes stay.

    Args:
        force: Whether to replace files that are not exports.

    Raises:
        UsageError: A path has other contents, or two files have one path. ResourceError: A folder cannot be written.
    """
    _check_distinct(files)
    lines: list[str] = []
    waiting = [file for file in files if _is_wanted(file, force, lines.append)]
    for line in lines:  # only after all have passed
        note(line)
    for file in waiting:
        with _hint_at_out():
            atomic_files.write_file(_follow_link(file.path), file.data)
    return [file.path for file in files]


def check_folder(out: Path) -> None:
    """Refuse, before any work, a folder that cannot be written.

    Raises:
        UsageError: It is a file or has the name of one. ResourceError: It cannot be written.
    """
    if out.suffix.lower() in IMAGE_SUFFIXES and not out.is_dir():
        raise UsageError(
            f"{out} is the name of an image file",
            "`--out` takes a folder; the images in it are named after their scenes",
        )
    _check_parents(out / "picture", "give a folder with `--out`")
    with _hint_at_out():
        disk_errors.check_writable(out)


def write_numbered(path: Path, data: bytes) -> Path:
    """Write a file under the first of `name`, `name-2`, … that is free or has the same bytes, and return its path."""
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
    """Give disk errors the hint for a folder outside the project."""
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
    """Refuse two files with the same name, ignoring case as Windows and macOS do."""
    by_target: dict[str, Path] = {}
    for file in files:
        key = os.path.realpath(file.path).casefold()
        if key in by_target:
            raise UsageError(
                f"two files have the name {file.path}", "export them one by one, each with its own `--out`"
            )
        by_target[key] = file.path


def _follow_link(path: Path) -> Path:
    """The target of a path: a link stays, and the file behind it is replaced."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _is_wanted(file: OutputFile, force: bool, note: Callable[[str], None]) -> bool:
    """Whether a file must be written.

    Raises:
        UsageError: Its path has other contents.
    """
    path = file.path
    _check_parents(path, "use `--out` with a folder or a .safetensors file")
    if not os.path.lexists(path):
        return True
    if path.is_dir():
        raise UsageError(f"{path} is a folder, not a file", "give another folder with `--out DIR`")
    if not path.exists():
        raise UsageError(f"{path} is a broken link", "remove it, or give another folder with `--out DIR`")
    if not path.is_file():
        raise UsageError(f"{path} is not a regular file", "give a folder with `--out DIR`")
    content = _read(path)
    if content == file.data:
        return False
    if content is not None and file.is_own(content):
        note(f"{path} held another export of the same object; it is replaced")
    elif force:
        note(f"{path} is replaced")
    else:
        raise UsageError(f"{path} exists and is not {file.what}", REPLACE_HINT)
    return True


def _check_parents(path: Path, hint: str) -> None:
    """Refuse a path inside something that is not a folder."""
    folder = next(each for each in path.parents if os.path.lexists(each))
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a folder", hint)


def _read(path: Path) -> bytes | None:
    """The bytes of a file; None if it is too large to be an export, or unreadable."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        with regular_files.open_regular(path) as file:
            return file.read()
    except OSError:
        return None
