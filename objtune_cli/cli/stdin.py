"""Reads refs or prompts from arguments; `-` stands for the lines of stdin."""

import sys
from collections.abc import Iterator
from pathlib import Path

from objtune_cli.cli.runner import require
from objtune_cli.config import toml_files

STDIN = "-"
"""The argument for stdin."""


def read_lines() -> Iterator[tuple[int, str]]:
    """The lines of stdin that are not empty, with their numbers, in any Unicode encoding.

    Raises:
        InputError: The encoding is unknown.
    """
    binary = getattr(sys.stdin, "buffer", None)
    text = toml_files.decode(binary.read(), "stdin") if binary else sys.stdin.read()
    yield from toml_files.number_lines(text)


def read_refs(values: list[str] | None) -> list[str]:
    """Read refs from arguments, with `-` replaced by the lines of stdin.

    Raises:
        UsageError: There are none.
    """
    refs: list[str] = []
    for value in values or [STDIN]:
        if value != STDIN:
            refs.append(value)
        elif values or not sys.stdin.isatty():
            refs += [line.split("\t")[0].strip() for _, line in read_lines()]
    require(
        refs,
        "there is no ref",
        "give a ref, or pipe refs in: `objtune segment photo.jpg --class dog | objtune init-embedding -`",
    )
    return refs


def read_prompts(values: list[str], file: Path | None = None) -> list[str]:
    """Read prompts from arguments, with `-` replaced by the lines of stdin, then the lines of a file; empty lines do not count.

    Raises:
        UsageError: There are none. InputError: The file cannot be read, or a line is not text.
    """
    from objtune_cli.workflow import prompt_files

    prompts: list[str] = []
    for value in values:
        prompts += prompt_files.clean_lines(read_lines(), "stdin") if value == STDIN else [value]
    if file is not None:
        prompts += prompt_files.read_prompts(file)
    require(
        prompts,
        f"there is no prompt{f' in {file}' if file else ''}",
        'for example `objtune generate "a photo of <rex> on the beach"`, or one a line in a file and `--prompts FILE`',
    )
    return prompts
