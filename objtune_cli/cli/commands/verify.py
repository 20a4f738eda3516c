"""`objtune verify`: check every byte of every artifact."""

from typing import TYPE_CHECKING

from objtune_cli.cli.runner import CommandResult, CommandRun
from objtune_cli.errors import DamagedError, IncompatibleError, ObjtuneError

if TYPE_CHECKING:
    from objtune_cli.store.artifacts import Record
    from objtune_cli.store.refs import Ref
    from objtune_cli.store.store import Store


def verify(run: CommandRun) -> CommandResult:

    store = run.project().store
    bad: list[ObjtuneError] = []
    digests: dict[Ref, str] = {}
    records: list[Record] = []
    every = store.list()
    for ref in every:
        try:
            record, digests[ref] = store.verify(ref)
            records.append(record)
        except ObjtuneError as error:
            bad.append(error)
    for record in records:
        for recorded_input in record.inputs.values():
            try:
                _check_input(store, record.ref, recorded_input["ref"], recorded_input["sha256"], digests)
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
        f"{len(every)} artifacts, all intact"
        + (f" ({bare} of schema 1, checked where another was made from them)" if bare else "")
    )
    return CommandResult(printed="nothing", extra={"artifacts": len(every), "without_digest": bare})


def _check_input(store: "Store", ref: "Ref", source: str, digest: str, digests: "dict[Ref, str]") -> None:
    """That an input is the file that was recorded, or was removed as that file; one that is not here says nothing."""
    from objtune_cli.store import refs

    if not source:
        return
    wanted = refs.parse(source)
    gone = store.read_tombstone(wanted)
    have = digests.get(wanted) or (gone and gone["sha256"])
    if have and have != digest:
        raise DamagedError(
            f"{store.locate(wanted)} is not the file that {ref} was made from",
            f"restore it from a backup, or make {ref} again",
        )
