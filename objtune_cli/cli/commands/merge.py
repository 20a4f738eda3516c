"""`objtune merge`: several adapters as one, or one weaker or stronger."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from objtune_cli.cli import completion
from objtune_cli.cli.runner import CommandResult, CommandRun, require
from objtune_cli.cli.stdin import read_refs
from objtune_cli.config.sections import Merge

if TYPE_CHECKING:
    from objtune_cli.store.refs import Ref
    from objtune_cli.store.store import Store


def merge(
    run: CommandRun,
    ref: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="REF[=WEIGHT]…",
            help="Trained objects with weights, which are 1 by default; - for stdin.",
            autocompletion=completion.adapter_ref,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the new adapter.", show_default="their names")
    ] = None,
    method: Annotated[
        Literal["linear", "ties", "dare", "dare-ties", "sum"] | None,
        typer.Option(
            metavar="[linear|ties|dare|dare-ties]",
            help="Merging method; linear: weighted sum.",
            show_default=Merge().method,
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            help="Rank of the result; auto: exact for linear, the largest rank for the others.", show_default="auto"
        ),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(
            help="Share of each adapter's weights that TIES and DARE keep.", show_default=str(Merge().density)
        ),
    ] = None,
) -> CommandResult:
    from objtune_cli.interchange import merge as stage

    texts = read_refs(ref)
    ctx = run.context(create=False)
    config = ctx.settings.resolve(Merge, method=method, rank=rank, density=density)
    return CommandResult([stage.run(ctx, [_weighted(ctx.store, text) for text in texts], name, config)])


def _weighted(store: "Store", text: str) -> "tuple[Ref, float]":
    """`rex` or `rex=0.8`.

    Raises:
        UsageError: The weight is no number. MissingError: No such adapter.
    """
    import math

    what, equals, weight_text = text.partition("=")
    try:
        weight = float(weight_text) if equals else 1.0
    except ValueError:
        weight = math.nan
    require(math.isfinite(weight), f"the weight of {what} is {weight_text!r}", f"a number, for example `{what}=0.8`")
    return store.find(what, ("adapter",)), weight
