"""Reads refs or prompts from arguments; `-` stands for the lines of stdin."""

import io
import sys
from collections.abc import Iterator

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
    for number, line in enumerate(io.StringIO(text.removeprefix("\ufeff"), newline=None), 1):
        if line.strip():
            yield number, line.strip()


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


def read_prompts(values: list[str]) -> list[str]:
    """Read prompts from arguments, with `-` replaced by the lines of stdin that are not empty.

    Raises:
        UsageError: There are none. InputError: A line is not text.
    """
    from objtune_cli.workflow.prompt_text import clean_prompt

    prompts: list[str] = []
    for value in values:
        if value != STDIN:
            prompts.append(value)
            continue
        lines = [clean_prompt(line, f"line {number} of stdin", may_be_empty=True) for number, line in read_lines()]
        prompts += [line for line in lines if line]
    require(
        prompts,
        "there is no prompt",
        'for example `objtune generate "a photo of <rex> on the beach"`, or one a line on stdin and `-`',
    )
    return prompts
