"""`objtune doctor`: what this machine and project have, and what is missing."""

from typing import Annotated

import typer

from objtune_cli import paths
from objtune_cli.cli import console
from objtune_cli.cli.runner import CommandResult, CommandRun
from objtune_cli.errors import ResourceError


def doctor(
    run: CommandRun,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="Check what this base model needs.", show_default=False),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Skip the checks of libraries and devices, which load torch.")
    ] = False,
) -> CommandResult:
    from objtune_cli import doctor as health

    found = health.run_checks(run.project(), paths.to_model(base) if base else "")
    found += [] if quick else [health.check_libraries(), *health.check_devices()]
    bad = [check for check in found if check.state == "bad"]
    if not run.options["json"]:
        console.print_table(("what", "state", "", "remedy"), [(c.what, c.state, c.detail, c.remedy) for c in found])
        for check in bad:
            run.report.note(f"bad: {check.what}: {check.detail}")
    return CommandResult(
        printed="nothing", extra={"checks": [check.to_json() for check in found]}, code=ResourceError.code if bad else 0
    )
