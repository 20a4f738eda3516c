"""`objtune rm`: delete artifacts."""

from typing import Annotated

import typer

from objtune_cli.cli import completion, console
from objtune_cli.cli.runner import CommandResult, CommandRun
from objtune_cli.cli.stdin import read_refs


def rm(
    run: CommandRun,
    ref: Annotated[
        list[str] | None,
        typer.Argument(help="Artifacts, or - to read refs from stdin.", autocompletion=completion.any_ref),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Delete it even if other artifacts were made from it.")
    ] = False,
) -> CommandResult:
    from objtune_cli.store import removal

    project = run.project()
    texts = read_refs(ref)
    with project.lock(exclusive=True):
        gone = list(dict.fromkeys(project.store.find(text) for text in texts))
        removal.remove(project.store, gone, force=force)
    if not run.options["json"]:
        console.print_lines(gone)
    return CommandResult(printed="nothing", extra={"removed": [str(r) for r in gone]})
