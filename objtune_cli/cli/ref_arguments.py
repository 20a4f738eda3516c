"""Arguments that several commands share."""

from typing import Annotated

import typer

from objtune_cli.cli import completion

AnyRefs = Annotated[
    list[str] | None,
    typer.Argument(help="kind/name@version, or a name; - reads refs from stdin.", autocompletion=completion.any_ref),
]
