"""`--events FILE`: what a command is doing, one JSON object a line, for programs. docs/schemas/event.json has its form."""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from objtune_cli.errors import ResourceError
from objtune_cli.store import safetensors_format


class Events:
    """Lines appended to a file, each whole; a reader that went away stops nothing."""

    def __init__(self, path: Path) -> None:
        self.started = time.monotonic()
        try:
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o666)
        except OSError as error:
            raise ResourceError(
                f"events cannot be written to {path}: {error.strerror}",
                "give `--events` a file in a folder that exists",
            ) from None
        if hasattr(os, "set_blocking"):
            os.set_blocking(handle, True)  # only opening a pipe that nobody reads must not wait
        self._handle: int | None = handle

    def write(self, event: str, **values: Any) -> None:
        """One event; numbers that JSON does not have become null."""
        if self._handle is None:
            return
        seconds = round(time.monotonic() - self.started, 3)
        line = json.dumps(
            {"event": event, "seconds": seconds, **safetensors_format.replace_nonfinite(values)},
            sort_keys=True,
            allow_nan=False,
        )
        try:
            os.write(self._handle, (line + "\n").encode())
        except OSError:
            self.close()

    def close(self) -> None:
        """No more events."""
        if self._handle is not None:
            with contextlib.suppress(OSError):
                os.close(self._handle)
        self._handle = None
