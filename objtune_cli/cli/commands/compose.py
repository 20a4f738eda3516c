"""`objtune compose`: several objects in one image."""

from pathlib import Path
from typing import Annotated, Any

import typer

from objtune_cli.cli.options import with_options
from objtune_cli.cli.runner import CommandResult, CommandRun
from objtune_cli.cli.sampling_options import SAMPLING, Out, check_copies, describe_prompts, resolve_variants
from objtune_cli.config.sections import Compose


@with_options(SAMPLING, before="retries")
def compose(
    run: CommandRun,
    prompt: Annotated[str, typer.Argument(help='For example "a photo of <rex> and <cup> on the beach".')],
    place: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PLACE",
            help="Place of an object: left, right, center, top, bottom, top-left, … or x0,y0,x1,y1 in fractions.",
        ),
    ] = None,
    layout: Annotated[Path | None, typer.Option(metavar="FILE", help="Read the places from a TOML file.")] = None,
    retries: Annotated[
        int | None,
        typer.Option(
            help="Number of new seeds if an object is missing or mixed.",
            show_default=str(Compose().max_retries),
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 9 if no seed works.")] = False,
    out: Out = None,
    **sampling: Any,
) -> CommandResult:
    from objtune_cli.composition import compose as stage
    from objtune_cli.composition import layout as places

    boxes = (places.read_file(layout) if layout else {}) | places.parse_places(place or [])
    check_copies(sampling, out)
    ctx = run.context(create=False)
    configs = resolve_variants(ctx, sampling)
    composing = ctx.settings.resolve(Compose, max_retries=retries, strict=True if strict else None)
    results = [each for config in configs for each in stage.run(ctx, prompt, boxes, config, composing, out)]
    return CommandResult(results, printed="images", extra=describe_prompts(ctx, results))
