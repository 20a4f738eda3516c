"""Progress of a command on stderr: bars and images on a terminal, plain lines elsewhere."""

import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli.cli.console import escape_control_chars, use_color

if TYPE_CHECKING:
    from PIL import Image

NOT_SHOWN = ("learning_rate", "embedding_lr", "gradient_norm", "memory_mb")
"""Values of steps that are for metric loggers alone, as are those of one of several objects in training, `dog/loss`."""
LOGGED_STAGES = ("scores", "seconds")
"""Stages that are for metric loggers alone: a note says the same."""
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
        """Show a step: a bar on a terminal, a plain line now and then elsewhere; stages of `LOGGED_STAGES` not at all.

        Returns:
            The seconds left in the stage; None for the first step, and for a thread that is not shown.
        """
        if stage in LOGGED_STAGES:
            return None
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
            f"{name} {value}" if isinstance(value, int) else f"{name} {value:.4f}"
            for name, value in values.items()
            if name not in NOT_SHOWN and not (stage == "train" and "/" in name)
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
        """Show an image file on a terminal; nothing elsewhere."""
        if self.terminal:
            from PIL import Image

            with Image.open(path) as image:
                self._show(image.convert("RGB"))

    def image(self, rgb: Any) -> None:
        """Show an image (H, W, 3) uint8 on a terminal; nothing elsewhere."""
        if self.terminal:
            from PIL import Image

            self._show(Image.fromarray(rgb))

    def _show(self, image: "Image.Image") -> None:
        from rich.console import Console

        from objtune_cli.cli import terminal_images

        with self._lock:
            self._end_bar()
            Console(stderr=True).print(terminal_images.render(image), highlight=False)
