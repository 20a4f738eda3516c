"""Runs one command: loads it by name, gives it the shared options, times it and prints its result."""

import contextlib
import functools
import inspect
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer
from typer.main import get_command

from objtune_cli import paths
from objtune_cli.cli import console, environment, options, streams, typed_command
from objtune_cli.cli.former_options import NOTES
from objtune_cli.cli.option_groups import KEY, GroupedCommand
from objtune_cli.cli.progress import ConsoleProgress
from objtune_cli.cli.signals import StopFlag
from objtune_cli.errors import UsageError
from objtune_cli.workflow.metric_loggers import MetricLoggers
from objtune_cli.workflow.reporting import CommandReporter
from objtune_cli.workflow.trackers import open_loggers

if TYPE_CHECKING:
    from objtune_cli.config.resolve import Settings
    from objtune_cli.store.project import Project
    from objtune_cli.store.store import Store
    from objtune_cli.workflow.context import StageContext, StageResult


OptionGroups = list[tuple[str, dict[str, Any]]]
"""Arguments of a command line, each with the options behind it; the first argument is empty."""


@dataclass
class CommandResult:
    """What a command returns: results of stages, images, and what its JSON document has besides.

    Attributes:
        images: Paths of images; None: those of the results.
        printed: What goes to stdout without `--json`; "nothing": the command has printed its own lines.
    """

    results: "list[StageResult]" = field(default_factory=list)
    images: list[Path] | None = None
    printed: Literal["refs", "images", "nothing"] = "refs"
    extra: dict[str, Any] = field(default_factory=dict)
    code: int = 0


@dataclass
class CommandRun:
    """One run of one command.

    Attributes:
        options: Values of the shared options. groups: The command line's arguments with the options behind them.
        words: The whole command line; empty where no one typed it.
        resources: Closed when the command ends.
    """

    name: str
    options: dict[str, Any]
    progress: ConsoleProgress
    report: CommandReporter
    stop: StopFlag
    groups: OptionGroups = field(default_factory=list)
    words: tuple[str, ...] = ()
    resources: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    started: float = field(default_factory=time.monotonic)
    _reported: set[str] = field(default_factory=set)

    def project(self, *, create: bool = False) -> "Project":
        """Find the project that the options name, or the one above the current folder."""
        from objtune_cli.store.project import find_project

        return find_project(self.requested_folder(), create=create)

    def requested_folder(self) -> Path | str | None:
        """The folder or address that `--project` or OBJTUNE_PROJECT names; None where neither does."""
        return paths.to_place(self.options.get("project") or os.environ.get("OBJTUNE_PROJECT"))

    def settings(self, project: "Project") -> "Settings":
        """Read all layers of settings; each note on a former name is reported once."""
        from objtune_cli.config.resolve import Settings

        settings = Settings(project.settings, flags=self.options.get("set_") or ())
        for note in settings.notes:
            if note not in self._reported:
                self._reported.add(note)
                self.report.note(note)
        return settings

    def context(self, *, create: bool = True) -> "StageContext":
        """Build the context of the stages: settings are checked, signals handled, and the project locked.

        Args:
            create: Make the folder a project where there is none.
        """
        environment.check_docstrings()
        ctx = self.unlocked_context(create=create)
        self.stop.install()
        self.resources.enter_context(ctx.project.lock())
        return ctx

    def unlocked_context(self, *, create: bool) -> "StageContext":
        """Build the context of the stages without a lock and without signals, for a command that waits for the user."""
        from objtune_cli.config.sections import Common
        from objtune_cli.workflow.context import StageContext

        project = self.project(create=create)
        settings = self.settings(project)
        strict = True if self.options.get("strict_base") else None
        common = settings.resolve(
            Common, **{key: self.options.get(key) for key in ("base", "device", "precision")}, strict_base=strict
        )
        return StageContext(
            project,
            settings,
            common,
            self.report,
            bool(self.options.get("force")),
            self.stop.stop_signal,
            command=typed_command.keep(self.words),
        )


MODEL_COMMANDS = (
    "segment",
    "init_embedding",
    "train",
    "generate",
    "compose",
    "place",
    "evaluate",
    "bench",
    "import_",
    "ui",
)
"""Modules whose commands take all options of a base model."""
MODEL_OPTIONS = {**dict.fromkeys(MODEL_COMMANDS, options.MODEL), "doctor": options.DOCTOR}
"""Module to the options of a base model that its command takes."""


@dataclass(frozen=True, slots=True)
class Subcommand:
    """A command of a command: its function, its help, and which options of a base model it takes."""

    function: Callable[..., CommandResult]
    help: str
    model: Mapping[str, tuple[Any, Any]] = field(default_factory=lambda: options.MODEL)


def load_command(name: str, place: str, text: str) -> Any:
    """Load a command from `module.attribute` in `commands`; an attribute that is a mapping holds its subcommands."""
    module, _, attribute = place.partition(".")
    command = getattr(import_module(f"objtune_cli.cli.commands.{module}"), attribute)
    if isinstance(command, Mapping):
        from objtune_cli.cli.subcommands import DefaultGroup

        commands = {key: _build_command(name, key, each) for key, each in command.items()}
        return DefaultGroup(
            name=name, help=text, commands=commands, rich_markup_mode=None, subcommand_metavar="[COMMAND] [ARGS]..."
        )
    return _build_command(name, name, Subcommand(command, text, MODEL_OPTIONS.get(module, {})))


def _build_command(run_name: str, name: str, command: Subcommand) -> Any:
    """A parser for one command; `run_name`: its name in JSON output."""
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    wrapped = wrap_command(run_name, command.function, model=command.model)
    app.command(name, cls=GroupedCommand, help=command.help)(wrapped)
    return get_command(app)


def wrap_command(
    name: str, function: Callable[..., CommandResult], *, model: Mapping[str, tuple[Any, Any]]
) -> Callable[..., int]:
    """Add the shared options to a command's function, run it, and print its result.

    The function takes a `CommandRun` first and returns a `CommandResult`; the wrapped one returns the exit code.
    """
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    shared = options.GLOBAL | dict(model)

    @functools.wraps(function, assigned=("__module__", "__name__", "__qualname__", "__doc__"), updated=())
    def command(ctx: typer.Context, **values: Any) -> int:
        invocation: options.Invocation = ctx.obj
        common = {key: values.pop(key) or invocation.shared.get(key) for key in shared}
        common, values = _with_paths(common), _with_paths(values)
        invocation.json, invocation.verbose = common["json"], common["verbose"]
        notes = ctx.meta.get(NOTES, [])
        return _run(name, function, common, values, ctx.meta.get(KEY, []), notes, invocation.words)

    del command.__wrapped__
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
    function: Callable[..., CommandResult],
    common: dict[str, Any],
    values: dict[str, Any],
    groups: OptionGroups,
    notes: Sequence[str] = (),
    words: Sequence[str] = (),
) -> int:
    """Run one command and print its result; returns its exit code if it ends without an error."""
    is_follower = environment.is_follower(name)
    loggers = MetricLoggers() if is_follower else open_loggers(common, name)
    progress = ConsoleProgress(quiet=common["quiet"] or is_follower)
    run = CommandRun(name, common, progress, CommandReporter(progress, loggers), StopFlag(), groups, tuple(words))
    for note in notes:
        run.report.note(note)
    code = 1
    try:
        with streams.only_results_to_stdout(), run.resources:
            result = function(run, **values)
        code = result.code
    except BaseException as error:
        code = getattr(error, "code", 130 if isinstance(error, KeyboardInterrupt) else 1)
        raise
    finally:
        progress.close()
        loggers.close(code)
    if not is_follower:
        seconds = time.monotonic() - run.started
        if common["json"]:
            console.print_json(_build_document(run, result, seconds))
        else:
            _print_result(run, result)
    return code


def _images(result: CommandResult) -> list[Path]:
    return result.images if result.images is not None else [path for each in result.results for path in each.images]


def _build_document(run: CommandRun, result: CommandResult, seconds: float) -> dict[str, Any]:
    """The JSON document of a command; docs/schemas/output.json describes it."""
    store = run.project().store
    return {
        "command": run.name,
        "refs": [_describe_result(each, store) for each in result.results],
        "images": [str(store.backend.locate_path(path)) for path in _images(result)],
        "metrics": {str(each.ref): dict(each.metrics) for each in result.results if each.metrics},
        "seconds": round(seconds, 3),
        **result.extra,
    }


def _print_result(run: CommandRun, result: CommandResult) -> None:
    """Print refs or image paths, one a line; a terminal also shows an image."""
    images = _images(result)
    names = [_name_image(run, path) for path in images]
    if result.printed == "refs":
        for name in names:
            run.report.note(f"picture: {name}")
        if images:
            run.progress.show_image(pick_image(images))
        console.print_lines([each.ref for each in result.results])
    elif result.printed == "images":
        if images:
            run.progress.show_image(images[0])
        console.print_lines(names)


def pick_image(images: Sequence[Path]) -> Path:
    """The image of an artifact that a terminal shows: an adapter's preview, else the last."""
    return next((path for path in images if path.name == "preview.png"), images[-1])


def _name_image(run: CommandRun, path: Path) -> str:
    """The address of an image in a bucket, or its path."""
    name = run.project().store.backend.locate_path(path)
    return str(relative_to_cwd(name) if isinstance(name, Path) else name)


def relative_to_cwd(path: Path) -> Path:
    """A path relative to the current folder if it lies below; any other path is returned unchanged."""
    try:
        here = paths.current_folder()
    except UsageError:
        return path
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path


def _describe_result(result: "StageResult", store: "Store") -> dict[str, Any]:
    sha256 = store.compute_sha256(result.ref)
    return {"ref": str(result.ref), "path": store.locate(result.ref), "sha256": sha256, "reused": result.reused}


def require(condition: object, message: str, hint: str) -> None:
    """Raise a usage error unless the condition holds."""
    if not condition:
        raise UsageError(message, hint)
