"""Removes and renames artifacts for `rm`, `gc` and `mv`. A version is used once: a tombstone remains of a removed one."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from objtune_cli.errors import MissingError, UsageError
from objtune_cli.store import refs, safetensors_format
from objtune_cli.store.artifacts import Record
from objtune_cli.store.backend import TakenError
from objtune_cli.store.kinds import adapter
from objtune_cli.store.refs import Ref

if TYPE_CHECKING:
    from objtune_cli.store.store import Store

REPRODUCIBLE_KINDS = ("mask", "embedding", "prior")
"""Kinds that `gc` may delete: their stages make them again. Adapters and scenes are results."""
NAMED_KINDS = ("mask", "embedding", "adapter")
"""Kinds that bear an object's name, each made from the one before it."""


def read_all_records(store: "Store") -> dict[Ref, Record]:
    """Read the record of every artifact.

    Raises:
        DamagedError, IncompatibleError: One cannot be read, so that its sources are unknown.
    """
    return {ref: store.read_record(ref) for ref in store.list()}


def source_refs(record: Record) -> list[Ref]:
    """The artifacts that one was made from."""
    return [refs.parse(source["ref"]) for source in record.inputs.values() if source["ref"]]


def find_dependents(records: Mapping[Ref, Record], removed: Iterable[Ref]) -> dict[Ref, Ref]:
    """Artifacts outside `removed` that were made from one of it, each with that one."""
    sources = set(removed)
    return {
        ref: source
        for ref, record in records.items()
        if ref not in sources
        for source in source_refs(record)
        if source in sources
    }


def remove(store: "Store", removed: Sequence[Ref], *, force: bool = False) -> None:
    """Delete artifacts with their images and leave tombstones.

    Args:
        force: Also those that others were made from; the tombstone lets `verify` know their digests.

    Raises:
        UsageError: Others were made from one of them.
    """
    dependents = {} if force else find_dependents(read_all_records(store), removed)
    if dependents:
        listed = "; ".join(f"{ref} was made from {source}" for ref, source in list(dependents.items())[:5])
        raise UsageError(f"{listed}{' …' if len(dependents) > 5 else ''}", "remove those first, or use `--force`")
    for ref in removed:
        replace_by_tombstone(store, ref)


def replace_by_tombstone(store: "Store", ref: Ref, moved: str = "") -> None:
    """Replace one artifact by a tombstone; after an interruption, the same call finishes it.

    The tombstone is written before the artifact is deleted, so that its version is never free. The images are deleted
    before the artifact, so that none is left without it.

    Args:
        moved: The ref under which the artifact is found from now on.
    """
    tombstone = {"moved": moved, "ref": str(ref), "sha256": store.compute_sha256(ref)}
    with contextlib.suppress(TakenError):  # an interrupted `mv` left one that says more
        store.backend.create(ref.tombstone_key, [(safetensors_format.canonical_json(tombstone) + "\n").encode()])
    store.backend.delete(ref.images_key)
    store.backend.delete(ref.key)


def find_unreferenced(store: "Store", before: float) -> list[Ref]:
    """Artifacts for `gc`: superseded, written before that time, and no result was made from them.

    All adapters and scenes stay, the newest version of every name, those that are younger, and their sources through
    all stages.
    """
    records = read_all_records(store)
    newest = {(ref.kind, ref.name): ref for ref in records}  # in rising order: the last one stays
    reachable: set[Ref] = set()
    waiting = [
        ref
        for ref in records
        if ref.kind not in REPRODUCIBLE_KINDS
        or newest[ref.kind, ref.name] == ref
        or store.backend.stat(ref.key).modified >= before
    ]
    while waiting:
        ref = waiting.pop()
        if ref in records and ref not in reachable:
            reachable.add(ref)
            waiting += source_refs(records[ref])
    return [ref for ref in records if ref not in reachable]


def rename_object(store: "Store", old: str, new: str) -> list[tuple[Ref, Ref]]:
    """Give an object another name: its masks, embeddings and adapters, in every version.

    Files are immutable and hold their name, so each is written again under the new one, with the same version and the
    bytes that its stage would have written. The old one becomes a tombstone with the new ref and its own SHA-256. So a
    ref to the old name in a scene or a script still leads to the object, and `verify` still knows the scene's source.

    Raises:
        MissingError: Nothing has the old name. UsageError: the new one is taken, or a joint adapter was made from it.
    """
    records = read_all_records(store)
    targets = {
        ref: replace(ref, name=new) for kind in NAMED_KINDS for ref in records if (ref.kind, ref.name) == (kind, old)
    }
    if not targets:
        raise MissingError(f"no object is called {old}", "`objtune list adapter` shows the objects")
    joint = {ref: source for ref, source in find_dependents(records, targets).items() if ref.kind != "scene"}
    for ref, source in joint.items():
        raise UsageError(
            f"{ref} was made from {source}",
            f"an object that was learned with others keeps its name; `objtune rm {ref}` first",
        )
    renamed: dict[Ref, dict[str, str]] = {}
    for ref, target in targets.items():
        record, tensors = store.read(ref)
        renamed[ref] = {
            "ref": str(target),
            "sha256": _create_renamed(store, _rename_record(record, old, new, renamed), target, tensors, old),
        }
        for image in store.backend.list(ref.images_key):
            store.write(target.images_key + image.name, store.backend.read(image.key))
    for ref in reversed(targets):  # results first: after an interruption, the rest still has its sources
        replace_by_tombstone(store, ref, str(targets[ref]))
    return list(targets.items())


def _rename_record(record: Record, old: str, new: str, renamed: Mapping[Ref, dict[str, str]]) -> Record:
    """A record as its stage would have written it under the new name."""
    inputs = {}
    for role, source in record.inputs.items():
        ref = refs.parse(source["ref"]) if source["ref"] else None
        role = f"{adapter.EMBEDDING_ROLE}{new}" if role == f"{adapter.EMBEDDING_ROLE}{old}" else role
        inputs[role] = renamed.get(ref, source) if ref else source
    objects = {new if name == old else name: word for name, word in record.objects.items()}
    return replace(record, name=new, objects=objects, inputs=inputs)


def _create_renamed(store: "Store", record: Record, target: Ref, tensors: Mapping[str, Any], old: str) -> str:
    """Publish one renamed artifact under its version; after an interruption, equal bytes are there already. Its SHA-256.

    Raises:
        UsageError: Another artifact has the version.
    """
    token_names = dict(zip(adapter.token_names(old), adapter.token_names(target.name), strict=True))
    tensors = {token_names.get(name, name): value for name, value in tensors.items()}
    try:
        return store.compute_sha256(store.create(record, tensors, version=target.version))
    except TakenError:
        raise UsageError(f"the name {target.name} is taken: {target}", "choose another one") from None
