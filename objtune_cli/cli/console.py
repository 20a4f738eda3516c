"""Printing: results to stdout, errors to stderr; colour only on a terminal."""

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, TextIO

from objtune_cli.cli import streams
from objtune_cli.errors import ObjtuneError
from objtune_cli.store import safetensors_format as header

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_control_chars(text: object) -> str:
    """Text for people: control and direction characters as \\xNN or \\uNNNN."""
    return _UNSAFE.sub(lambda m: f"\\x{ord(m[0]):02x}" if ord(m[0]) < 256 else f"\\u{ord(m[0]):04x}", str(text))


def use_color(stream: TextIO) -> bool:
    """Whether escape sequences may go to a stream."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def print_error(exc: ObjtuneError, command: str, *, as_json: bool) -> None:
    """`error:` and `hint:` on stderr; with `--json` also the document on stdout."""
    if as_json:
        print_json({"command": command, "error": {"code": exc.code, "message": exc.message, "hint": exc.hint}})
    print(f"error: {escape_control_chars(exc.message)}", file=sys.stderr)
    if exc.hint:
        print(f"hint: {escape_control_chars(exc.hint)}", file=sys.stderr)


def print_traceback() -> None:
    """The traceback of the exception at hand, fit for a terminal."""
    import traceback

    for line in traceback.format_exc().splitlines():
        print(escape_control_chars(line), file=sys.stderr)


def print_json(value: dict[str, Any]) -> None:
    """The one JSON document of a command."""
    print(
        json.dumps(header.replace_nonfinite(value), sort_keys=True, default=str, allow_nan=False),
        file=streams.result_stream(),
        flush=True,
    )


def print_lines(values: Sequence[object]) -> None:
    """Results, one a line."""
    for value in values:
        print(escape_control_chars(value), file=streams.result_stream())
    streams.result_stream().flush()


PAGE = 1000
"""Rows of a table that are aligned together."""


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on stdout: aligned columns on a terminal, tabs elsewhere."""
    print_rows(header, rows)


def print_rows(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table of rows that are printed as they come: on a terminal aligned in pages, elsewhere with tabs."""
    out = streams.result_stream()
    if not out.isatty():
        for number, row in enumerate(rows):
            print("\t".join(escape_control_chars(v) for v in row), file=out, flush=number == 0)
        out.flush()
        return
    waiting, is_first = iter(rows), True
    while (page := list(islice(waiting, PAGE))) or is_first:
        _print_grid(out, header, page, show_header=is_first)
        is_first = False


def _print_grid(out: TextIO, header: Sequence[str], rows: Sequence[Sequence[object]], *, show_header: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(*header, box=box.SIMPLE_HEAD, header_style="bold", show_header=show_header)
    for row in rows:
        grid.add_row(*(Text(escape_control_chars(v)) for v in row))
    Console(file=out, color_system="auto" if use_color(out) else None).print(grid)
