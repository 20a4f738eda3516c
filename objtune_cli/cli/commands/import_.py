"""`objtune import`: what others trained."""

from pathlib import Path
from typing import Annotated

import typer

from objtune_cli.cli.runner import CommandResult, CommandRun, require

MOST = 5
"""Files of one object: a LoRA for each network, and an embedding for each text encoder."""


def import_(
    run: CommandRun,
    file: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE…",
            help="A LoRA, an embedding, or both of one object: .safetensors files, or a folder that diffusers or peft wrote.",
        ),
    ],
    class_: Annotated[str, typer.Option("--class", metavar="WORD", help="Class of the object, for example dog.")] = "",
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="Name of the object.", show_default="the class word")
    ] = "",
    trigger: Annotated[
        str,
        typer.Option(
            "--trigger",
            metavar="TEXT",
            help='The words that a LoRA was trained with, for example "sks dog".',
            show_default="the class word",
        ),
    ] = "",
    allow_pickle: Annotated[
        bool,
        typer.Option("--allow-pickle", help="Also read .pt and .bin files, in a sandboxed process."),
    ] = False,
) -> CommandResult:
    from objtune_cli.interchange import import_ as imported
    from objtune_cli.workflow import class_words

    ((class_word, called),) = class_words.pair_with_names([class_], [name] if name else [])
    require(
        trigger.isprintable(), "--trigger has characters that cannot be printed", 'for example `--trigger "sks dog"`'
    )
    require(
        len(file) <= MOST,
        f"{len(file)} files for one object",
        "a LoRA, an embedding (of SDXL one or two files), or both",
    )
    ctx = run.context()
    return CommandResult([imported.run(ctx, file, called, class_word, trigger.strip(), allow_pickle=allow_pickle)])
