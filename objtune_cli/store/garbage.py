"""Finds files in a project that nothing needs any more, for `gc` and `doctor`."""

import contextlib
from collections.abc import Iterator, Sequence

from objtune_cli.errors import ResourceError
from objtune_cli.store import checkpoints, refs
from objtune_cli.store.backend import CHECKS, Entry
from objtune_cli.store.store import Store

REJECTED = ".objtune/rejected/"
"""Prefix of pictures of masks that the quality gate refused."""
HASHES = ".objtune/hashes/"
"""Prefix of hashes that other tools know an adapter by; they are computed again when they are needed."""

PHOTOS = ".objtune/photos/"
"""Prefix of photos from web addresses and stdin; a mask holds the pixels that it needs."""


def find_garbage(store: Store, before: float) -> Sequence[Entry]:
    """Find temporary files of killed writers and, written before a time, files that no finished work needs.

    These are checkpoints of unfinished runs, pictures of rejected masks, cached hashes, downloaded photos, images whose artifact is gone (a
    folder of them is one entry), and claims on a version that nobody publishes.
    """
    old = [entry for entry in _find_unneeded(store) if entry.modified < before]
    return [*store.backend.find_orphaned(), *old]


def _find_unneeded(store: Store) -> Iterator[Entry]:
    for prefix in (checkpoints.STATES, REJECTED, HASHES, PHOTOS, CHECKS):
        yield from store.backend.list(prefix, deep=True)
    for kind in store.backend.list(refs.ARTIFACTS):
        for name in store.backend.list(kind.key) if kind.key.endswith("/") else ():
            yield from _find_unneeded_beside(
                store, list(store.backend.list(name.key)) if name.key.endswith("/") else []
            )


def _find_unneeded_beside(store: Store, entries: Sequence[Entry]) -> Iterator[Entry]:
    """Image folders without their artifact, and claims, among the files of one name."""
    keys = {entry.key for entry in entries}
    for entry in entries:
        if entry.key.endswith("/") and entry.name.startswith("v") and f"{entry.key[:-1]}.safetensors" not in keys:
            images = list(store.backend.list(entry.key, deep=True))
            if images:
                yield Entry(entry.key, sum(i.size for i in images), max(i.modified for i in images))
        if entry.key.endswith(".claim"):
            yield entry


def delete(store: Store, entries: Sequence[Entry]) -> None:
    """Delete files and folders of images; those that cannot be deleted stay."""
    for entry in entries:
        with contextlib.suppress(ResourceError):
            store.backend.delete(entry.key)
