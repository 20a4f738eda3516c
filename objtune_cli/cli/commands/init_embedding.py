"""`objtune init-embedding`: masks to the initial vectors of the objects' tokens."""

from typing import Annotated, Literal

import typer

from objtune_cli.cli import completion
from objtune_cli.cli.runner import CommandResult, CommandRun
from objtune_cli.cli.stdin import read_refs
from objtune_cli.config.sections import Embed


def init_embedding(
    run: CommandRun,
    ref: Annotated[
        list[str] | None,
        typer.Argument(help="Masks, or - to read refs from stdin.", autocompletion=completion.mask_ref),
    ] = None,
    init: Annotated[
        Literal["auto", "prototype", "class", "random"] | None,
        typer.Option(help="Initial vectors of the token.", show_default="auto"),
    ] = None,
    vectors: Annotated[
        int | None, typer.Option(help="Number of learned vectors.", show_default=str(Embed().num_vectors))
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="Treat all masks as photos of one object and make one embedding.")
    ] = False,
) -> CommandResult:
    from objtune_cli.embedding import init_embedding as stage

    texts = read_refs(ref)
    ctx = run.context(create=False)
    config = ctx.settings.resolve(Embed, init=init, num_vectors=vectors)
    mask_refs = [ctx.store.find(text, ("mask",)) for text in texts]
    groups = [mask_refs] if together else [[mask_ref] for mask_ref in mask_refs]
    return CommandResult([stage.run(ctx, group, config) for group in groups])
