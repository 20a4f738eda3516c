"""Options that `generate` and `compose` share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from objtune_cli.config.sections import SEEDS, Generate

NumImages = Annotated[
    int | None, typer.Option("-n", help="Pictures per prompt.", show_default=str(Generate().num_images))
]


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
    Literal["auto", "ddim", "euler", "dpm++", "base"] | None,
    typer.Option(
        "--scheduler",
        metavar="[auto|ddim|euler|dpm++]",
        help="Sampler; auto: the one in the base's folder.",
        show_default="auto",
    ),
]


Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Also copy the pictures there; none that lies there is replaced."),
]
