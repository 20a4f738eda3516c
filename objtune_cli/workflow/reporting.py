"""Reports of running stages: notes, progress, metrics and images."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from objtune_cli.workflow.metric_loggers import Hyperparameter, MetricLogger, Step

if TYPE_CHECKING:
    import numpy as np

SHOWN_STAGES = ("samples",)
"""Stages whose images are shown at once; the command shows the others at its end."""
_LOG = logging.getLogger("objtune")


class Reporter(Protocol):
    """Receives the reports of a stage; stages print nothing themselves."""

    def note(self, text: str) -> None:
        """Report one line for the user."""

    def step(self, stage: str, done: int, total: int, **values: float) -> None:
        """Report a step of long work and its metrics."""

    def hyperparameters(self, values: Mapping[str, Hyperparameter]) -> None:
        """Report the settings of the command by name, before its first step."""

    def image(self, stage: str, step: int, name: str, rgb: "np.ndarray[Any, Any]") -> None:
        """Report an image, (height, width, 3), uint8."""


class Progress(Protocol):
    """Shows notes and progress while a command runs."""

    def note(self, text: str) -> None:
        """Show one line."""

    def step(self, stage: str, done: int, total: int, **values: float) -> float | None:
        """Show a step; return the seconds left in the stage, or None if they are unknown."""

    def image(self, rgb: "np.ndarray[Any, Any]") -> None:
        """Show an image, (height, width, 3), uint8."""


class CommandReporter:
    """Shows notes and steps on a progress display, and passes them to the metric loggers. Threads may share it."""

    def __init__(self, progress: Progress, loggers: MetricLogger) -> None:
        self.progress, self.loggers = progress, loggers
        self._lock = threading.RLock()

    def note(self, text: str) -> None:
        with self._lock:
            self.loggers.text(text)
            self.progress.note(text)

    def step(self, stage: str, done: int, total: int, **values: float) -> None:
        with self._lock:
            left = self.progress.step(stage, done, total, **values)
            self.loggers.log(Step(stage, done, total, left), values)

    def hyperparameters(self, values: Mapping[str, Hyperparameter]) -> None:
        with self._lock:
            self.loggers.hyperparameters(values)

    def image(self, stage: str, step: int, name: str, rgb: "np.ndarray[Any, Any]") -> None:
        with self._lock:
            self.loggers.image(Step(stage, step, step), name, rgb)
            if stage in SHOWN_STAGES:
                self.progress.image(rgb)


class NotesOnce:
    """A reporter that shows each note once: variants of one command say the same."""

    def __init__(self, report: Reporter) -> None:
        self.report = report
        self._shown: set[str] = set()

    def note(self, text: str) -> None:
        if text not in self._shown:
            self._shown.add(text)
            self.report.note(text)

    def step(self, stage: str, done: int, total: int, **values: float) -> None:
        self.report.step(stage, done, total, **values)

    def hyperparameters(self, values: Mapping[str, Hyperparameter]) -> None:
        self.report.hyperparameters(values)

    def image(self, stage: str, step: int, name: str, rgb: "np.ndarray[Any, Any]") -> None:
        self.report.image(stage, step, name, rgb)


@dataclass(slots=True)
class LogReporter:
    """What stages say, as lines of the logger `objtune`; progress for `on_step` (stage, done, total)."""

    on_step: Callable[[str, int, int], None] = lambda stage, done, total: None

    def note(self, text: str) -> None:
        _LOG.info("%s", text)

    def step(self, stage: str, done: int, total: int, **values: float) -> None:
        self.on_step(stage, done, total)

    def hyperparameters(self, values: Mapping[str, Hyperparameter]) -> None:
        """The caller of a function knows its arguments."""

    def image(self, stage: str, step: int, name: str, rgb: "np.ndarray[Any, Any]") -> None:
        """Images are in the results of the functions, so a log needs none."""
