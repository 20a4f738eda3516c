"""`objtune init`, `list`, `show`, `export` and `bases`: nothing here needs a model."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from objtune_cli import paths
from objtune_cli.cli import complete, render
from objtune_cli.cli.frame import Outcome, Run, need
from objtune_cli.cli.given import given_refs
from objtune_cli.cli.upkeep import AGE
from objtune_cli.errors import ObjtuneError
from objtune_cli.store import KINDS

if TYPE_CHECKING:
    from objtune_cli.store.refs import Ref

AnyRefs = Annotated[
    list[str] | None,
    typer.Argument(help="kind/name@version, or a name; - reads refs from stdin.", autocompletion=complete.any_ref),
]


def init(run: Run) -> Outcome:
    from objtune_cli.store.project import locate

    project = locate(run.asked_folder() or paths.current_folder(), create=True)
    run.report.note(f"project {project.folder}")
    return Outcome(shown="nothing", extra={"project": str(project.folder)})


def list_(
    run: Run,
    kind: Annotated[str | None, typer.Argument(help=", ".join(KINDS))] = None,
) -> Outcome:
    from objtune_cli.stages import unfinished
    from objtune_cli.stages.context import Done
    from objtune_cli.store import artifact, refs

    root = run.project().artifacts
    need(not kind or kind in KINDS, f"there is no kind {kind}", f"one of {', '.join(KINDS)}")
    found = [artifact.read_record(root, ref) for ref in refs.every(root, kind)]
    if not run.options["json"]:
        rows = [
            (r.ref, r.class_word, r.base.get("id", ""), " ".join(i["ref"] for i in r.inputs.values() if i["ref"]))
            for r in found
        ]
        render.table(("ref", "class", "base", "from"), rows)
    left = unfinished.list_all(run.project()) if kind in (None, "adapter") else []
    for each in left:
        run.report.note(
            f"unfinished: adapter/{each['adapter']} at step {each['step']} of {each['total']}; its command goes on with it, `objtune gc` deletes it when it is {AGE} old"
        )
    listed = [{"ref": str(r.ref), "class": r.class_word, "base": r.base.get("id", "")} for r in found]
    return Outcome(
        [Done(r.ref, True) for r in found],
        shown="nothing",
        extra={"artifacts": listed} | ({"unfinished": left} if left else {}),
    )


def show(run: Run, ref: AnyRefs = None) -> Outcome:
    from objtune_cli.stages.context import Done, pictures_of
    from objtune_cli.store import artifact, refs

    root = run.project().artifacts
    found = [refs.find(root, text) for text in given_refs(ref)]
    records = [artifact.read_record(root, each) for each in found]
    images = [pictures_of(root, each) for each in found]
    if not run.options["json"]:
        rows: list[tuple[str, Any]] = []
        for each, record, here in zip(found, records, images, strict=True):
            rows += [("ref", each), ("path", each.path(root)), ("class", record.class_word)]
            rows += [*_flat(asdict(record)), *(("picture", p) for p in here)]
        render.table(("key", "value"), rows)
        if images[-1]:
            run.report.picture(images[-1][-1])
    alone = {"artifact": asdict(records[0]), "path": str(found[0].path(root))} if len(found) == 1 else {}
    return Outcome(
        [Done(each, True) for each in found],
        shown="nothing",
        images=[p for here in images for p in here],
        extra={"artifacts": [asdict(record) for record in records], **alone},
    )


def _flat(record: dict[str, Any]) -> list[tuple[str, Any]]:
    """Nested settings as dotted keys."""
    rows: list[tuple[str, Any]] = []
    for key in ("objects", "inputs", "config", "base", "metrics", "tools"):
        for inner, value in record[key].items():
            if isinstance(value, dict):
                rows += [(f"{key}.{inner}.{k}", v) for k, v in value.items() if v]
            else:
                rows.append((f"{key}.{inner}", value))
    return rows


def export(
    run: Run,
    ref: Annotated[
        list[str] | None,
        typer.Argument(help="Trained objects, or - to read refs from stdin.", autocompletion=complete.adapter_ref),
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="diffusers, kohya, embedding, bundle or hub.")] = "",
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Folder to write into, or the name of a single .safetensors file."),
    ] = Path(),
    dtype: Annotated[
        Literal["fp32", "fp16", "bf16"],
        typer.Option("--dtype", help="Number format of the files; fp16 and bf16 halve them."),
    ] = "fp32",
    trigger: Annotated[
        list[str] | None,
        typer.Option(
            "--trigger",
            metavar="WORD",
            help="The object's word in A1111, Forge and ComfyUI, which is the name of its embedding file; dog=WORD for one of several.",
            show_default="dog-objtune for dog",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files that are not exports of the same object.")
    ] = False,
    push: Annotated[
        str,
        typer.Option(
            "--push", metavar="OWNER/NAME", help="Upload all formats and a model card to this hub repository."
        ),
    ] = "",
    public: Annotated[bool, typer.Option("--public", help="A new repository may be seen by everyone.")] = False,
) -> Outcome:
    from objtune_cli.stages import card, outputs
    from objtune_cli.stages import export as stage
    from objtune_cli.store import refs

    root = run.project().artifacts
    found = [refs.find(root, text, ("adapter",)) for text in given_refs(ref)]
    need(not push or format_ in ("", "hub"), f"--push uploads all formats, not {format_} alone", "leave --format away")
    need(push or not public, "--public is said of a repository", "add `--push OWNER/NAME`")
    format_ = format_ or ("hub" if push else "diffusers")
    need(
        len(found) == 1 or format_ not in ("diffusers", "hub"),
        "files of diffusers all have the same name",
        "export them one by one, each with an `--out` of its own",
    )
    words = _words_by_ref(root, found, trigger or [])
    planned = [
        file
        for each in found
        for file in stage.plan(root, each, format_, out, dtype=dtype, trigger=words[each], note=run.report.note)
    ]
    if push:
        _check_alone(out, [file.path for file in planned])
    written = outputs.write(planned, force=force, note=run.report.note)
    if not run.options["json"]:
        render.lines(written)
    pushed = {"pushed": card.push(out, push, private=not public)} if push else {}
    return Outcome(shown="nothing", extra={"files": [str(p) for p in written], **pushed})


def _words_by_ref(root: Path, found: "list[Ref]", given: list[str]) -> "dict[Ref, list[str]]":
    """What `--trigger` says of the objects of each adapter.

    Raises:
        UsageError: It names none of them, or does not say which is meant.
    """
    from objtune_cli.stages import triggers
    from objtune_cli.store import artifact

    objects = {ref: list(artifact.read_record(root, ref).objects) for ref in found} if given else {}
    words = (
        triggers.choose(list(dict.fromkeys(name for names in objects.values() for name in names)), given)
        if given
        else {}
    )
    return {ref: [f"{name}={words[name]}" for name in objects.get(ref, ())] for ref in found}


def _check_alone(folder: Path, planned: list[Path]) -> None:
    """Refuse to upload a folder that holds anything but what is exported now.

    Raises:
        UsageError: It names a file.
    """
    others = sorted(path for path in folder.rglob("*") if not path.is_dir() and path not in planned)
    need(
        not others,
        f"--push uploads a whole folder, and {others[0] if others else ''} is in it too",
        "give an empty one with `--out DIR`",
    )


def bases_(run: Run) -> Outcome:
    from objtune_cli import bases

    found: list[tuple[str, str, str]] = []
    for name in ("toybox", *bases.HUB):
        try:
            found.append((name, "here", str(bases.find(name).folder)))
        except ObjtuneError as error:
            found.append((name, "not here", error.hint))
    if not run.options["json"]:
        render.table(("base", "state", "where"), found)
    return Outcome(shown="nothing", extra={"bases": [{"base": n, "state": s, "where": str(w)} for n, s, w in found]})
