"""`objtune generate`: prompts to images."""

from pathlib import Path
from typing import Annotated, Any

import typer

from objtune_cli.cli import completion
from objtune_cli.cli.drawing import CHOICE, GenerateRequest, draw
from objtune_cli.cli.options import with_options
from objtune_cli.cli.runner import CommandResult, CommandRun
from objtune_cli.cli.sampling_options import SAMPLING, Out, check_copies
from objtune_cli.cli.stdin import read_prompts


@with_options(SAMPLING | CHOICE, before="adapter")
def generate(
    run: CommandRun,
    prompt: Annotated[
        list[str] | None,
        typer.Argument(
            help='For example "a photo of <rex> on the beach"; <rex@2> asks for version 2; - reads stdin, one prompt per line.'
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
        typer.Option("--prompts", metavar="FILE", help="Also read prompts from a file, one per line."),
    ] = None,
    out: Out = None,
    **options: Any,
) -> CommandResult:
    prompt = prompt or []
    prompts = read_prompts(prompt, prompts_file)
    if len(prompt) > 2 and not any(" " in text or text == "-" for text in prompt):
        run.report.note(
            f'these are {len(prompt)} prompts of one word each; put one prompt in quotes: "{" ".join(prompt)}"'
        )
    check_copies(options, out)
    ctx = run.context(create=False)
    source = ctx.store.find(adapter, ("adapter",)) if adapter else None
    return draw(ctx, GenerateRequest(prompts, source, options, out))
