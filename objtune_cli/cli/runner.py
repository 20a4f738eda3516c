"""The frame that commands run in: found by name, given the shared options, run, timed, rendered."""

import contextlib
import functools
import inspect
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer
from typer.main import get_command

from objtune_cli import paths
from objtune_cli.cli import console, environment, options, streams
from objtune_cli.cli.former_options import NOTES
from objtune_cli.cli.option_groups import KEY, InParts
from objtune_cli.cli.progress import ConsoleProgress
from objtune_cli.cli.signals import Stop
from objtune_cli.errors import UsageError
from objtune_cli.workflow.metric_loggers import open_loggers
from objtune_cli.workflow.reporting import CommandReporter

if TYPE_CHECKING:
    from objtune_cli.config.resolve import Settings
    from objtune_cli.store.project import Project
    from objtune_cli.workflow.context import StageContext, StageResult


Parts = list[tuple[str, dict[str, Any]]]


@dataclass
class Outcome:
    """What a command gives back: artifacts, pictures, numbers, and rows or lines of its own."""

    done: "list[StageResult]" = field(default_factory=list)
    images: list[Path] | None = None
    shown: Literal["refs", "images", "nothing"] = "refs"
    extra: dict[str, Any] = field(default_factory=dict)
    code: int = 0


@dataclass
class Run:
    """One run of one command; `parts`: its arguments, each with the options behind it."""

    name: str
    options: dict[str, Any]
    progress: ConsoleProgress
    report: CommandReporter
    stop: Stop
    parts: Parts = field(default_factory=list)
    noted: set[str] = field(default_factory=set)
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    started: float = field(default_factory=time.monotonic)

    def project(self, *, create: bool = False) -> "Project":
        """The project these options mean."""
        from objtune_cli.store.project import find_project

        return find_project(self.asked_folder(), create=create)

    def asked_folder(self) -> Path | None:
        """The project's folder where `--project` or OBJTUNE_PROJECT names one."""
        given = self.options.get("project") or os.environ.get("OBJTUNE_PROJECT")
        return paths.to_path(given) if given else None

    def settings(self, project: "Project") -> "Settings":
        """All layers of settings."""
        from objtune_cli.config.resolve import Settings

        found = Settings(project.settings, given=self.options.get("set_") or ())
        for note in found.notes:
            if note not in self.noted:
                self.noted.add(note)
                self.report.note(note)
        return found

    def context(self, *, create: bool = True) -> "StageContext":
        """What a stage needs; makes the folder a project where there is none."""
        from objtune_cli.config.sections import Common
        from objtune_cli.workflow.context import StageContext

        environment.check_docstrings()
        project = self.project(create=create)
        settings = self.settings(project)
        strict = True if self.options.get("strict_base") else None
        common = settings.resolve(
            Common, **{key: self.options.get(key) for key in ("base", "device", "precision")}, strict_base=strict
        )
        self.stop.install()
        self.held.enter_context(project.lock())
        return StageContext(project, settings, common, self.report, bool(self.options.get("force")), self.stop.asked)


MODELLED = ("segment", "init_embedding", "train", "generate", "compose", "evaluate", "bench", "import_")
"""Modules whose commands take the options of a base model."""


def load(name: str, place: str, text: str) -> Any:
    """The command of a name, from `module.function` in `commands`; only those of some modules run a model."""
    module, _, function = place.partition(".")
    found = getattr(import_module(f"objtune_cli.cli.commands.{module}"), function)
    alone = typer.Typer(rich_markup_mode=None, add_completion=False)
    alone.command(name, cls=InParts, help=text)(framed(name, found, model=module in MODELLED))
    return get_command(alone)


def framed(name: str, function: Callable[..., Outcome], *, model: bool) -> Callable[..., int]:
    """A command's function with the shared options added, run, timed and rendered.

    The function takes a `Run` first and returns an `Outcome`.
    """
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    shared = options.GLOBAL | (options.MODEL if model else {})

    @functools.wraps(function, assigned=("__module__", "__name__", "__qualname__", "__doc__"))
    def command(ctx: typer.Context, **values: Any) -> int:
        given = {n: values.pop(n) for n in shared}
        for key, value in (ctx.obj or {}).items():
            if key in given:
                given[key] = given[key] or value
        given, values = _with_paths(given), _with_paths(values)
        options.current.json, options.current.verbose = given["json"], given["verbose"]
        return _run(name, function, given, values, ctx.meta.get(KEY, []), ctx.meta.get(NOTES, []))

    del command.__wrapped__  # type: ignore[attr-defined]
    options.add_options(command, {p.name: (p.annotation, p.default) for p in own} | shared)
    return command


def _with_paths(values: dict[str, Any]) -> dict[str, Any]:
    """Values of options and arguments, each path read as a user means it."""

    def read(value: Any) -> Any:
        if isinstance(value, list):
            return [read(each) for each in value]
        return paths.to_path(value) if isinstance(value, Path) else value

    return {name: read(value) for name, value in values.items()}


def _run(
    name: str,
    function: Callable[..., Outcome],
    given: dict[str, Any],
    values: dict[str, Any],
    parts: Parts,
    notes: Sequence[str] = (),
) -> int:
    """One command, timed and shown; its exit code where it ends without an error."""
    loggers = open_loggers(given, name)
    follows = environment.follows(name)
    progress = ConsoleProgress(quiet=given["quiet"] or follows)
    run = Run(name, given, progress, CommandReporter(progress, loggers), Stop(), parts)
    for note in notes:
        run.report.note(note)
    code = 1
    try:
        with streams.results_alone(), run.held:
            outcome = function(run, **values)
        code = outcome.code
    except BaseException as error:
        code = getattr(error, "code", 130 if isinstance(error, KeyboardInterrupt) else 1)
        raise
    finally:
        progress.close()
        loggers.close(code)
    if not follows:
        _show(run, outcome, as_json=given["json"], seconds=time.monotonic() - run.started)
    return code


def _show(run: Run, outcome: Outcome, *, as_json: bool, seconds: float) -> None:
    report = run.report
    images = outcome.images if outcome.images is not None else [p for d in outcome.done for p in d.images]
    if as_json:
        root = run.project().artifacts
        refs = [_described(d, root) for d in outcome.done]
        metrics = {str(d.ref): dict(d.metrics) for d in outcome.done if d.metrics}
        base = {
            "command": run.name,
            "refs": refs,
            "images": [str(p) for p in images],
            "metrics": metrics,
            "seconds": round(seconds, 3),
        }
        console.document(base | outcome.extra)
        return
    if outcome.shown == "refs":
        for path in images:
            report.note(f"picture: {near(path)}")
        if images:
            run.progress.show_image(images[-1])
        console.lines([d.ref for d in outcome.done])
    elif outcome.shown == "images":
        if images:
            run.progress.show_image(images[0])
        console.lines([near(path) for path in images])


def near(path: Path) -> Path:
    """The path as seen from here if it lies below, else as it is."""
    try:
        here = paths.current_folder()
    except UsageError:
        return path
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path


def _described(done: "StageResult", root: Path) -> dict[str, Any]:
    from objtune_cli.store import artifacts

    path = done.ref.path(root)
    return {"ref": str(done.ref), "path": str(path), "sha256": artifacts.file_sha256(path), "reused": done.reused}


def need(condition: object, message: str, hint: str) -> None:
    """Raise a usage error unless the condition holds."""
    if not condition:
        raise UsageError(message, hint)
