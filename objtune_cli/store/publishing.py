"""Publishes an artifact under a version of its own, beside other writers, without locks."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from objtune_cli.errors import BusyError
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

    After each conflict it looks for equal work again, and never tries the same version twice.

    Raises:
        BusyError: Others took the next version every time.
    """
    refused: list[int] = []
    for attempt in range(MAX_ATTEMPTS):
        equal = store.find_identical(record, accepts, refused) if accepts else None
        if equal:
            return equal
        version = _next_free(store, record, refused)
        try:
            return create_version(store, record, version, arrays)
        except TakenError:  # by another process, since we listed the versions
            refused.append(version)
            time.sleep(random.random() * min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE))
    raise BusyError(
        f"{record.kind}/{record.name}: others took the next version {MAX_ATTEMPTS} times",
        "run the same command again when fewer processes write this name",
    )


def _next_free(store: "Store", record: Record, refused: Sequence[int]) -> int:
    """The next version that is free. A listing may be old, so each is also looked up by its own key."""
    ref = Ref(record.kind, record.name, max(0, *store.used_versions(record.kind, record.name), *refused, 0) + 1)
    while store.has(ref.key) or store.has(ref.tombstone_key):
        ref = replace(ref, version=ref.version + 1)
    return ref.version
