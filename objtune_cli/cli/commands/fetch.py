"""`objtune fetch`: download the weights of a base model."""

from dataclasses import asdict
from typing import Annotated

import typer

from objtune_cli.cli import console
from objtune_cli.cli.runner import CommandResult, CommandRun, require


def fetch(
    run: CommandRun,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="BASE", help="Base model: sd15, sd21, sdxl, sd3, sd35, or a hub id.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="ID",
            help="Download a CLIP, DINO, SAM or VAE model instead, for example facebook/dino-vits16.",
            show_default=False,
        ),
    ] = None,
) -> CommandResult:
    from objtune_cli.config.sections import Common
    from objtune_cli.interchange import hub as stage

    require(not (base and model), "--base and --model cannot be combined", "fetch them one after the other")
    name = run.settings(run.project()).resolve(Common, base=base).base
    run.stop.install()
    found = (
        stage.fetch_model(model, run.report, run.stop.stop_signal)
        if model
        else stage.run(name, run.report, run.stop.stop_signal)
    )
    if not run.options["json"]:
        console.print_lines([found.folder])
    return CommandResult(printed="nothing", extra=asdict(found) | {"folder": str(found.folder)})
