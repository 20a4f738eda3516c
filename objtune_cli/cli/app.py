"""The command tree and the one place where errors become exit codes."""

import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from objtune_cli import __version__
from objtune_cli.cli import objects, options, pictures, project, render
from objtune_cli.errors import ObjtuneError

app = typer.Typer(
    name="objtune",
    help="Teach a text-to-image model one object from one photo, then draw it anywhere.",
    rich_markup_mode=None,  # plain help: same text everywhere, and rich stays unloaded
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
Command = Callable[..., options.Outcome]
REPORT = "this is a bug in objtune; please report it with the lines above"


def _version(wanted: bool) -> None:
    if wanted:
        print(f"objtune {__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    project: options.ProjectDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    device: options.Device = None,
    precision: options.Precision = None,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Options here may also stand after the command."""
    ctx.obj = {"project": project, "json": json, "quiet": quiet, "verbose": verbose, "device": device, "precision": precision}
    options.current.command = ctx.invoked_subcommand or ""


WITH_MODEL: tuple[Command, ...] = (objects.segment, objects.init_embedding, objects.train, pictures.generate, pictures.compose)
WITHOUT: tuple[Command, ...] = (project.init, project.list_, project.show, project.verify, project.export, project.bases_)
for function in (*WITH_MODEL, *WITHOUT):
    app.command(options.name_of(function))(options.framed(function, model=function in WITH_MODEL))


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Run one command line; its exit code."""
    options.current = options.Invocation(json="--json" in argv, verbose="--verbose" in argv or "-v" in argv)
    current = options.current
    try:
        code = app(argv, standalone_mode=False, prog_name="objtune")
        sys.stdout.flush()
    except ObjtuneError as exc:
        if current.verbose:
            render.trace()
        render.error(exc, current.command, as_json=current.json)
        return exc.code
    except typer.TyperException as exc:
        return _usage(exc, current)
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        return _closed()
    except SystemExit as exc:
        if isinstance(exc.__context__, BrokenPipeError):  # the parser leaves with 1 when nobody reads any more
            return _closed()
        raise
    except MemoryError:
        return _memory(current)
    except Exception as exc:
        if "out of memory" in str(exc).lower():
            return _memory(current)
        render.trace()
        render.error(ObjtuneError(f"{type(exc).__name__}: {exc}", REPORT), current.command, as_json=current.json)
        return 1
    return code if isinstance(code, int) else 0


def _usage(exc: typer.TyperException, current: options.Invocation) -> int:
    """A command line that does not parse: the parser's words in our form."""
    if type(exc).__name__ == "NoArgsIsHelpError":
        print(exc.message, file=sys.stderr)
        return 2
    shown = getattr(exc, "format_message", lambda: exc.message)()
    error = ObjtuneError(shown.rstrip("."), f"`objtune {current.command + ' ' if current.command else ''}--help`")
    error.code = 2
    render.error(error, current.command, as_json=current.json)
    return 2


def _closed() -> int:
    """Nobody reads our stdout: nothing more to say, not even at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def _memory(current: options.Invocation) -> int:
    error = ObjtuneError("out of memory", "use `--set train.batch=1`, `--precision bf16`, or another `--device`")
    error.code = 7
    render.error(error, current.command, as_json=current.json)
    return 7
