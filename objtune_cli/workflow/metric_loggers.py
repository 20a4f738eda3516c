"""Destinations of a command's metrics besides the terminal: one class per format, several at the same time."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from objtune_cli.errors import ResourceError

if TYPE_CHECKING:
    import numpy as np

Hyperparameter = bool | int | float | str
"""The value of a setting, as experiment trackers take it."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a stage, counted from 1, and the seconds left in the stage where they are known."""

    stage: str
    number: int
    total: int
    seconds_left: float | None = None


class MetricLogger(Protocol):
    """A destination of metrics. It is open from its creation until `close`, and a failed write does not stop the command."""

    def hyperparameters(self, values: Mapping[str, Hyperparameter]) -> None:
        """Log the settings of the command by name, such as `{"train.rank": 8}`; before its first step."""

    def log(self, step: Step, values: Mapping[str, float]) -> None:
        """Log the metrics of a step, such as `{"loss": 0.12}`."""

    def image(self, step: Step, name: str, rgb: "np.ndarray[Any, Any]") -> None:
        """Log an image, (height, width, 3), uint8."""

    def text(self, text: str) -> None:
        """Log one line for the user."""

    def close(self, code: int) -> None:
        """Finish; the command ends with this exit code."""


class MetricLoggers:
    """Several metric loggers as one."""

    def __init__(self, loggers: Iterable[MetricLogger] = ()) -> None:
        self.loggers = tuple(loggers)

    def hyperparameters(self, values: Mapping[str, Hyperparameter]) -> None:
        for each in self.loggers:
            each.hyperparameters(values)

    def log(self, step: Step, values: Mapping[str, float]) -> None:
        for each in self.loggers:
            each.log(step, values)

    def image(self, step: Step, name: str, rgb: "np.ndarray[Any, Any]") -> None:
        for each in self.loggers:
            each.image(step, name, rgb)

    def text(self, text: str) -> None:
        for each in self.loggers:
            each.text(text)

    def close(self, code: int) -> None:
        for each in self.loggers:
            each.close(code)


class JsonLinesLogger:
    """Appends one JSON object a line to a file; docs/schemas/event.json describes it. Images are left out.

    Raises:
        ResourceError: The file cannot be opened.
    """

    def __init__(self, path: Path, command: str) -> None:
        self.started = time.monotonic()
        try:
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o666)
        except OSError as error:
            raise ResourceError(
                f"events cannot be written to {path}: {error.strerror}",
                "give `--events` a file in a folder that exists",
            ) from None
        if hasattr(os, "set_blocking"):
            os.set_blocking(handle, True)  # opening a pipe without a reader must not wait
        self._handle: int | None = handle
        self.write("start", command=command)

    def hyperparameters(self, values: Mapping[str, Hyperparameter]) -> None:
        """The records of artifacts have the settings."""

    def log(self, step: Step, values: Mapping[str, float]) -> None:
        eta = None if step.seconds_left is None else round(step.seconds_left, 1)
        self.write("step", **{**values, "stage": step.stage, "step": step.number, "total": step.total, "eta": eta})

    def image(self, step: Step, name: str, rgb: "np.ndarray[Any, Any]") -> None:
        """Lines of text hold no images; the command's document names their files."""

    def text(self, text: str) -> None:
        self.write("note", text=text)

    def close(self, code: int) -> None:
        self.write("end", code=code)
        self._release()

    def write(self, event: str, **values: Any) -> None:
        """Append one event; NaN and infinity become null."""
        import json  # `--help` logs nothing

        from objtune_cli.store.safetensors_format import replace_nonfinite

        if self._handle is None:
            return
        seconds = round(time.monotonic() - self.started, 3)
        line = json.dumps(
            {"event": event, "seconds": seconds, **replace_nonfinite(values)}, sort_keys=True, allow_nan=False
        )
        try:
            os.write(self._handle, (line + "\n").encode())
        except OSError:  # a reader that has gone does not stop the command
            self._release()

    def _release(self) -> None:
        if self._handle is not None:
            with contextlib.suppress(OSError):
                os.close(self._handle)
        self._handle = None


class LiveImagesLogger:
    """Writes the newest image of each stage to a folder, as `samples.png`, and that of each object, as `samples-rex.png`.

    Raises:
        ResourceError: The folder cannot be made.
    """

    def __init__(self, folder: Path, command: str) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(
                f"images cannot be written to {folder}: {error.strerror}", "give `--live` a folder"
            ) from None

    def hyperparameters(self, values: Mapping[str, Hyperparameter]) -> None:
        """A folder of images holds no settings."""

    def log(self, step: Step, values: Mapping[str, float]) -> None:
        """A folder of images holds no numbers."""

    def image(self, step: Step, name: str, rgb: "np.ndarray[Any, Any]") -> None:
        from objtune_cli.images.png import encode_png

        data = encode_png(rgb)
        for stem in (step.stage, f"{step.stage}-{name}"):
            unfinished = self.folder / f"{stem}.unfinished"
            with contextlib.suppress(OSError):  # a full disk does not stop the command
                unfinished.write_bytes(data)
                unfinished.replace(self.folder / f"{stem}.png")

    def text(self, text: str) -> None:
        """A folder of images holds no notes."""

    def close(self, code: int) -> None:
        """Every image is complete."""


@dataclass(frozen=True, slots=True)
class LoggerOption:
    """The command-line option of a metric logger: its value is a path, and `open` takes it with the command's name."""

    metavar: str
    help: str
    open: Callable[[Path, str], MetricLogger]


LOGGERS: dict[str, LoggerOption] = {
    "events": LoggerOption("FILE", "Append progress to FILE, one JSON object per line.", JsonLinesLogger),
    "live": LoggerOption("DIR", "Write samples to DIR as soon as they are drawn.", LiveImagesLogger),
}
"""Every metric logger by the name of its option: `events` is `--events FILE`."""
