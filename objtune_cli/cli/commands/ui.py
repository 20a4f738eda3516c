"""`objtune ui`: the page in the browser."""

from typing import TYPE_CHECKING, Annotated

import typer

from objtune_cli.cli import console
from objtune_cli.cli.photo_options import locate_photo
from objtune_cli.cli.runner import CommandResult, CommandRun

if TYPE_CHECKING:
    from pathlib import Path

    from objtune_cli.ui.workspace import Workspace

Host = Annotated[
    str,
    typer.Option(
        "--host", metavar="ADDRESS", help="Address to listen on; others than 127.0.0.1 can be reached from outside."
    ),
]
Port = Annotated[
    int | None,
    typer.Option(
        "--port", metavar="N", min=1, max=65535, help="Port to listen on.", show_default="8765, or a free one"
    ),
]
NoBrowser = Annotated[bool, typer.Option("--no-browser", help="Print the address, and open no browser.")]
REPEATED = ("base", "device", "precision", "strict_base")
"""Options that every command line of the page repeats."""


def ui(
    run: CommandRun,
    photo: Annotated[list[str] | None, typer.Argument(help="Photos to begin with.")] = None,
    host: Host = "127.0.0.1",
    port: Port = None,
    no_browser: NoBrowser = False,
) -> CommandResult:
    import tempfile
    from pathlib import Path

    from objtune_cli.ui import server

    server.require_installed()
    with tempfile.TemporaryDirectory(prefix="objtune-ui-") as folder:
        workspace = _open_workspace(run, Path(folder), photo or [])
        opened = server.open_server(workspace, host, port, tuple(workspace.opened))
        run.stop.install()
        if run.options["json"]:  # its document comes at the end
            run.report.note(opened.address)
        else:
            console.print_lines([opened.address])
        run.report.note("Ctrl-C ends the page; a command that runs saves its state first")
        if not no_browser:
            typer.launch(opened.address)
        try:
            opened.run()
        finally:
            workspace.queue.close()
    return CommandResult(printed="nothing", extra={"address": opened.address})


def _open_workspace(run: CommandRun, folder: "Path", photos: list[str]) -> "Workspace":
    """The page's project, photos and queue.

    Raises:
        InputError: A photo is none.
    """
    from objtune_cli.images import photo
    from objtune_cli.ui.tasks import TaskQueue
    from objtune_cli.ui.workspace import Workspace, name_opened, share_options

    ctx = run.unlocked_context(create=True)
    project = share_options([("--project", run.options.get("project"))])
    model = share_options([(f"--{name.replace('_', '-')}", run.options.get(name)) for name in REPEATED])
    settings = share_options([("--set", each) for each in run.options.get("set_") or ()])
    paths = [locate_photo(ctx, text) for text in photos]
    for path in paths:
        photo.read_header(path)
    return Workspace(
        ctx, ctx.project.require_folder("objtune ui"), TaskQueue(folder), (*project, *model, *settings), project,
        name_opened(paths),
    )  # fmt: skip
