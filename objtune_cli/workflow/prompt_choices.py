"""Choices in prompts: `{a|b}` takes one of the texts, `__animal__` one line of a file; the seed decides which."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from objtune_cli.config import toml_files
from objtune_cli.errors import InputError, UsageError

WILDCARD = re.compile(r"__([A-Za-z0-9](?:[A-Za-z0-9./-]|_(?!_)){0,78}(?<![./-])|[A-Za-z0-9])__")
"""A wildcard's name: a file without its ending, in a folder or its subfolders."""
SPECIAL = re.compile(r"\$\$|::")
"""Within braces: numbers and weights of alternatives, which other tools have."""
MAX_DEPTH = 16
"""Maximum number of wildcards within the lines of wildcards."""
MAX_LENGTH = 20_000
"""Maximum number of characters of a prompt after all choices."""
MAX_NAMES = 12
"""Number of names of wildcards in a hint."""


def has_choices(text: str, folder: Path | None) -> bool:
    """Whether a prompt has alternatives, or wildcards of a folder."""
    return bool(folder and WILDCARD.search(text)) or _choose_alternatives(text, lambda count: 0) != text


def choose(text: str, folder: Path | None, seed: int) -> str:
    """A prompt with all its choices made.

    Args:
        folder: Of the files of wildcards; None: `__name__` stays.
        seed: Seed of the image: the same prompt with the same seed gives the same choices, on every machine.

    Raises:
        InputError: There is no file of a wildcard, it has no line, or wildcards name each other without end.
    """
    num_choices = 0

    def pick(count: int) -> int:
        nonlocal num_choices
        num_choices += 1
        digest = hashlib.sha256(f"{seed}:{num_choices}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % count

    prompt = _choose_alternatives(text, pick)
    if folder is None:
        return prompt
    for _ in range(MAX_DEPTH):
        if not WILDCARD.search(prompt):
            return prompt
        prompt = WILDCARD.sub(lambda match: _pick_line(folder, match[1], pick), prompt)
        if len(prompt) > MAX_LENGTH:
            break
        prompt = _choose_alternatives(prompt, pick)
    raise InputError(
        f"the wildcards of {text[:40]!r} name each other without end",
        "remove a wildcard from the lines of its own file",
    )


def _pick_line(folder: Path, name: str, pick: Callable[[int], int]) -> str:
    lines = read_wildcard(folder, name)
    return lines[pick(len(lines))]


def read_wildcard(folder: Path, name: str) -> tuple[str, ...]:
    """The lines of a wildcard's file, without empty lines and those that begin with `#`.

    Raises:
        InputError: There is no such file, or it has no lines.
    """
    file = folder / f"{name}.txt"
    if ".." in Path(name).parts or not file.is_file():
        raise InputError(f"there is no wildcard __{name}__ in {folder}", _suggest_wildcards(folder, name))
    lines = [line.strip() for line in toml_files.decode(file.read_bytes(), str(file)).splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise InputError(f"{file} has no lines", "write one text a line")
    return tuple(lines)


def _suggest_wildcards(folder: Path, name: str) -> str:
    names = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.txt"))
    near = toml_files.find_nearest(name, names)
    more = ", …" if len(names) > MAX_NAMES else ""
    alternatives = (
        ", ".join(f"__{each}__" for each in names[:MAX_NAMES]) + more if names else f"write {folder / name}.txt"
    )
    return (
        f"did you mean __{near}__? known: {alternatives}"
        if near
        else f"known: {alternatives}"
        if names
        else alternatives
    )


def check_folder(folder: Path) -> None:
    """Refuse a folder of wildcards that does not exist.

    Raises:
        UsageError: It does not exist.
    """
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is no folder of wildcards", "give a folder with files such as animal.txt, one text a line"
        )


def _choose_alternatives(text: str, pick: Callable[[int], int]) -> str:
    """Replace each `{a|b}` by one of its texts, inner ones first; other braces stay."""
    stack: list[list[str]] = [[""]]
    for part in re.split(r"([{}|])", text):
        if part == "{":
            stack.append([""])
        elif part == "|" and len(stack) > 1:
            stack[-1].append("")
        elif part == "}" and len(stack) > 1:
            options = stack.pop()
            written = "|".join(options)
            is_choice = len(options) > 1 and not SPECIAL.search(written)
            stack[-1][-1] += options[pick(len(options))] if is_choice else "{" + written + "}"
        else:
            stack[-1][-1] += part
    while len(stack) > 1:  # braces that are not closed
        options = stack.pop()
        stack[-1][-1] += "{" + "|".join(options)
    return stack[0][0]
