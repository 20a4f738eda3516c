"""`objtune place`: a trained object in an existing picture."""

from pathlib import Path
from typing import Annotated, Any

import typer

from objtune_cli.cli.options import with_options
from objtune_cli.cli.photo_options import locate_photo
from objtune_cli.cli.runner import CommandResult, CommandRun
from objtune_cli.cli.sampling_options import SAMPLING, Out, check_copies, describe_prompts, resolve_variants
from objtune_cli.config.sections import Place

SIZES = ("width", "height", "size", "aspect")
"""Options of sampling that a picture has already answered."""


@with_options({name: option for name, option in SAMPLING.items() if name not in SIZES}, before="change")
def place(
    run: CommandRun,
    prompt: Annotated[str, typer.Argument(help='For example "<mug>" or "a photo of <mug> full of tea".')],
    into: Annotated[
        str, typer.Option(metavar="FILE", help="Photo to draw into: a file, a web address, or - for stdin.")
    ],
    at: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Place of the object: left, right, center, top-left, … or x0,y0,x1,y1 in fractions.",
            show_default="a calm part",
        ),
    ] = None,
    mask: Annotated[Path | None, typer.Option(metavar="FILE", help="Mask image, white where the object goes.")] = None,
    replace: Annotated[
        str | None, typer.Option(metavar="WORD", help="Replace the dog, mug, … of the photo by the object.")
    ] = None,
    change: Annotated[
        float | None,
        typer.Option(
            help="How much the region changes, 0.05 to 1; lower values keep more of the photo.",
            show_default=str(Place().change),
        ),
    ] = None,
    retries: Annotated[
        int | None,
        typer.Option(help="Number of new seeds if the object is missing.", show_default=str(Place().max_retries)),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 9 if no seed works.")] = False,
    out: Out = None,
    **sampling: Any,
) -> CommandResult:
    from objtune_cli.placement import place as stage
    from objtune_cli.placement import regions

    location = stage.Location(regions.parse_box(at) if at else None, mask, replace or "")
    check_copies(sampling, out)
    ctx = run.context(create=False)
    configs = resolve_variants(ctx, sampling | dict.fromkeys(SIZES))
    options = ctx.settings.resolve(Place, change=change, max_retries=retries, strict=True if strict else None)
    photo = locate_photo(ctx, into)
    results = [each for config in configs for each in stage.run(ctx, prompt, photo, location, config, options, out)]
    return CommandResult(results, printed="images", extra=describe_prompts(ctx, results))
