"""`objtune generate`: prompts to images."""

from typing import Annotated

import typer

from objtune_cli.cli import completion
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
from objtune_cli.cli.stdin import read_prompts
from objtune_cli.config.sections import Generate


def generate(
    run: CommandRun,
    prompt: Annotated[
        list[str],
        typer.Argument(
            help='For example "a photo of <rex> on the beach"; <rex@2> asks for version 2; - reads stdin, one prompt a line.'
        ),
    ],
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
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter",
            metavar="REF",
            help="Take all objects from this adapter, a merged one for example.",
            autocompletion=completion.adapter_ref,
        ),
    ] = None,
    out: Out = None,
) -> CommandResult:
    from objtune_cli.generation import image_size, stage

    prompts = read_prompts(prompt)
    if len(prompt) > 2 and not any(" " in text or text == "-" for text in prompt):
        run.report.note(
            f'these are {len(prompt)} prompts of one word each; one prompt stands in quotes: "{" ".join(prompt)}"'
        )
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
    source = ctx.store.find(adapter, ("adapter",)) if adapter else None
    return CommandResult(stage.run(ctx, prompts, config, out, source), printed="images")
