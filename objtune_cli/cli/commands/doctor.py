"""`objtune doctor`: what this machine and project have, and what is missing."""

from dataclasses import asdict
from typing import Annotated

import typer

from objtune_cli.cli import console
from objtune_cli.cli.runner import Outcome, Run
from objtune_cli.errors import ResourceError


def doctor(
    run: Run,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out what only torch knows: devices.")] = False,
) -> Outcome:
    from objtune_cli import doctor as health

    found = health.quick(run.project()) + ([] if quick else health.device())
    bad = [check for check in found if check.state == "bad"]
    if not run.options["json"]:
        console.table(("what", "state", "", "remedy"), [(c.what, c.state, c.said, c.remedy) for c in found])
        for check in bad:
            run.report.note(f"bad: {check.what}: {check.said}")
    return Outcome(
        shown="nothing", extra={"checks": [asdict(check) for check in found]}, code=ResourceError.code if bad else 0
    )
