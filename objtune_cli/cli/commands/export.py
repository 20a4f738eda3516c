"""`objtune export`: trained objects as files for other tools, or on the hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from objtune_cli.cli import completion, console
from objtune_cli.cli.runner import CommandResult, CommandRun, require
from objtune_cli.cli.stdin import read_refs

if TYPE_CHECKING:
    from objtune_cli.store.refs import Ref
    from objtune_cli.store.store import Store


Out = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Output folder, or the name of a single .safetensors file.")
]
NumberFormat = Annotated[
    Literal["fp32", "fp16", "bf16"],
    typer.Option("--dtype", help="Number format of the files; fp16 and bf16 halve them."),
]
Trigger = Annotated[
    list[str] | None,
    typer.Option(
        "--trigger",
        metavar="WORD",
        help="Word for the object in A1111, Forge and ComfyUI, and name of its embedding file; dog=WORD for one of several.",
        show_default="dog-objtune for dog",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace files that are not exports of the same object.")]
Push = Annotated[
    str,
    typer.Option("--push", metavar="OWNER/NAME", help="Upload all formats and a model card to this hub repository."),
]
Public = Annotated[bool, typer.Option("--public", help="Make a new repository public.")]


def export(
    run: CommandRun,
    ref: Annotated[
        list[str] | None,
        typer.Argument(help="Trained objects, or - to read refs from stdin.", autocompletion=completion.adapter_ref),
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="Format: diffusers, kohya, embedding, bundle or hub.")] = "",
    out: Out = Path(),
    dtype: NumberFormat = "fp32",
    trigger: Trigger = None,
    force: Force = False,
    push: Push = "",
    public: Public = False,
) -> CommandResult:
    from objtune_cli.interchange import export as stage
    from objtune_cli.interchange import model_card
    from objtune_cli.workflow import output_files

    store = run.project().store
    refs = [store.find(text, ("adapter",)) for text in read_refs(ref)]
    require(
        not push or format_ in ("", "hub"), f"--push uploads all formats, not {format_} alone", "leave --format out"
    )
    require(push or not public, "--public needs --push", "add `--push OWNER/NAME`")
    format_ = format_ or ("hub" if push else "diffusers")
    require(
        len(refs) == 1 or format_ not in ("diffusers", "hub"),
        "diffusers files of several objects would have the same name",
        "export them one by one, each with its own `--out`",
    )
    words = _words_by_ref(store, refs, trigger or [])
    files = [
        file
        for each in refs
        for file in stage.plan(store, each, format_, out, dtype=dtype, trigger=words[each], note=run.report.note)
    ]
    if push:
        _check_alone(out, [file.path for file in files])
    written = output_files.write_files(files, force=force, note=run.report.note)
    if not run.options["json"]:
        console.print_lines(written)
    pushed = {"pushed": model_card.push(out, push, private=not public)} if push else {}
    return CommandResult(printed="nothing", extra={"files": [str(p) for p in written], **pushed})


def _words_by_ref(store: "Store", refs: "list[Ref]", triggers: list[str]) -> "dict[Ref, list[str]]":
    """The values of `--trigger` by adapter, each as `NAME=WORD`.

    Raises:
        UsageError: A value names no object, or one of several objects has to be named.
    """
    from objtune_cli.interchange import trigger_words

    objects = {ref: list(store.read_record(ref).objects) for ref in refs} if triggers else {}
    words = (
        trigger_words.choose_triggers(
            list(dict.fromkeys(name for names in objects.values() for name in names)), triggers
        )
        if triggers
        else {}
    )
    return {ref: [f"{name}={words[name]}" for name in objects.get(ref, ())] for ref in refs}


def _check_alone(folder: Path, planned: list[Path]) -> None:
    """Refuse to upload a folder that holds anything but what is exported now.

    Raises:
        UsageError: It names a file.
    """
    others = sorted(path for path in folder.rglob("*") if not path.is_dir() and path not in planned)
    require(
        not others,
        f"--push uploads the whole folder, which also has {others[0] if others else ''}",
        "give an empty folder with `--out DIR`",
    )
