"""`objtune gc`: delete what no result was made from."""

from typing import Annotated

import typer

from objtune_cli.cli import console, durations
from objtune_cli.cli.runner import CommandResult, CommandRun

AGE = "14d"


def gc(
    run: CommandRun,
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="AGE", help="Delete only what is older: 14d, 36h.")
    ] = AGE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be deleted, and delete nothing.")] = False,
) -> CommandResult:
    from objtune_cli.store import garbage, removal

    project = run.project()
    store = project.store
    before = store.backend.now() - durations.parse_duration(older_than, "--older-than")
    with project.lock(exclusive=True):
        gone = removal.find_unreferenced(store, before)
        rest = garbage.find_garbage(store, before)
        size = sum(entry.size for entry in (*rest, *(store.backend.stat(ref.key) for ref in gone)))
        if not dry_run:
            removal.remove(store, gone)
            garbage.delete(store, rest)
    action = "would free" if dry_run else "freed"
    run.report.note(f"{action} {size / 1e6:.1f} MB: {len(gone)} artifacts, {len(rest)} leftovers")
    names = [entry.key.rstrip("/") for entry in rest]
    if not run.options["json"]:
        console.print_lines([*gone, *names])
    removed = [str(ref) for ref in gone]
    return CommandResult(
        printed="nothing", extra={"removed": removed, "leftovers": names, "bytes": size, "dry_run": dry_run}
    )
