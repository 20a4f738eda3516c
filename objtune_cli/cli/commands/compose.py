"""`objtune compose`: several objects in one image."""

from pathlib import Path
from typing import Annotated

import typer

from objtune_cli.cli.runner import CommandResult, CommandRun
from objtune_cli.cli.sampling_options import (
    Guidance,
    Height,
    Negative,
    NumImages,
    Out,
    Scheduler,
    Seed,
    Size,
    Steps,
    Strength,
    Width,
)
from objtune_cli.config.sections import Compose, Generate


def compose(
    run: CommandRun,
    prompt: Annotated[str, typer.Argument(help='For example "a photo of <rex> and <cup> on the beach".')],
    place: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PLACE",
            help="left, right, center, top, bottom, top-left, … or x0,y0,x1,y1 in fractions; once for each mention.",
        ),
    ] = None,
    layout: Annotated[Path | None, typer.Option(metavar="FILE", help="The same from a TOML file.")] = None,
    n: NumImages = None,
    seed: Seed = None,
    width: Width = None,
    height: Height = None,
    size: Size = None,
    steps: Steps = None,
    guidance: Guidance = None,
    negative: Negative = None,
    strength: Strength = None,
    scheduler: Scheduler = None,
    retries: Annotated[
        int | None,
        typer.Option(
            help="Other seeds for a picture in which an object is missing or mixed.",
            show_default=str(Compose().max_retries),
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 9 where no seed worked.")] = False,
    out: Out = None,
) -> CommandResult:
    from objtune_cli.composition import layout as places
    from objtune_cli.composition import stage
    from objtune_cli.generation import image_size

    given = (places.read_file(layout) if layout else {}) | places.parse_places(place or [])
    ctx = run.context(create=False)
    wide, high = image_size.parse_size(size, width, height)
    config = ctx.settings.resolve(
        Generate,
        num_images=n,
        seed=seed,
        width=wide,
        height=high,
        num_inference_steps=steps,
        guidance_scale=guidance,
        negative_prompt=negative,
        strength=strength,
        scheduler=scheduler,
    )
    how = ctx.settings.resolve(Compose, max_retries=retries, strict=True if strict else None)
    return CommandResult(stage.run(ctx, prompt, given, config, how, out), printed="images")
