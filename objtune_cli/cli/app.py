"""The command tree and the one place where errors become exit codes."""

import gc
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from objtune_cli.cli import environment, launcher, options, streams
from objtune_cli.errors import ObjtuneError
from objtune_cli.version import __version__

COMMANDS = {
    "segment": (
        "segment.segment",
        "Segment the object in a photo. Prints the ref of the mask; an overlay image is saved with it.",
    ),
    "init-embedding": (
        "init_embedding.init_embedding",
        "Initialise the object's token from its image. Prints the ref of the embedding.",
    ),
    "train": (
        "train.train",
        "Train an adapter for the object, with all earlier stages. Prints the ref of the adapter.",
    ),
    "generate": (
        "generate.generate",
        "Generate images from prompts that name trained objects. Prints one image path per line.",
    ),
    "compose": (
        "compose.compose",
        "Generate an image of several objects, each in its own region. Prints one image path per line.",
    ),
    "place": (
        "place.place",
        "Draw a trained object into a photo; the rest of the photo stays. Prints one image path per line.",
    ),
    "import": (
        "import_.import_",
        "Import a LoRA or an embedding from another trainer as an object. Prints the ref of the adapter.",
    ),
    "merge": ("merge.merge", "Merge several adapters into one, for tools that take one file. Prints its ref."),
    "run": (
        "run.run_",
        "Train and generate for every photo in a jobs file; finished work is reused. Prints one job per line.",
    ),
    "ui": (
        "ui.ui",
        "Open a page in the browser that finds, learns, draws and composes objects. Prints its address.",
    ),
    "init": ("init.init", "Make this folder, or --project DIR, a project."),
    "list": ("list.list_", "List the project's artifacts: ref, class, base model, and inputs."),
    "show": ("show.show", "Show the record of an artifact, and its image."),
    "report": ("report.report", "Write a page about the project or some objects, as one HTML file. Prints its path."),
    "verify": (
        "verify.verify",
        "Check the digests of all artifacts, and that their inputs are the recorded files.",
    ),
    "gc": (
        "gc.gc",
        "Delete old masks, embeddings and priors that no result uses, and temporary files. Prints them.",
    ),
    "rm": ("rm.rm", "Delete artifacts; their version numbers are not used again. Prints their refs."),
    "mv": ("mv.mv", "Rename an object and all of its artifacts. Prints the new refs."),
    "export": ("export.export", "Export a trained object to files for other tools. Prints their paths."),
    "evaluate": (
        "evaluate.evaluate",
        "Measure a trained object: identity, prompt, diversity, leak and drift. Prints a table.",
    ),
    "bench": (
        "bench.SUITES",
        "Compare methods on objects with known ground truth, or run another benchmark. Prints a table.",
    ),
    "doctor": (
        "doctor.doctor",
        "Check this machine and project, and name the command that fixes each problem.",
    ),
    "fetch": (
        "fetch.fetch",
        "Download a base model with all that photographs need. Prints its folder.",
    ),
    "bases": ("bases.bases_", "List the base models on this machine."),
}
"""Name to function and help, in the order of `objtune --help`."""

COLLECTED_EVERY = 20_000
"""New objects between two looks for cycles (Python's own: 700). Importing torch and what stands on it makes a million that stay."""


class Commands(TyperGroup):
    """Lists the commands by name and help alone; the one that is called is loaded then."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        for name, (_, text) in COMMANDS.items():
            self.add_command(TyperCommand(name, help=text))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name is None:  # completing after a word that is no command
            return name, command, rest
        from objtune_cli.cli import runner

        return name, runner.load_command(name, *COMMANDS[name]), rest


app = typer.Typer(
    cls=Commands,
    name="objtune",
    help="Teach a text-to-image model one object from one photo, and generate it anywhere.",
    rich_markup_mode=None,  # plain help: same text everywhere, and rich stays unloaded
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"objtune {__version__}")
        raise typer.Exit


def root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    **shared: Any,
) -> None:
    """Options here may also stand after the command."""
    ctx.obj.shared, ctx.obj.command = shared, ctx.invoked_subcommand or ""


_OF_ALL = {name: options.MODEL[name] for name in ("device", "precision")}
options.add_options(root, options.GLOBAL | _OF_ALL, before="version")
app.callback()(root)


def main() -> None:
    """Run the command line and leave with its exit code."""
    streams.prepare()
    repairs = environment.repair_environment()
    if not {"--quiet", "-q"} & set(sys.argv):
        for line in repairs:
            print(line, file=sys.stderr)
    gc.set_threshold(COLLECTED_EVERY)
    try:
        code = run(sys.argv[1:])
    finally:
        gc.freeze()  # else the interpreter's end looks through everything once more: a second, where torch is loaded
    sys.exit(code)


def run(argv: list[str]) -> int:
    """Run one command line; its exit code."""
    is_verbose = "--verbose" in argv or "-v" in argv
    invocation = options.Invocation(json="--json" in argv, verbose=is_verbose, words=tuple(argv))
    try:
        options.refuse_empty(argv)
        if count := launcher.requested_processes(argv) if "train" in argv else 0:
            return launcher.run(argv, count)
        code = app(argv, standalone_mode=False, prog_name="objtune", obj=invocation)
        sys.stdout.flush()
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        return _stop_printing()
    except SystemExit as exc:
        if isinstance(exc.__context__, BrokenPipeError):  # the parser leaves with 1 when nobody reads any more
            return _stop_printing()
        raise
    except Exception as exc:
        return _report_error(exc, invocation)
    return code if isinstance(code, int) else 0


def _report_error(exc: Exception, invocation: options.Invocation) -> int:
    """Say what an error means; its exit code."""
    if isinstance(exc, typer.TyperException):
        return _report_usage(exc, invocation)
    from objtune_cli.cli import failures  # `--help` fails seldom

    error = failures.explain(exc)
    return _print_failure(error, invocation, trace=invocation.verbose or failures.is_bug(error))


def _print_failure(error: ObjtuneError, invocation: options.Invocation, *, trace: bool = False) -> int:
    """Say what went wrong; its exit code."""
    from objtune_cli.cli import console

    if trace:
        console.print_traceback()
    try:
        console.print_error(error, invocation.command, as_json=invocation.json)
    except OSError:  # stdout takes no document
        console.print_error(error, invocation.command, as_json=False)
    return error.code


def _report_usage(exc: typer.TyperException, invocation: options.Invocation) -> int:
    """A command line that does not parse: the parser's words in our form."""
    if type(exc).__name__ == "NoArgsIsHelpError":
        print(exc.message, file=sys.stderr)
        return 2
    message = getattr(exc, "format_message", lambda: exc.message)()
    context = getattr(exc, "ctx", None)
    path = context.command_path if context else f"objtune {invocation.command}".strip()
    error = ObjtuneError(message.rstrip("."), f"`{path} --help`")
    error.code = 2
    return _print_failure(error, invocation)


def _stop_printing() -> int:
    """Nobody reads our stdout: nothing more to say, not even at exit."""
    if streams.stdout_failure() is None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
