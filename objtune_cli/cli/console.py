"""All that is said: results to stdout, everything else to stderr; colour and bars only on a terminal."""

import json
import os
import re
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from objtune_cli.cli import streams
from objtune_cli.errors import ObjtuneError
from objtune_cli.store import safetensors_format as header

if TYPE_CHECKING:
    from objtune_cli.cli.events import Events

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
PLAIN_EVERY = 0.05
"""Off a terminal, one progress line for each such share of the work, at most."""


def safe(text: object) -> str:
    """Text for people: control and direction characters as \\xNN or \\uNNNN."""
    return _UNSAFE.sub(lambda m: f"\\x{ord(m[0]):02x}" if ord(m[0]) < 256 else f"\\u{ord(m[0]):04x}", str(text))


def colourful(stream: TextIO) -> bool:
    """Whether escape sequences may go to a stream."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Reporter:
    """Notes, progress and errors of one command, on stderr.

    Of threads at work at the same time, progress is shown of the one that began first; all have their notes and events.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False, events: "Events | None" = None) -> None:
        self.quiet, self.verbose, self.events = quiet, verbose, events
        self.terminal = colourful(sys.stderr) and not quiet
        self._bar: Any = None
        self._task: Any = None
        self._stage = ""
        self._said = self._started = 0.0
        self._first = 0
        self._lock, self._shown = threading.RLock(), 0

    def note(self, text: str) -> None:
        """One line for the user."""
        with self._lock:
            if self.events:
                self.events.write("note", text=text)
            if not self.quiet:
                self._end_bar()
                print(safe(text), file=sys.stderr, flush=True)

    def step(self, stage: str, done: int, total: int, **values: float) -> None:
        """Progress: a bar on a terminal, a plain line now and then elsewhere; every step is an event."""
        with self._lock:
            mine = threading.get_ident()
            if self._shown in (0, mine) or mine == threading.main_thread().ident:  # which waits while others work
                self._shown = 0 if done >= total else mine
                self._step(stage, done, total, **values)
            elif self.events:
                self.events.write("step", **{**values, "stage": stage, "step": done, "total": total, "eta": None})

    def _step(self, stage: str, done: int, total: int, **values: float) -> None:
        if stage != self._stage or done < self._said * total:
            self._begin(stage, done, total)
        spent, taken = time.monotonic() - self._started, done - self._first
        left = spent / taken * (total - done) if taken else None
        if self.events:
            eta = None if left is None else round(left, 1)
            self.events.write("step", **{**values, "stage": stage, "step": done, "total": total, "eta": eta})
        if self.terminal:
            shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
            self._bar.update(self._task, completed=done, total=total, shown=shown)
        elif not self.quiet and (done == total or done >= (self._said + PLAIN_EVERY) * total):
            self._said = done / total
            shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
            pace = "" if left is None else f"  {spent / taken:.2f} s/step  {left:.0f} s left"
            print(f"{stage} {done}/{total}  {shown}{pace}".rstrip(), file=sys.stderr, flush=True)
        if done >= total:
            self._end_bar()

    def _begin(self, stage: str, done: int, total: int) -> None:
        self._end_bar()
        self._stage, self._said, self._first, self._started = stage, 0.0, done, time.monotonic()
        if self.terminal:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
            )
            self._bar = Progress(
                *columns, TimeRemainingColumn(), TextColumn("{task.fields[shown]}"), console=Console(stderr=True)
            )
            self._task = self._bar.add_task(stage, total=total, shown="")
            self._bar.start()

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._stage = None, ""

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._end_bar()

    def picture(self, path: Path) -> None:
        """A picture in the terminal, in half blocks; nothing elsewhere."""
        if not self.terminal:
            return
        from rich.console import Console

        self._end_bar()
        Console(stderr=True).print(half_blocks(path), highlight=False)


def half_blocks(path: Path, width: int = 72) -> Any:
    """The picture as rich text, two pixels a character."""
    from PIL import Image
    from rich.text import Text

    image = Image.open(path).convert("RGB")
    height = max(2, round(image.height / image.width * width / 2) * 2)
    pixels = image.resize((width, height)).load()
    text = Text()
    for y in range(0, height, 2):
        for x in range(width):
            up, low = pixels[x, y], pixels[x, y + 1]  # type: ignore[index]
            text.append("▀", style=f"rgb({up[0]},{up[1]},{up[2]}) on rgb({low[0]},{low[1]},{low[2]})")  # type: ignore[index]
        text.append("\n")
    return text


def error(exc: ObjtuneError, command: str, *, as_json: bool) -> None:
    """`error:` and `hint:` on stderr; with `--json` also the document on stdout."""
    if as_json:
        document({"command": command, "error": {"code": exc.code, "message": exc.message, "hint": exc.hint}})
    print(f"error: {safe(exc.message)}", file=sys.stderr)
    if exc.hint:
        print(f"hint: {safe(exc.hint)}", file=sys.stderr)


def trace() -> None:
    """The traceback of the exception at hand, fit for a terminal."""
    import traceback

    for line in traceback.format_exc().splitlines():
        print(safe(line), file=sys.stderr)


def document(value: dict[str, Any]) -> None:
    """The one JSON document of a command."""
    print(
        json.dumps(header.replace_nonfinite(value), sort_keys=True, default=str, allow_nan=False),
        file=streams.results(),
        flush=True,
    )


def lines(values: Sequence[object]) -> None:
    """Results, one a line."""
    for value in values:
        print(safe(value), file=streams.results())
    streams.results().flush()


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on stdout: aligned columns on a terminal, tabs elsewhere."""
    out = streams.results()
    if not out.isatty():
        for row in rows:
            print("\t".join(safe(v) for v in row), file=out)
        out.flush()
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(*header, box=box.SIMPLE_HEAD, header_style="bold")
    for row in rows:
        grid.add_row(*(Text(safe(v)) for v in row))
    Console(file=out, color_system="auto" if colourful(out) else None).print(grid)
