"""Experiment trackers as metric loggers: TensorBoard, Weights & Biases and Trackio; each is an extra of its own name."""

import contextlib
import importlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli.errors import ResourceError, UsageError
from objtune_cli.workflow.metric_loggers import LOGGERS, Hyperparameter, MetricLogger, MetricLoggers, Step

if TYPE_CHECKING:
    import numpy as np

RUNS = "runs"
"""Folder of TensorBoard's files, in the current one."""
PROJECT = "objtune"
"""Project of W&B and Trackio, unless their own variables name another."""


class TensorBoardLogger:
    """Writes an event file; scalars are `stage/name`, images `stage/name`."""

    def __init__(self, command: str, folder: str) -> None:
        """`folder`: where the event file goes; empty: a new folder in `runs`.

        Raises:
            ResourceError: tensorboard is not installed, or the folder cannot be written.
        """
        tensorboard = _import("tensorboard.summary.writer.event_file_writer", "tensorboard")
        self._proto = _import("tensorboard.compat.proto", "tensorboard", "summary_pb2", "event_pb2")
        path = Path(folder) if folder else Path(RUNS) / _run_name(command)
        self._trial = path.name
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._writer = tensorboard.EventFileWriter(str(path))
        except OSError as error:
            raise ResourceError(
                f"TensorBoard's files cannot be written to {path}: {error.strerror}", "`--log tensorboard=FOLDER`"
            ) from None

    def hyperparameters(self, values: Mapping[str, Hyperparameter]) -> None:
        """Write what the HParams tab shows."""
        with contextlib.suppress(ResourceError):  # a TensorBoard without the plugin
            plugin = _import("tensorboard.plugins.hparams.summary_v2", "tensorboard")
            self._write(plugin.hparams_pb(dict(values), trial_id=self._trial), 0)

    def log(self, step: Step, values: Mapping[str, float]) -> None:
        summary = self._proto.summary_pb2.Summary()
        for name, value in values.items():
            summary.value.add(tag=f"{step.stage}/{name}", simple_value=float(value))
        self._write(summary, step.number)

    def image(self, step: Step, name: str, rgb: "np.ndarray[Any, Any]") -> None:
        from objtune_cli.images import png

        image = self._proto.summary_pb2.Summary.Image(
            height=rgb.shape[0], width=rgb.shape[1], colorspace=3, encoded_image_string=png.encode_png(rgb)
        )
        summary = self._proto.summary_pb2.Summary()
        summary.value.add(tag=f"{step.stage}/{name}", image=image)
        self._write(summary, step.number)

    def text(self, text: str) -> None:
        """Notes are for the terminal."""

    def close(self, code: int) -> None:
        with contextlib.suppress(OSError):
            self._writer.close()

    def _write(self, summary: Any, number: int) -> None:
        event = self._proto.event_pb2.Event(wall_time=time.time(), step=number, summary=summary)
        with contextlib.suppress(OSError):  # a full disk does not stop the command
            self._writer.add_event(event)


class RunLogger:
    """Logs to a library with the functions of `wandb`: `init`, `log`, `finish` and the class `Image`."""

    def __init__(self, library: str, command: str, project: str, variable: str) -> None:
        """`variable`: environment variable of the library that names the project.

        Raises:
            ResourceError: The library is not installed, or refuses to start.
        """
        self._library = _import(library, library)
        self._stages: set[str] = set()
        try:
            with contextlib.redirect_stdout(sys.stderr):  # stdout has results alone
                self._run = self._library.init(
                    project=project or os.environ.get(variable) or PROJECT, name=_run_name(command)
                )
        except Exception as error:  # no account, no connection: each library has its own error
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ResourceError(
                f"{library} cannot start: {reason}", "see its documentation; W&B works offline with WANDB_MODE=offline"
            ) from None

    def hyperparameters(self, values: Mapping[str, Hyperparameter]) -> None:
        """Fill the run's config, with a table for each section of settings."""
        config: dict[str, Any] = {}
        for key, value in values.items():
            section, _, name = key.rpartition(".")
            (config.setdefault(section, {}) if section else config)[name] = value
        with contextlib.suppress(Exception):
            self._run.config.update(config)

    def log(self, step: Step, values: Mapping[str, float]) -> None:
        self._log({f"{step.stage}/{name}": value for name, value in values.items()}, step)

    def image(self, step: Step, name: str, rgb: "np.ndarray[Any, Any]") -> None:
        self._log({f"{step.stage}/{name}": self._library.Image(rgb)}, step)

    def text(self, text: str) -> None:
        """Notes are for the terminal."""

    def close(self, code: int) -> None:
        with contextlib.suppress(Exception), contextlib.redirect_stdout(sys.stderr):
            self._library.finish(**({"exit_code": code} if self._library.__name__ == "wandb" else {}))

    def _log(self, values: Mapping[str, Any], step: Step) -> None:
        with contextlib.suppress(Exception):  # a lost connection does not stop the command
            if step.stage not in self._stages:
                self._stages.add(step.stage)
                self._use_own_axis(step.stage)
            self._run.log({**values, f"{step.stage}/step": step.number})

    def _use_own_axis(self, stage: str) -> None:
        """Let the charts of a stage count its own steps, where the library can."""
        if hasattr(self._run, "define_metric"):
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")


TRACKERS: dict[str, Callable[[str, str], MetricLogger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": lambda command, project: RunLogger("wandb", command, project, "WANDB_PROJECT"),
    "trackio": lambda command, project: RunLogger("trackio", command, project, "TRACKIO_PROJECT"),
}
"""Trackers by name; each takes the command's name, and what follows `=`: a folder, or a project."""


def open_loggers(options: Mapping[str, Any], command: str) -> MetricLoggers:
    """Open the metric loggers whose options have a value, and the trackers of `--log`."""
    loggers = [each.open(options[name], command) for name, each in LOGGERS.items() if options.get(name)]
    return MetricLoggers([*loggers, *(open_tracker(text, command) for text in options.get("log") or ())])


def open_tracker(text: str, command: str) -> MetricLogger:
    """Open the tracker of a value of `--log`, such as `tensorboard` or `wandb=shop`.

    Raises:
        UsageError: There is no such tracker. ResourceError: Its package is not installed, or it cannot start.
    """
    name, _, place = text.partition("=")
    if name not in TRACKERS:
        raise UsageError(f"there is no tracker {name}", f"`--log` takes {', '.join(TRACKERS)}")
    return TRACKERS[name](command, place)


def _import(module: str, extra: str, *parts: str) -> Any:
    """Import a module, and some of its submodules.

    Raises:
        ResourceError: The extra's package is not installed.
    """
    try:
        for part in parts:
            importlib.import_module(f"{module}.{part}")
        return importlib.import_module(module)
    except ImportError:
        raise ResourceError(f"`--log {extra}` needs another package", f"`pip install 'objtune[{extra}]'`") from None


def _run_name(command: str) -> str:
    return f"{command}-{time.strftime('%Y%m%d-%H%M%S')}"
