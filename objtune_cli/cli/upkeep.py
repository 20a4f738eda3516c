"""`objtune verify`, `gc`, `rm` and `mv`: keeping the store."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from objtune_cli.cli import complete, render, spans
from objtune_cli.cli.frame import Outcome, Run, need
from objtune_cli.cli.given import given_refs
from objtune_cli.errors import DamagedError, IncompatibleError, ObjtuneError

if TYPE_CHECKING:
    from objtune_cli.store.artifact import Record
    from objtune_cli.store.refs import Ref

AGE = "14d"


def verify(run: Run) -> Outcome:
    from objtune_cli.store import artifact, refs

    root = run.project().artifacts
    bad: list[ObjtuneError] = []
    found: dict[Ref, str] = {}
    records: list[Record] = []
    every = refs.every(root)
    for ref in every:
        try:
            record, found[ref] = artifact.verified(root, ref)
            records.append(record)
        except ObjtuneError as error:
            bad.append(error)
    for record in records:
        for given in record.inputs.values():
            try:
                _check_input(root, record.ref, given["ref"], given["sha256"], found)
            except ObjtuneError as error:
                bad.append(error)
    if bad:
        worst = min(bad, key=lambda e: e.code)
        kind = DamagedError if worst.code < IncompatibleError.code else type(worst)
        raise kind(
            f"{len(bad)} of {len(every)} artifacts cannot be used: {'; '.join(e.message for e in bad)}", worst.hint
        )
    bare = sum(not record.digest for record in records)
    run.report.note(
        f"{len(every)} artifacts, all sound"
        + (f" ({bare} of schema 1, checked where another was made from them)" if bare else "")
    )
    return Outcome(shown="nothing", extra={"artifacts": len(every), "without_digest": bare})


def _check_input(root: Path, ref: "Ref", source: str, digest: str, found: "dict[Ref, str]") -> None:
    """That an input is the file that was recorded, or was removed as that file; one that is not here says nothing."""
    from objtune_cli.store import refs

    if not source:
        return
    wanted = refs.parse(source)
    gone = refs.buried(root, wanted)
    have = found.get(wanted) or (gone and gone["sha256"])
    if have and have != digest:
        raise DamagedError(
            f"{wanted.path(root)} is not the file that {ref} was made from",
            f"restore it from a copy, or make {ref} again",
        )


def gc(
    run: Run,
    older_than: Annotated[str, typer.Option("--older-than", metavar="AGE", help="Only what is older: 14d, 36h.")] = AGE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")] = False,
) -> Outcome:
    from objtune_cli.store import leavings, removal

    project = run.project()
    before = time.time() - spans.seconds(older_than, "--older-than")
    with project.held(alone=True):
        gone = removal.unreferenced(project.artifacts, before)
        rest = leavings.found(project, before)
        size = sum(
            path.stat().st_size for path in (*rest, *(ref.path(project.artifacts) for ref in gone)) if path.exists()
        )
        if not dry_run:
            removal.remove(project.artifacts, gone)
            leavings.delete(rest)
    said = "would free" if dry_run else "freed"
    run.report.note(f"{said} {size / 1e6:.1f} MB: {len(gone)} artifacts, {len(rest)} leftovers")
    names = [str(path.relative_to(project.folder)) for path in rest]
    if not run.options["json"]:
        render.lines([*gone, *names])
    removed = [str(ref) for ref in gone]
    return Outcome(shown="nothing", extra={"removed": removed, "leftovers": names, "bytes": size, "dry_run": dry_run})


def rm(
    run: Run,
    ref: Annotated[
        list[str] | None,
        typer.Argument(help="Artifacts, or - to read refs from stdin.", autocompletion=complete.any_ref),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Even if others were made from it.")] = False,
) -> Outcome:
    from objtune_cli.store import refs, removal

    project = run.project()
    given = given_refs(ref)
    with project.held(alone=True):
        gone = list(dict.fromkeys(refs.find(project.artifacts, text) for text in given))
        removal.remove(project.artifacts, gone, force=force)
    if not run.options["json"]:
        render.lines(gone)
    return Outcome(shown="nothing", extra={"removed": [str(r) for r in gone]})


def mv(
    run: Run,
    old: Annotated[str, typer.Argument(help="An object's name.", autocompletion=complete.object_name)],
    new: Annotated[str, typer.Argument(help="What to call it.")],
) -> Outcome:
    from objtune_cli.store import refs, removal

    need(old != new, f"{old} is called that already", "give another name")
    need(
        "/" not in old + new and "@" not in old + new,
        f"{old} and {new} are not both names",
        "for example `objtune mv dog rex`",
    )
    project = run.project()
    with project.held(alone=True):
        moved = removal.rename(project.artifacts, refs.check_name(old), refs.check_name(new))
    if not run.options["json"]:
        render.lines([target for _, target in moved])
    return Outcome(shown="nothing", extra={"moved": [{"from": str(a), "to": str(b)} for a, b in moved]})
