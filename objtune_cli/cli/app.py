"""The command tree and the one place where errors become exit codes."""

import errno
import gc
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from objtune_cli.cli import environment, launcher, options, streams
from objtune_cli.errors import ObjtuneError, ResourceError
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
    "init": ("init.init", "Make this folder, or --project DIR, a project."),
    "list": ("list.list_", "List the project's artifacts: ref, class, base model, and inputs."),
    "show": ("show.show", "Show the record of an artifact, and its image."),
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
OUT_OF_MEMORY = (
    "use `--set train.gradient_checkpointing=on`, `--set train.batch_size=1`, `--precision bf16`, `--set train.quantize_base=4bit`, or another `--device`; "
    "`objtune train --dry-run` measures what a run needs"
)
FINISHED = "finished work is kept: run the same command with stdout on a disk that has space"
REFUSED = {
    errno.ENOSPC: "free some space and run the same command again", errno.EDQUOT: "free some space and run the same command again",
    errno.EROFS: "its disk is read-only; use another folder", errno.EACCES: "check its owner and mode", errno.EPERM: "check its owner and mode",
    errno.EMFILE: "close other files, or raise the limit: `ulimit -n 4096`", errno.ENFILE: "close other programs: the system has too many open files",
    errno.EIO: "check the disk, or the network to it", errno.ENAMETOOLONG: "use a shorter path", errno.ENOMEM: "close other programs: there is no memory left",
    errno.ETIMEDOUT: "check the network", getattr(errno, "ESTALE", -1): "the folder was replaced on its server; enter it again with `cd`",
    errno.ELOOP: "a link leads to itself; remove it", errno.ENOTDIR: "a file lies where a folder is needed",
    errno.EAGAIN: "the system is busy; try again",
}  # fmt: skip
"""What to do where the system refused a file, by its number of the error."""
REPORT = "this is a bug in objtune; please report it with the lines above"


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
    invocation = options.Invocation(json="--json" in argv, verbose="--verbose" in argv or "-v" in argv)
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
    """Say what an error means; its exit code. Anything that is no error of ours, the command line's or the system's is a bug."""
    if isinstance(exc, ObjtuneError):
        return _print_failure(exc, invocation, trace=invocation.verbose)
    if isinstance(exc, typer.TyperException):
        return _report_usage(exc, invocation)
    if isinstance(exc, OSError):
        return _report_os_error(exc, invocation)
    if isinstance(exc, ImportError) and (exc.name or "objtune_cli").partition(".")[0] != "objtune_cli":
        return _print_failure(_import_failure(exc), invocation, trace=invocation.verbose)
    if isinstance(exc, MemoryError) or "out of memory" in str(exc).lower():
        return _report_out_of_memory(invocation)
    return _report_bug(exc, invocation)


def _report_bug(exc: Exception, invocation: options.Invocation) -> int:
    return _print_failure(ObjtuneError(f"{type(exc).__name__}: {exc}", REPORT), invocation, trace=True)


def _report_os_error(exc: OSError, invocation: options.Invocation) -> int:
    """What the system refused: stdout is full, or a file that no other place expected to fail."""
    failure = streams.stdout_failure()
    if failure is not None:
        return _print_failure(
            ResourceError(f"results cannot be written to stdout: {failure.strerror}", FINISHED),
            invocation,
            trace=invocation.verbose,
        )
    if "usable temporary directory" in str(exc):
        return _print_failure(
            ResourceError("there is no folder for temporary files", "set TMPDIR to a folder that can be written"),
            invocation,
        )
    if exc.errno not in REFUSED:
        return _report_bug(exc, invocation)
    where = f"{exc.filename}: " if exc.filename else ""
    return _print_failure(
        ResourceError(f"{where}{exc.strerror}", REFUSED[exc.errno]), invocation, trace=invocation.verbose
    )


def _import_failure(exc: ImportError) -> ObjtuneError:
    """A package that is broken or not there."""
    name = (exc.name or "").partition(".")[0]
    return ResourceError(
        f"{name} cannot be loaded: {str(exc).splitlines()[0][:200]}",
        "`objtune doctor` names what is missing; `pip install --force-reinstall objtune` installs it",
    )


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


def _report_out_of_memory(invocation: options.Invocation) -> int:
    return _print_failure(ResourceError("out of memory", OUT_OF_MEMORY), invocation)
