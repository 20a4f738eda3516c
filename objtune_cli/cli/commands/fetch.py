"""`objtune fetch`: download a base model with all that a run on photographs needs."""

from dataclasses import asdict
from typing import Annotated

import typer

from objtune_cli.cli import console
from objtune_cli.cli.runner import CommandResult, CommandRun, require

OTHER_KEYS = ("repository", "revision", "folder", "files", "bytes", "reused")
"""What the JSON document has of each model beside the base."""


def fetch(
    run: CommandRun,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="BASE",
            help="Base model: sd15, sd21, sdxl, sd3, sd35, klein, z-image, or a hub id.",
            show_default=False,
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
    base_only: Annotated[
        bool, typer.Option("--base-only", help="Leave out the CLIP models and the segmenter.")
    ] = False,
    with_metrics: Annotated[
        bool, typer.Option("--with-metrics", help="Also download the CLIP and DINO of `evaluate`.")
    ] = False,
) -> CommandResult:
    from objtune_cli.config.sections import Common
    from objtune_cli.interchange import hub as stage

    require(not (base and model), "--base and --model cannot be combined", "fetch them one after the other")
    name = run.settings(run.project()).resolve(Common, base=base).base
    run.stop.install()
    require(
        not (base_only and with_metrics) and not (model and (base_only or with_metrics)),
        "--base-only and --with-metrics cannot be combined with each other or with --model",
        "give one of them",
    )
    downloads = (
        [stage.fetch_model(model, run.report, run.stop.stop_signal)]
        if model
        else stage.fetch_base(name, run.report, run.stop.stop_signal, base_only=base_only, with_metrics=with_metrics)
    )
    if not run.options["json"]:
        console.print_lines([downloads[0].folder])
    first, *others = ({**asdict(each), "folder": str(each.folder)} for each in downloads)
    others = [{key: each[key] for key in OTHER_KEYS} for each in others]
    return CommandResult(printed="nothing", extra={**first, "others": others})
