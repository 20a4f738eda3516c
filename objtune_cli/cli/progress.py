"""Progress of a command on stderr: bars and images on a terminal, plain lines elsewhere."""

import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from objtune_cli.cli.console import escape_control_chars, use_color

PLAIN_EVERY = 0.05
"""Off a terminal, at most one progress line for each such share of the work."""


class ConsoleProgress:
    """Shows notes and progress of one command.

    Where several threads work at the same time, the bar shows the thread that began first, and all of them show notes.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.terminal = use_color(sys.stderr) and not quiet
        self._bar: Any = None
        self._task: Any = None
        self._stage = ""
        self._printed = self._started = 0.0
        self._first_step = 0
        self._lock, self._shown_thread = threading.RLock(), 0

    def note(self, text: str) -> None:
        """Show one line."""
        with self._lock:
            if not self.quiet:
                self._end_bar()
                print(escape_control_chars(text), file=sys.stderr, flush=True)

    def step(self, stage: str, done: int, total: int, **values: float) -> float | None:
        """Show a step: a bar on a terminal, a plain line now and then elsewhere.

        Returns:
            The seconds left in the stage; None for the first step, and for a thread that is not shown.
        """
        with self._lock:
            thread = threading.get_ident()
            # the main thread waits while others work
            if self._shown_thread not in (0, thread) and thread != threading.main_thread().ident:
                return None
            self._shown_thread = 0 if done >= total else thread
            return self._show_step(stage, done, total, values)

    def _show_step(self, stage: str, done: int, total: int, values: Mapping[str, float]) -> float | None:
        if stage != self._stage or done < self._printed * total:
            self._begin(stage, done, total)
        seconds, steps = time.monotonic() - self._started, done - self._first_step
        seconds_left = seconds / steps * (total - done) if steps else None
        text = "  ".join(
            f"{name} {value}" if isinstance(value, int) else f"{name} {value:.4f}" for name, value in values.items()
        )
        if self.terminal:
            self._bar.update(self._task, completed=done, total=total, values=text)
        elif not self.quiet and (done == total or done >= (self._printed + PLAIN_EVERY) * total):
            self._printed = done / total
            pace = "" if seconds_left is None else f"  {seconds / steps:.2f} s/step  {seconds_left:.0f} s left"
            print(f"{stage} {done}/{total}  {text}{pace}".rstrip(), file=sys.stderr, flush=True)
        if done >= total:
            self._end_bar()
        return seconds_left

    def _begin(self, stage: str, done: int, total: int) -> None:
        self._end_bar()
        self._stage, self._printed, self._first_step, self._started = stage, 0.0, done, time.monotonic()
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
                *columns, TimeRemainingColumn(), TextColumn("{task.fields[values]}"), console=Console(stderr=True)
            )
            self._task = self._bar.add_task(stage, total=total, values="")
            self._bar.start()

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._stage = None, ""

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._end_bar()

    def show_image(self, path: Path) -> None:
        """Show an image on a terminal, in half blocks; nothing elsewhere."""
        if not self.terminal:
            return
        from rich.console import Console

        self._end_bar()
        Console(stderr=True).print(half_blocks(path), highlight=False)


def half_blocks(path: Path, width: int = 72) -> Any:
    """An image as rich text of `width` characters, two pixels each, one above the other."""
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
