"""What a command is given to work on, refs or prompts: arguments, or the lines of stdin where one is `-`."""

import sys
from collections.abc import Iterator

from objtune_cli.cli.frame import need
from objtune_cli.errors import InputError


def given_refs(values: list[str] | None) -> list[str]:
    """Arguments, with `-` replaced by the lines of stdin.

    Raises:
        UsageError: Nothing was given.
    """
    given: list[str] = []
    for value in values or ["-"]:
        if value != "-":
            given.append(value)
        elif values or not sys.stdin.isatty():
            given += [line.split("\t")[0] for line in _lines()]
    need(
        given,
        "nothing was given to work on",
        "give a ref, or pipe refs in: `objtune segment photo.jpg --class dog | objtune init-embedding -`",
    )
    return given


def _lines() -> Iterator[str]:
    """The lines of stdin that hold a prompt."""
    from objtune_cli.stages.prompts import clean

    number = 0
    try:
        for number, line in enumerate(sys.stdin, 1):
            prompt = clean(line.strip(), f"line {number} of stdin", may_be_empty=True)
            if prompt:
                yield prompt
    except UnicodeDecodeError:
        raise InputError(f"stdin is not UTF-8 after line {number}", "save the prompts as UTF-8") from None


def given_prompts(values: list[str]) -> list[str]:
    """Arguments, with `-` replaced by the lines of stdin; empty lines are none.

    Raises:
        UsageError: Nothing was given. InputError: a line is no text.
    """
    given: list[str] = []
    for value in values:
        given += _lines() if value == "-" else [value]
    need(given, "no prompt was given", "for example `objtune generate \"a photo of <rex> on the beach\"`, or one a line on stdin and `-`")
    return given


def _lines() -> list[str]:
    """The lines of stdin that are not empty, without the byte order mark that PowerShell puts before them."""
    return [line.strip() for line in sys.stdin.read().removeprefix("\ufeff").splitlines() if line.strip()]
