"""`objtune list`: the artifacts of a project."""

from typing import Annotated

import typer

from objtune_cli.cli import console
from objtune_cli.cli.commands.gc import AGE
from objtune_cli.cli.runner import CommandResult, CommandRun, require
from objtune_cli.store import KINDS


def list_(
    run: CommandRun,
    kind: Annotated[str | None, typer.Argument(help=", ".join(KINDS))] = None,
) -> CommandResult:
    from objtune_cli.store import header_index
    from objtune_cli.training import unfinished_runs
    from objtune_cli.workflow.context import StageResult

    store = run.project().store
    require(not kind or kind in KINDS, f"there is no kind {kind}", f"one of {', '.join(KINDS)}")
    headers = header_index.list_headers(store, kind or "")
    listed_headers = list(headers) if run.options["json"] else []
    if not run.options["json"]:
        rows = ((each.ref, each.class_word, each.base, " ".join(each.inputs)) for each in headers)
        console.print_rows(("ref", "class", "base", "from"), rows)
    left = unfinished_runs.list_unfinished(store) if kind in (None, "adapter") else []
    for each in left:
        run.report.note(
            f"unfinished: adapter/{each['adapter']} at step {each['step']} of {each['total']}; its command resumes it, and `objtune gc` deletes it after {AGE}"
        )
    listed = [{"ref": str(r.ref), "class": r.class_word, "base": r.base} for r in listed_headers]
    return CommandResult(
        [StageResult(r.ref, True) for r in listed_headers],
        printed="nothing",
        extra={"artifacts": listed} | ({"unfinished": left} if left else {}),
    )
