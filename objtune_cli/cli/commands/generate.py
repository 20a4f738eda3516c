"""`objtune generate`: prompts to images."""

from pathlib import Path
from typing import Annotated, Any

import typer

from objtune_cli.cli import completion
from objtune_cli.cli.drawing import Drawing, draw
from objtune_cli.cli.options import with_options
from objtune_cli.cli.photo_options import locate_photo
from objtune_cli.cli.runner import CommandResult, CommandRun, require
from objtune_cli.cli.sampling_options import SAMPLING, Out, check_copies
from objtune_cli.cli.stdin import read_prompts
from objtune_cli.config.sections import Generate


@with_options(SAMPLING, before="adapter")
def generate(
    run: CommandRun,
    prompt: Annotated[
        list[str] | None,
        typer.Argument(
            help='For example "a photo of <rex> on the beach"; <rex@2> asks for version 2; - reads stdin, one prompt a line.'
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter",
            metavar="REF",
            help="Take all objects from this adapter, for example a merged one.",
            autocompletion=completion.adapter_ref,
        ),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="Also read prompts from a file, one a line."),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="FILE", help="Picture to start from: variations of it; with --change."),
    ] = None,
    change: Annotated[
        float | None,
        typer.Option(help="How much a picture of --from changes, 0.02 to 1.", show_default=str(Generate().change)),
    ] = None,
    best: Annotated[
        int | None,
        typer.Option(
            "--best", metavar="K", help="Keep the K best of the -n images of each prompt, by the tool's own checks."
        ),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            metavar="SETTING=A,B,…",
            help="Draw a grid over a setting, for example strength=0.6,0.8,1; a second one goes down.",
        ),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", metavar="FILE", help="Also write all images as one contact sheet, a PNG.")
    ] = None,
    out: Out = None,
    **sampling: Any,
) -> CommandResult:
    prompt = prompt or []
    prompts = read_prompts(prompt, prompts_file)
    if len(prompt) > 2 and not any(" " in text or text == "-" for text in prompt):
        run.report.note(
            f'these are {len(prompt)} prompts of one word each; put one prompt in quotes: "{" ".join(prompt)}"'
        )
    check_copies(sampling, out)
    ctx = run.context(create=False)
    source = ctx.store.find(adapter, ("adapter",)) if adapter else None
    start = {"init_image": str(locate_photo(ctx, from_)) if from_ else None, "change": change}
    require(change is None or bool(from_), "--change is given without a picture", "give the picture with `--from FILE`")
    request = Drawing(prompts, source, sampling, start, best, tuple(grid or ()), sheet, out)
    return draw(ctx, request)
