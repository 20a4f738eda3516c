"""A user's text to a path: one reading of `~`, quotes, file URLs and relative paths for options, variables and files."""

import os
import re
from pathlib import Path
from typing import TypeGuard
from urllib.parse import unquote

from objtune_cli.errors import UsageError

QUOTE_PAIRS = ('""', "''", "“”", "‘’", "„“", "«»")
_PATH_LIKE = re.compile(
    r"""["'“‘„«]|~|\.{1,2}(?:[\\/]|$)|[\\/]|[A-Za-z]:[\\/]|file:|.*\\|.*\.(?:safetensors|ckpt|pth?|bin)["'”]?$""", re.I
)
_NEEDS_EXPANSION = re.compile("~|file:", re.I)
_gone = False


def leave_deleted_folder() -> None:
    """Where the current folder was deleted, work in `/`: libraries cannot be loaded without one. Relative paths are refused from then on."""
    global _gone
    try:
        Path.cwd()
    except OSError:
        _gone = True
        os.chdir(os.path.abspath(os.sep))


def current_folder() -> Path:
    """The folder in which the command was called.

    Raises:
        UsageError: It does not exist any more.
    """
    try:
        if not _gone:
            return Path.cwd()
    except OSError:
        pass
    raise UsageError(
        "the current folder does not exist any more",
        "`cd` to one that does; or give `--project DIR` and absolute paths",
    )


def to_path(text: str | os.PathLike[str], folder: Path | None = None) -> Path:
    """The path that a text means: `~`, `~user`, `file:` URLs and quotes around it are understood; a file of exactly that name comes first.

    Args:
        folder: What a relative path starts from; by default the current folder, and the path stays relative.

    Raises:
        UsageError: Empty, no such home folder, or relative to a current folder that was deleted.
    """
    raw = os.fspath(text)
    if not raw.strip() or "\0" in raw:
        raise UsageError(
            "a path is empty" if not raw.strip() else f"{raw!r} cannot be a path", "give the path of a file or folder"
        )
    path = _join(Path(raw), folder)
    if not raw.startswith("~") and path_exists(path):
        return path
    plain = _without_quotes(raw.strip())
    path = path if plain == raw and not _NEEDS_EXPANSION.match(raw) else _join(_expand(plain), folder)
    if "\\" in plain and os.sep == "/" and not path_exists(path):  # typed on Windows, or by a shell that escapes spaces
        for other in (plain.replace("\\ ", " "), plain.replace("\\", "/")):
            if path_exists(_join(_expand(other), folder)):
                return _join(_expand(other), folder)
    return path


_ADDRESS = re.compile(r"(?:s3|gs|az|memory)://", re.I)


def to_place(text: str | os.PathLike[str] | None) -> Path | str | None:
    """The place of a project that a text names: the path of a folder, or an address of object storage as it stands; None for empty text."""
    if not text:
        return None
    return text if is_storage_address(text) else to_path(text)


def is_storage_address(text: str | os.PathLike[str]) -> TypeGuard[str]:
    """Whether a text is the address of object storage rather than a folder."""
    return isinstance(text, str) and _ADDRESS.match(text) is not None


def to_model(text: str, folder: Path | None = None) -> str:
    """A model as users name it: an alias or a hub id as it stands, but the path of a file or folder where the text is one.

    Args:
        folder: As for `to_path`. A plain name such as `org/name` is a path only where that folder exists.
    """
    if text == "toybox" or not text.strip():
        return text
    is_path = _PATH_LIKE.match(text.strip()) or (
        not (_gone and folder is None) and path_exists(_join(Path(text), folder))
    )
    return str(to_path(text, folder)) if is_path else text


def is_hub_id(name: str) -> bool:
    """Whether a name may be a model's on the hub: `owner/name`, and nothing that begins as a path does."""
    return name.count("/") == 1 and not _PATH_LIKE.match(name)


def to_model_list(text: str, folder: Path | None = None) -> str:
    """The same for models with commas between them."""
    return ",".join(to_model(part.strip(), folder) for part in text.split(","))


def to_file(text: str, folder: Path | None = None) -> str:
    """The path of a file as text; empty text stays empty."""
    return str(to_path(text, folder)) if text else text


def split_strength(text: str) -> tuple[str, str]:
    """The name of a file and the text of the strength behind it, "" for none: `style.safetensors:0.7`."""
    name, colon, strength = text.strip().rpartition(":")
    is_part_of_name = not colon or not name or re.search(r"[\\/]", strength)
    return (text.strip(), "") if is_part_of_name else (name.strip(), strength.strip())


def to_lora_list(text: str, folder: Path | None = None) -> str:
    """LoRAs with their strengths, one a line; commas separate them where the text has one line."""
    lines = []
    for each in filter(None, (part.strip() for part in text.split("\n" if "\n" in text else ","))):
        name, strength = (each, "") if path_exists(_join(Path(each), folder)) else split_strength(each)
        lines.append(to_model(name, folder) + (f":{strength}" if strength else "") + "\n")
    return "".join(lines)


CONVERTERS = {"file": to_file, "model": to_model, "models": to_model_list, "loras": to_lora_list}
"""How the text of a setting becomes a path, by the kind that the setting names."""


def is_file(path: Path) -> bool:
    """Whether a file is there; a text too long for a file name is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _join(path: Path, folder: Path | None) -> Path:
    if _gone and folder is None and not path.is_absolute():
        current_folder()
    return path if folder is None else folder / path


def path_exists(path: Path) -> bool:
    """Whether a file, folder or link is there; a text that cannot be a path is none."""
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):
        return False


def _without_quotes(text: str) -> str:
    """The text without a pair of quotes around it, as file managers copy paths."""
    paired = len(text) > 2 and (text[0] + text[-1]) in QUOTE_PAIRS
    return text[1:-1] if paired else text


def _expand(text: str) -> Path:
    """A home folder or a file URL as a path.

    Raises:
        UsageError: Nobody has that home folder.
    """
    if text.lower().startswith("file:"):
        text = unquote(re.sub(r"^file:(?://localhost(?=/)|//(?=/))?(?:/localhost(?=/))?", "", text, flags=re.I))
        text = text[1:] if re.match(r"/[A-Za-z]:/", text) and os.name == "nt" else text
    if not text.startswith("~"):
        return Path(text)
    try:
        return Path(text).expanduser()
    except RuntimeError:
        who = Path(text).parts[0]
        raise UsageError(
            f"{text}: there is no home folder for {who}",
            f"write the folder's path instead; `./{text}` is a file of that name here",
        ) from None
