"""What a command is given to work on: arguments, or the lines of stdin where one is `-`."""

import sys

from objtune_cli.cli.frame import need


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
            given += [line.split("\t")[0].strip() for line in sys.stdin if line.strip()]
    need(
        given,
        "nothing was given to work on",
        "give a ref, or pipe refs in: `objtune segment photo.jpg --class dog | objtune init-embedding -`",
    )
    return given
