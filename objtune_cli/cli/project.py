"""`objtune init`, `list`, `show`, `verify`, `export` and `bases`: nothing here needs a model."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from objtune_cli.cli import complete, render
from objtune_cli.cli.frame import Outcome, Run, need
from objtune_cli.errors import DamagedError, IncompatibleError, ObjtuneError
from objtune_cli.store import KINDS

if TYPE_CHECKING:
    from objtune_cli.store.refs import Ref

AnyRef = Annotated[str, typer.Argument(help="kind/name@version, or a name.", autocompletion=complete.any_ref)]


def init(run: Run) -> Outcome:
    from objtune_cli.store.project import locate

    project = locate(run.options["project"] or Path.cwd(), create=True)
    run.report.note(f"project {project.folder}")
    return Outcome(shown="nothing", extra={"project": str(project.folder)})


def list_(
    run: Run,
    kind: Annotated[str | None, typer.Argument(help=", ".join(KINDS))] = None,
) -> Outcome:
    from objtune_cli.stages.context import Done
    from objtune_cli.store import artifact, refs

    root = run.project().artifacts
    need(not kind or kind in KINDS, f"there is no kind {kind}", f"one of {', '.join(KINDS)}")
    found = [artifact.read_record(root, ref) for ref in refs.every(root, kind)]
    if not run.options["json"]:
        rows = [(r.ref, r.class_word, r.base.get("id", ""), " ".join(i["ref"] for i in r.inputs.values() if i["ref"])) for r in found]
        render.table(("ref", "class", "base", "from"), rows)
    listed = [{"ref": str(r.ref), "class": r.class_word, "base": r.base.get("id", "")} for r in found]
    return Outcome([Done(r.ref, True) for r in found], shown="nothing", extra={"artifacts": listed})


def show(run: Run, ref: AnyRef) -> Outcome:
    from objtune_cli.stages.context import Done, pictures_of
    from objtune_cli.store import artifact, refs

    root = run.project().artifacts
    found = refs.find(root, ref)
    record = artifact.read_record(root, found)
    images = pictures_of(root, found)
    if not run.options["json"]:
        rows = [("ref", found), ("path", found.path(root)), ("class", record.class_word), *_flat(asdict(record)), *(("picture", p) for p in images)]
        render.table(("key", "value"), rows)
        if images:
            run.report.picture(images[-1])
    return Outcome([Done(found, True)], shown="nothing", images=images, extra={"artifact": asdict(record), "path": str(found.path(root))})


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


def verify(run: Run) -> Outcome:
    from objtune_cli.store import artifact, refs

    root = run.project().artifacts
    bad: list[ObjtuneError] = []
    every = refs.every(root)
    for ref in every:
        try:
            record = artifact.read_record(root, ref)
            for given in record.inputs.values():
                _check_input(root, ref, given)
        except ObjtuneError as error:
            bad.append(error)
    if bad:
        worst = min(bad, key=lambda e: e.code)
        kind = DamagedError if worst.code < IncompatibleError.code else type(worst)
        raise kind(f"{len(bad)} of {len(every)} artifacts cannot be used: {'; '.join(e.message for e in bad)}", worst.hint)
    run.report.note(f"{len(every)} artifacts, all sound")
    return Outcome(shown="nothing", extra={"artifacts": len(every)})


def _check_input(root: Path, ref: "Ref", given: Mapping[str, str]) -> None:
    from objtune_cli.store import artifact, refs

    if not given["ref"]:
        return
    source = refs.parse(given["ref"])
    path = source.path(root)
    if path.is_file() and artifact.sha256(path) != given["sha256"]:
        raise DamagedError(f"{path} is not the file that {ref} was made from", f"restore it from a copy, or make {ref} again")


def export(
    run: Run,
    ref: Annotated[str, typer.Argument(help="A trained object.", autocompletion=complete.adapter_ref)],
    format_: Annotated[str, typer.Option("--format", help="diffusers, kohya or embedding.")] = "diffusers",
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write into.")] = Path(),
) -> Outcome:
    from objtune_cli.stages import export as stage
    from objtune_cli.store import refs

    root = run.project().artifacts
    written = stage.run(root, refs.find(root, ref, ("adapter",)), format_, out)
    if not run.options["json"]:
        render.lines(written)
    return Outcome(shown="nothing", extra={"files": [str(p) for p in written]})


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
