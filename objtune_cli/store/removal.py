"""Taking artifacts away: `rm`, `gc` and `mv`. A number that was given is never given again: a tombstone keeps it."""

import contextlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from objtune_cli.errors import MissingError, UsageError
from objtune_cli.store import artifacts, refs, safetensors_format
from objtune_cli.store.artifacts import Record
from objtune_cli.store.kinds import adapter
from objtune_cli.store.refs import Ref

REPRODUCIBLE_KINDS = ("mask", "embedding", "prior")
"""Kinds that `gc` may take: any stage makes them again. Adapters and scenes are results."""
NAMED_KINDS = ("mask", "embedding", "adapter")
"""Kinds that bear an object's name, each made from the one before it."""


def read_all_records(root: Path) -> dict[Ref, Record]:
    """Every artifact's record.

    Raises:
        DamagedError, IncompatibleError: One cannot be read, so that nobody knows what it was made from.
    """
    return {ref: artifacts.read_record(root, ref) for ref in refs.list_refs(root)}


def source_refs(record: Record) -> list[Ref]:
    """The artifacts that one was made from."""
    return [refs.parse(given["ref"]) for given in record.inputs.values() if given["ref"]]


def find_dependents(every: Mapping[Ref, Record], gone: Iterable[Ref]) -> dict[Ref, Ref]:
    """Artifacts outside `gone` that were made from one of it, each with that one."""
    lost = set(gone)
    return {
        ref: source
        for ref, record in every.items()
        if ref not in lost
        for source in source_refs(record)
        if source in lost
    }


def remove(root: Path, gone: list[Ref], *, force: bool = False) -> None:
    """Delete artifacts with their pictures and leave tombstones.

    Args:
        force: Also those that others were made from; the tombstone lets `verify` know what they were.

    Raises:
        UsageError: Others were made from one of them.
    """
    left = {} if force else find_dependents(read_all_records(root), gone)
    if left:
        said = "; ".join(f"{ref} was made from {source}" for ref, source in list(left.items())[:5])
        raise UsageError(f"{said}{' …' if len(left) > 5 else ''}", "remove those first, or use `--force`")
    for ref in gone:
        replace_by_tombstone(root, ref)


def replace_by_tombstone(root: Path, ref: Ref, moved: str = "") -> None:
    """One artifact becomes a tombstone; stopped half way, the same again finishes it.

    The tombstone is on the disk before the artifact goes, so that its number is free at no moment; the pictures go
    before it, so that none is left without its artifact.
    """
    path = ref.path(root)
    said = {"moved": moved, "ref": str(ref), "sha256": artifacts.file_sha256(path)}
    artifacts.write_file(
        refs.tombstone_path(root, ref), (safetensors_format.canonical_json(said) + "\n").encode(), root
    )
    with artifacts.translate_os_errors(path):
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        path.unlink()
        artifacts.flush_folder(path.parent)


def find_unreferenced(root: Path, before: float) -> list[Ref]:
    """Artifacts for `gc`: superseded, written before that time, and no result was made from them.

    Kept are all adapters and scenes, the newest version of every name, what is younger, and whatever these were made
    from, through all stages.
    """
    every = read_all_records(root)
    newest = {(ref.kind, ref.name): ref for ref in every}  # in rising order: the last one stays
    kept: set[Ref] = set()
    reached = [
        ref
        for ref in every
        if ref.kind not in REPRODUCIBLE_KINDS
        or newest[ref.kind, ref.name] == ref
        or ref.path(root).stat().st_mtime >= before
    ]
    while reached:
        ref = reached.pop()
        if ref in every and ref not in kept:
            kept.add(ref)
            reached += source_refs(every[ref])
    return [ref for ref in every if ref not in kept]


def rename(root: Path, old: str, new: str) -> list[tuple[Ref, Ref]]:
    """Give an object another name: its masks, embeddings and adapter, in every version.

    Files are immutable and hold their name, so each is written again under the new one, with the same number, as the
    stages would have written it; the old one becomes a tombstone that says where it went and what its SHA-256 was. So
    a ref to the old name that stands in a scene, or in somebody's script, still leads to the object, and `verify`
    still knows the file that the scene was made from.

    Raises:
        MissingError: Nothing has the old name. UsageError: the new one is taken, or a joint adapter was made from it.
    """
    every = read_all_records(root)
    moved = {
        ref: replace(ref, name=new) for kind in NAMED_KINDS for ref in every if (ref.kind, ref.name) == (kind, old)
    }
    if not moved:
        raise MissingError(f"no object is called {old}", "`objtune list adapter` shows the objects")
    joint = {ref: source for ref, source in find_dependents(every, moved).items() if ref.kind != "scene"}
    for ref, source in joint.items():
        raise UsageError(
            f"{ref} was made from {source}",
            f"an object that was learned with others keeps its name; `objtune rm {ref}` first",
        )
    renamed: dict[Ref, dict[str, str]] = {}
    for ref, target in moved.items():
        record, tensors = artifacts.load(root, ref)
        renamed[ref] = {
            "ref": str(target),
            "sha256": _publish_renamed(root, _rename_record(record, old, new, renamed), target, tensors, old),
        }
        if ref.path(root).with_suffix("").is_dir():
            shutil.copytree(ref.path(root).with_suffix(""), target.path(root).with_suffix(""), dirs_exist_ok=True)
    for ref in reversed(moved):  # what was made last goes first: stopped half way, the rest still has its sources
        replace_by_tombstone(root, ref, str(moved[ref]))
    return list(moved.items())


def _rename_record(record: Record, old: str, new: str, renamed: Mapping[Ref, dict[str, str]]) -> Record:
    """A record as its stage would have written it under the new name."""
    inputs = {}
    for role, given in record.inputs.items():
        source = refs.parse(given["ref"]) if given["ref"] else None
        role = f"{adapter.EMBEDDING_ROLE}{new}" if role == f"{adapter.EMBEDDING_ROLE}{old}" else role
        inputs[role] = renamed.get(source, given) if source else given
    objects = {new if name == old else name: word for name, word in record.objects.items()}
    return replace(record, name=new, objects=objects, inputs=inputs)


def _publish_renamed(root: Path, record: Record, target: Ref, tensors: Mapping[str, Any], old: str) -> str:
    """Publish one renamed artifact under its number, unless an interrupted run did; its SHA-256."""
    renamed = dict(zip(adapter.token_names(old), adapter.token_names(target.name), strict=True))
    tensors = {renamed.get(key, key): value for key, value in tensors.items()}
    numbered = replace(record, version=target.version)
    path = target.path(root)
    with contextlib.suppress(artifacts.TakenError):
        artifacts.publish(root, numbered, tensors, number=target.version)
        return artifacts.file_sha256(path)
    wanted = artifacts.encode(numbered, {name: artifacts.to_array(value) for name, value in tensors.items()})
    if path.exists() and path.read_bytes() == b"".join(bytes(part) for part in wanted):
        return artifacts.file_sha256(path)
    raise UsageError(f"the name {target.name} is taken: {target}", "choose another one")
