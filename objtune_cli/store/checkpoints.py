"""Unfinished work on disk: one replaceable file per run, whole or absent, and a lock on the run."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from objtune_cli.errors import BusyError, DamagedError, ObjtuneError
from objtune_cli.store import atomic_files, safetensors_format
from objtune_cli.store.artifacts import to_array, translate_os_errors, write_file
from objtune_cli.store.project import Project


@dataclass(frozen=True, slots=True)
class UnfinishedRun:
    """A saved state, as its header tells of it.

    Attributes:
        runs: Adapter name to {"step", "total", "inputs"}. config, base: of the first of them, as in its record.
        computed: Device, number formats, threads and version of torch.
    """

    file: Path
    key: str
    runs: Mapping[str, Mapping[str, Any]]
    config: Mapping[str, Any]
    base: Mapping[str, str]
    computed: str


def list_checkpoints(project: Project) -> list[UnfinishedRun]:
    """The saved states of a project that say whose they are; reads headers only."""
    found = []
    for file in sorted(project.states.glob("*.safetensors")):
        with contextlib.suppress(ObjtuneError, OSError):
            record, _, _ = safetensors_format.read_header(file)
            about = record.get("about")
            if isinstance(about, dict) and about.get("runs"):
                found.append(
                    UnfinishedRun(
                        file, str(record.get("run")), about["runs"], about["config"], about["base"], about["computed"]
                    )
                )
    return found


class Checkpoint:
    """The saved state of the run with a given key.

    Attributes:
        about: What its header says of the run besides, for `unfinished`.
    """

    def __init__(self, project: Project, key: str) -> None:
        self.project, self.key = project, key
        self.about: dict[str, Any] = {}
        self.file = project.states / f"{key[:32]}.safetensors"

    def save(self, tensors: Mapping[str, Any]) -> None:
        """Replace the state atomically."""
        arrays = {name: to_array(value) for name, value in tensors.items()}
        body = b"".join(arrays[name][1].tobytes() for name in sorted(arrays))
        record = {"run": self.key, "sha256": hashlib.sha256(body).hexdigest(), "about": self.about}
        specs = {name: (kind, array.shape) for name, (kind, array) in arrays.items()}
        write_file(self.file, safetensors_format.encode_header(record, specs) + body, self.project.artifacts)

    def load(self) -> dict[str, Any] | None:
        """The saved tensors (numpy), or None where there is no sound state of this very run."""
        import numpy as np

        try:
            record, layout, _ = safetensors_format.read_header(self.file)
        except (FileNotFoundError, DamagedError):
            return None
        data = self.file.read_bytes()
        start = min((offset for _, offset in layout.values()), default=len(data))
        if record.get("run") != self.key or hashlib.sha256(data[start:]).hexdigest() != record.get("sha256"):
            return None
        kinds = {"F32": "<f4", "I64": "<i8", "F16": "<f2", "F64": "<f8"}
        return {
            name: np.frombuffer(
                data,
                kinds[spec[0]],
                safetensors_format.size_of(spec) // safetensors_format.ELEMENT_BYTES[spec[0]],
                offset,
            )
            .reshape(spec[1])
            .copy()
            for name, (spec, offset) in layout.items()
        }

    def discard(self) -> None:
        """The work is done: forget its state."""
        with contextlib.suppress(FileNotFoundError):
            self.file.unlink()

    @contextlib.contextmanager
    def lock(
        self,
        message: str = "another process is training exactly this",
        hint: str = "wait for it, then run the same command: it reuses the result",
    ) -> Iterator[None]:
        """Hold the run for this process; the system frees it whatever happens to us.

        Raises:
            BusyError: Another process is at the same run.
        """
        path = self.file.with_suffix(".lock")
        with translate_os_errors(self.project.folder):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock = atomic_files.open_lock_file(path)
            except BlockingIOError:
                raise BusyError(message, hint) from None
        try:
            yield
            path.unlink(missing_ok=True)  # while still holding it: nobody else can have it
        finally:
            os.close(lock)
