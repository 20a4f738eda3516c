"""Checkpoints of unfinished runs: one replaceable file per run, whole or absent, and a lock on the run."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from objtune_cli.errors import BusyError, DamagedError, ObjtuneError
from objtune_cli.store import artifacts, disk_errors, file_locks, safetensors_format
from objtune_cli.store.store import Store

STATES = ".objtune/state/"
"""Prefix of the keys of checkpoints."""


@dataclass(frozen=True, slots=True)
class UnfinishedRun:
    """A checkpoint's header.

    Attributes:
        file: Key of the checkpoint in the store.
        key: Key of the run.
        runs: Adapter name to {"step", "total", "inputs"}. config, base: Of the first of them, as in its record.
        computed: Device, number formats, threads and version of torch.
    """

    file: str
    key: str
    runs: Mapping[str, Mapping[str, Any]]
    config: Mapping[str, Any]
    base: Mapping[str, str]
    computed: str


def list_checkpoints(store: Store) -> list[UnfinishedRun]:
    """List the checkpoints of a project that name their runs; reads headers only."""
    unfinished = []
    for entry in store.backend.list(STATES):
        with contextlib.suppress(ObjtuneError, OSError):
            if not entry.key.endswith(".safetensors"):
                continue
            record, _, _ = _read_header(store, entry.key)
            about = record.get("about")
            if isinstance(about, dict) and about.get("runs"):
                unfinished.append(
                    UnfinishedRun(
                        entry.key,
                        str(record.get("run")),
                        about["runs"],
                        about["config"],
                        about["base"],
                        about["computed"],
                    )
                )
    return unfinished


def _read_header(store: Store, key: str) -> Any:
    return safetensors_format.read_header(store.backend.path(key), lambda _path: store.backend.open(key))


class Checkpoint:
    """The checkpoint of one run.

    Attributes:
        about: Further fields of its header, for `list_checkpoints`.
    """

    def __init__(self, store: Store, key: str) -> None:
        self.store, self.key = store, key
        self.about: dict[str, Any] = {}
        self._stored_key = f"{STATES}{key[:32]}.safetensors"

    @property
    def file(self) -> Path:
        """Local path, for messages and to see whether there is one."""
        return self.store.backend.path(self._stored_key)

    def save(self, tensors: Mapping[str, Any]) -> None:
        """Replace the checkpoint atomically."""
        arrays = {name: artifacts.to_array(value) for name, value in tensors.items()}
        body = b"".join(arrays[name][1].tobytes() for name in sorted(arrays))
        record = {"run": self.key, "sha256": hashlib.sha256(body).hexdigest(), "about": self.about}
        specs = {name: (element, array.shape) for name, (element, array) in arrays.items()}
        self.store.backend.replace(self._stored_key, safetensors_format.encode_header(record, specs) + body)

    def load(self) -> dict[str, Any] | None:
        """Load the saved tensors (numpy); None where there is no intact checkpoint of this run."""
        try:
            record, layout, _ = _read_header(self.store, self._stored_key)
        except (FileNotFoundError, DamagedError):
            return None
        with self.store.backend.open(self._stored_key) as file:
            data = file.read()
        start = min((offset for _, offset in layout.values()), default=len(data))
        if record.get("run") != self.key or hashlib.sha256(data[start:]).hexdigest() != record.get("sha256"):
            return None
        return {name: array.copy() for name, array in artifacts.decode(data, layout).items()}

    def discard(self) -> None:
        """Delete the checkpoint of a run that is finished."""
        self.store.backend.delete(self._stored_key)

    @contextlib.contextmanager
    def lock(
        self,
        message: str = "another process is training exactly this",
        hint: str = "wait for it, then run the same command: it reuses the result",
    ) -> Iterator[None]:
        """Lock the run for this process; the system frees the lock however the process ends.

        Locks are files on a local disk; correct results do not depend on them.

        Raises:
            BusyError: Another process has the run.
        """
        path = self.file.with_suffix(".lock")
        with disk_errors.translate_os_errors(self.store.backend.path("")):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                handle = file_locks.open_lock_file(path)
            except BlockingIOError:
                raise BusyError(message, hint) from None
        try:
            yield
            path.unlink(missing_ok=True)  # before the lock is freed: nobody else can have the file
        finally:
            os.close(handle)
