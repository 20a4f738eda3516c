"""`objtune doctor` and `fetch`: what this machine and project have, what is missing, and the weights of a base."""

from dataclasses import asdict
from typing import Annotated

import typer

from objtune_cli.cli import render
from objtune_cli.cli.frame import Outcome, Run, need
from objtune_cli.errors import ResourceError


def doctor(
    run: Run,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out what only torch knows: devices.")] = False,
) -> Outcome:
    from objtune_cli.stages import health

    found = health.quick(run.project()) + ([] if quick else health.device())
    bad = [check for check in found if check.state == "bad"]
    if not run.options["json"]:
        render.table(("what", "state", "", "remedy"), [(c.what, c.state, c.said, c.remedy) for c in found])
        for check in bad:
            run.report.note(f"bad: {check.what}: {check.said}")
    return Outcome(
        shown="nothing", extra={"checks": [asdict(check) for check in found]}, code=ResourceError.code if bad else 0
    )


def fetch(
    run: Run,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="sd15, sd21, sdxl, sd3, sd35, or a hub id.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="ID", help="A CLIP or DINO instead: facebook/dino-vits16.", show_default=False),
    ] = None,
) -> Outcome:
    from objtune_cli.config import Common
    from objtune_cli.stages import fetch as stage

    need(not (base and model), "--base and --model are one thing each", "bring them one after the other")
    name = run.settings(run.project()).resolve(Common, base=base).base
    run.stop.install()
    found = stage.model(model, run.report, run.stop.asked) if model else stage.run(name, run.report, run.stop.asked)
    if not run.options["json"]:
        render.lines([found.folder])
    return Outcome(shown="nothing", extra=asdict(found) | {"folder": str(found.folder)})
