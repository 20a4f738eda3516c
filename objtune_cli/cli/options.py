"""Global options, accepted before or after the subcommand."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from objtune_cli.errors import UsageError
from objtune_cli.workflow.metric_loggers import LOGGERS

F = TypeVar("F", bound=Callable[..., Any])
ProjectDir = Annotated[
    str | None,
    typer.Option(
        "--project",
        metavar="DIR",
        help="Project folder, or s3://, gs:// or az:// with bucket and prefix; default: the nearest folder above the current one.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only results and errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print tracebacks of errors.")]
Given = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="SECTION.KEY=VALUE", help="Override any setting, for example train.learning_rate=1e-3."
    ),
]
BaseModel = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="BASE",
        help="Base model: toybox, sd15, sd21, sdxl, sd3, sd35, klein, z-image, a diffusers folder, a .safetensors file, or a hub id.",
        show_default="toybox",
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", help="Device: auto, cpu, cuda, cuda:N or mps.", show_default="auto")
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"] | None,
    typer.Option("--precision", help="Number format of the frozen base model.", show_default="auto"),
]
StrictBase = Annotated[
    bool,
    typer.Option("--strict-base", help="Refuse objects that were trained on another base model of the same family."),
]
Force = Annotated[bool, typer.Option("--force", help="Make a new version even if the result exists.")]

LOGGING: dict[str, tuple[Any, Any]] = {
    name: (Annotated[Path | None, typer.Option(f"--{name}", metavar=each.metavar, help=each.help)], None)
    for name, each in LOGGERS.items()
}
LOGGING["log"] = (
    Annotated[
        list[str] | None,
        typer.Option("--log", metavar="TRACKER", help="Log to tensorboard, wandb or trackio; may be repeated."),
    ],
    None,
)
GLOBAL: dict[str, tuple[Any, Any]] = {
    "project": (ProjectDir, None), "json": (Json, False), "quiet": (Quiet, False), "verbose": (Verbose, False), **LOGGING,
}  # fmt: skip
MODEL: dict[str, tuple[Any, Any]] = {
    "base": (BaseModel, None), "device": (Device, None), "precision": (Precision, None), "strict_base": (StrictBase, False), "force": (Force, False), "set_": (Given, None),
}  # fmt: skip

CheckedBase = Annotated[
    str | None,
    typer.Option("--base", metavar="BASE", help="Check what this base model needs, or test it.", show_default=False),
]
DOCTOR: dict[str, tuple[Any, Any]] = {
    "base": (CheckedBase, None),
    **{name: MODEL[name] for name in ("device", "precision", "set_")},
}
"""What `doctor` takes of the options of a base model."""

PATHS = (
    "--project",
    *(f"--{name}" for name in LOGGERS),
    "--out",
    "--layout",
    "--reuse",
    "--from",
    "--table",
    "--photos",
    "--photo",
    "--mask",
    "--refine-mask",
    "--rough",
    "--sam-checkpoint",
    "--base",
)
"""Options that name a file or folder."""


def refuse_empty(argv: list[str]) -> None:
    """Refuse an empty path: what a shell makes of a variable that is not set would mean the current folder.

    Raises:
        UsageError: Names the option.
    """
    words = argv[: argv.index("--")] if "--" in argv else argv
    for word, after in zip(words, [*words[1:], "."], strict=False):
        if (word in PATHS and after == "") or (word.endswith("=") and word[:-1] in PATHS):
            raise UsageError(
                f"{word.rstrip('=')} is empty", "give a file or folder, or leave the option out; is the variable set?"
            )


def add_options(function: Callable[..., Any], added: Mapping[str, tuple[Any, Any]], *, before: str = "") -> None:
    """Give a function that takes `**values` the options in its signature, which Typer reads.

    Args:
        before: The parameter that the options stand before; empty: at the end.
    """
    own = [
        p if p.name in ("ctx", "run") else p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for p in inspect.signature(function, eval_str=True).parameters.values()
        if p.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in added.items()
    ]
    at = next((i for i, p in enumerate(own) if p.name == before), len(own))
    params = [*own[:at], *extra, *own[at:]]
    function.__signature__ = inspect.Signature(params)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in params}


def with_options(added: Mapping[str, tuple[Any, Any]], *, before: str = "") -> Callable[[F], F]:
    """Decorate a command that takes options which several commands share as `**values`."""

    def decorate(function: F) -> F:
        add_options(function, added, before=before)
        return function

    return decorate


@dataclass
class Invocation:
    """One call of the command line: what printing its result or its error depends on.

    Attributes:
        shared: Values of the shared options before the command's name.
        words: The whole command line.
    """

    json: bool = False
    verbose: bool = False
    command: str = ""
    shared: dict[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()
