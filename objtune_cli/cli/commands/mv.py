"""`objtune mv`: rename an object."""

from typing import Annotated

import typer

from objtune_cli.cli import completion, console
from objtune_cli.cli.runner import CommandResult, CommandRun, require


def mv(
    run: CommandRun,
    old: Annotated[str, typer.Argument(help="Name of the object.", autocompletion=completion.object_name)],
    new: Annotated[str, typer.Argument(help="New name.")],
) -> CommandResult:
    from objtune_cli.store import refs, removal

    require(old != new, f"{old} already has that name", "give another name")
    require(
        "/" not in old + new and "@" not in old + new,
        f"{old} and {new} are not both names",
        "for example `objtune mv dog rex`",
    )
    project = run.project()
    with project.lock(exclusive=True):
        moved = removal.rename_object(project.store, refs.check_name(old), refs.check_name(new))
    if not run.options["json"]:
        console.print_lines([target for _, target in moved])
    return CommandResult(printed="nothing", extra={"moved": [{"from": str(a), "to": str(b)} for a, b in moved]})
