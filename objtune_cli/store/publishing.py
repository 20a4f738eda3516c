"""Publishes an artifact under a version of its own, beside other writers, without locks."""

import contextlib
import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from objtune_cli.errors import BusyError, MissingError
from objtune_cli.store import artifacts, migrations
from objtune_cli.store.artifacts import Record
from objtune_cli.store.backend import TakenError
from objtune_cli.store.refs import Ref

if TYPE_CHECKING:
    from objtune_cli.store.store import Store

MAX_ATTEMPTS = 200
"""Attempts to take a version that others keep taking."""
FIRST_PAUSE, LONGEST_PAUSE = 0.002, 0.5
"""Bounds of the random pause after a version was taken, seconds; it doubles with each attempt."""

Arrays = Mapping[str, tuple[str, Any]]
"""Name to element type and numpy array."""


def create_version(store: "Store", record: Record, version: int, arrays: Arrays) -> Ref:
    """Publish an artifact under a version.

    Raises:
        TakenError: Another artifact has the version, or had it.
    """
    numbered = replace(record, version=version, schema=migrations.SCHEMA)
    store.backend.create(numbered.ref.key, artifacts.encode(numbered, arrays))
    if store.has(numbered.ref.tombstone_key):  # others published and removed it since we looked
        store.backend.delete(numbered.ref.key)
        raise TakenError(numbered.ref.key)
    return numbered.ref


def create_next(store: "Store", record: Record, arrays: Arrays, accepts: Callable[[Record], bool] | None) -> Ref:
    """Publish an artifact under the next free version, or return equal work; arguments as for `Store.create`.

    The version and the search for equal work are from one listing: whoever publishes later takes that version, so that
    there is a conflict, and it looks again. A listing may be old; a version that it lacks is looked up by its own key.

    Raises:
        BusyError: Others took the next version every time.
    """
    refused: set[int] = set()
    checked: set[int] = set()
    attempts = 0
    while attempts < MAX_ATTEMPTS:
        files = store.list_files(record.kind, record.name)
        if accepts:
            published = {version for version, suffix in files if suffix == "safetensors"} | refused
            equal = _find_equal(store, record, published - checked, accepts)
            if equal:
                return equal
            checked |= published
        ref = Ref(record.kind, record.name, max(0, *(version for version, _ in files), *refused, 0) + 1)
        if store.has(ref.key) or store.has(ref.tombstone_key):
            refused.add(ref.version)
            continue
        try:
            return create_version(store, record, ref.version, arrays)
        except TakenError:  # by another process, since we listed the versions
            refused.add(ref.version)
        time.sleep(random.random() * min(FIRST_PAUSE * 2**attempts, LONGEST_PAUSE))
        attempts += 1
    raise BusyError(
        f"{record.kind}/{record.name}: others took the next version {MAX_ATTEMPTS} times",
        "run the same command again when fewer processes write this name",
    )


def _find_equal(
    store: "Store", wanted: Record, versions: Collection[int], accepts: Callable[[Record], bool]
) -> Ref | None:
    """The newest of some versions that is the same work and accepted; versions that were removed are skipped."""
    identity = wanted.identity()
    for version in sorted(versions, reverse=True):
        with contextlib.suppress(MissingError):
            record = store.read_record(Ref(wanted.kind, wanted.name, version))
            if record.identity() == identity and accepts(record):
                return record.ref
    return None
