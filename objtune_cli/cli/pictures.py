"""`objtune generate` and `compose`: pictures of trained objects."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from objtune_cli.cli import complete
from objtune_cli.cli.frame import Outcome, Run
from objtune_cli.cli.given import given_prompts
from objtune_cli.config import SEEDS, Compose, Generate

Count = Annotated[int | None, typer.Option("-n", help="Pictures per prompt.", show_default=str(Generate().n))]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", help=f"Seed of the first picture, {SEEDS}; -1 is refused.", show_default=str(Generate().seed)
    ),
]
Steps = Annotated[
    int | None, typer.Option("--steps", help="Sampling steps; default: what suits the base.", show_default=False)
]
Guidance = Annotated[
    float | None, typer.Option("--guidance", help="Guidance scale; default: what suits the base.", show_default=False)
]
Negative = Annotated[
    str | None, typer.Option("--negative", help="What should not be in the picture; <name> avoids a trained object.")
]
Width = Annotated[
    int | None,
    typer.Option("--width", metavar="PX", help="Width of the pictures; default: the base's own.", show_default=False),
]
Height = Annotated[
    int | None,
    typer.Option("--height", metavar="PX", help="Height of the pictures; default: the base's own.", show_default=False),
]
Size = Annotated[str | None, typer.Option("--size", metavar="WxH", help="Both, for example 832x1216.")]
Strength = Annotated[
    float | None,
    typer.Option(
        "--strength",
        help="How strong objects are, 0 to 2; <rex:0.8> in the prompt says it of one; 0 draws the class.",
        show_default="1",
    ),
]
Scheduler = Annotated[
    Literal["base", "ddim", "euler", "dpm++"] | None,
    typer.Option("--scheduler", help="Sampler; base: the base's own.", show_default="base"),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Also copy the pictures there; none that lies there is replaced."),
]


def generate(
    run: Run,
    prompt: Annotated[
        list[str],
        typer.Argument(
            help='For example "a photo of <rex> on the beach"; <rex@2> asks for version 2; - reads stdin, one prompt a line.'
        ),
    ],
    n: Count = None,
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
            autocompletion=complete.adapter_ref,
        ),
    ] = None,
    out: Out = None,
) -> Outcome:
    from objtune_cli.stages import generate as stage
    from objtune_cli.stages import picture_size
    from objtune_cli.store import refs

    prompts = given_prompts(prompt)
    if len(prompt) > 2 and not any(" " in text or text == "-" for text in prompt):
        run.report.note(
            f'these are {len(prompt)} prompts of one word each; one prompt stands in quotes: "{" ".join(prompt)}"'
        )
    ctx = run.context(create=False)
    wide, high = picture_size.read(size, width, height)
    config = ctx.settings.resolve(
        Generate,
        n=n,
        seed=seed,
        width=wide,
        height=high,
        steps=steps,
        guidance=guidance,
        negative=negative,
        strength=strength,
        scheduler=scheduler,
    )
    source = refs.find(ctx.root, adapter, ("adapter",)) if adapter else None
    return Outcome(stage.run(ctx, prompts, config, out, source), shown="images")


def compose(
    run: Run,
    prompt: Annotated[str, typer.Argument(help='For example "a photo of <rex> and <cup> on the beach".')],
    place: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PLACE",
            help="left, right, center, top, bottom, top-left, … or x0,y0,x1,y1 in fractions; once for each mention.",
        ),
    ] = None,
    layout: Annotated[Path | None, typer.Option(metavar="FILE", help="The same from a TOML file.")] = None,
    n: Count = None,
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
            show_default=str(Compose().retries),
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 9 where no seed worked.")] = False,
    out: Out = None,
) -> Outcome:
    from objtune_cli.stages import compose as stage
    from objtune_cli.stages import layout as places
    from objtune_cli.stages import picture_size

    given = (places.read(layout) if layout else {}) | places.places(place or [])
    ctx = run.context(create=False)
    wide, high = picture_size.read(size, width, height)
    config = ctx.settings.resolve(
        Generate,
        n=n,
        seed=seed,
        width=wide,
        height=high,
        steps=steps,
        guidance=guidance,
        negative=negative,
        strength=strength,
        scheduler=scheduler,
    )
    how = ctx.settings.resolve(Compose, retries=retries, strict=1 if strict else None)
    return Outcome(stage.run(ctx, prompt, given, config, how, out), shown="images")
