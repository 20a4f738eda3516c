"""Checkpoints of unfinished runs: numbered files, whole or absent, and a lock on the run."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from objtune_cli.errors import BusyError, DamagedError, ObjtuneError
from objtune_cli.store import artifacts, disk_errors, file_locks, safetensors_format
from objtune_cli.store.backend import TakenError
from objtune_cli.store.store import Store

STATES = ".objtune/state/"
"""Prefix of the keys of checkpoints: `<run>/<number>.safetensors`."""
SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class UnfinishedRun:
    """A checkpoint's header.

    Attributes:
        file: Key of the checkpoint in the store.
        key: Key of the run.
        runs: Adapter name to {"step", "total", "inputs"}. config, base: Of the first of them, as in its record.
        computed: Device, number formats, threads and version of torch.
        words, folder: The command line that resumes it, and where; empty where none does.
    """

    file: str
    key: str
    runs: Mapping[str, Mapping[str, Any]]
    config: Mapping[str, Any]
    base: Mapping[str, str]
    computed: str
    words: tuple[str, ...] = ()
    folder: str = ""


def list_checkpoints(store: Store) -> list[UnfinishedRun]:
    """List the checkpoints of a project that name their runs, the newest of each; reads headers only."""
    unfinished: dict[str, UnfinishedRun] = {}
    for entry in store.backend.list(STATES, deep=True):  # rising numbers: the newest intact one stays
        with contextlib.suppress(ObjtuneError, OSError):
            if not entry.key.endswith(SUFFIX):
                continue
            record, _, _ = _read_header(store, entry.key)
            about = record.get("about")
            if isinstance(about, dict) and about.get("runs"):
                key, command = str(record.get("run")), about.get("command", {})
                unfinished[key] = UnfinishedRun(
                    entry.key,
                    key,
                    about["runs"],
                    about["config"],
                    about["base"],
                    about["computed"],
                    tuple(command.get("words", ())),
                    command.get("folder", ""),
                )
    return list(unfinished.values())


def is_running(store: Store, run: UnfinishedRun) -> bool:
    """Whether a process on this machine has a run, as far as locks tell."""
    path = store.backend.lock_path(f"{STATES}{run.key[:32]}.lock")
    return path is not None and file_locks.is_locked(path)


def _read_header(store: Store, key: str) -> Any:
    return safetensors_format.read_header(store.backend.locate(key), lambda _path: store.backend.open(key))


class Checkpoint:
    """The checkpoint of one run: numbered files, of which the newest counts and two are kept.

    A process that saves tells by the numbers whether another one went on with the run, without locks or clocks.

    Attributes:
        about: Further fields of its header, for `list_checkpoints`.
    """

    def __init__(self, store: Store, key: str) -> None:
        self.store, self.key = store, key
        self.about: dict[str, Any] = {}
        self._prefix = f"{STATES}{key[:32]}/"
        self._number: int | None = None  # of the newest file that this process knows, once it looked

    @property
    def name(self) -> str:
        """Where the newest file is, for messages."""
        return self.store.backend.locate(next(iter(self._keys().values()), self._prefix))

    def exists(self) -> bool:
        """Whether there is a checkpoint, intact or not."""
        return bool(self._keys())

    def save(self, tensors: Mapping[str, Any]) -> None:
        """Write the next file of the checkpoint and delete the last but one.

        Raises:
            BusyError: Another process went on with the run.
        """
        arrays = {name: artifacts.to_array(value) for name, value in tensors.items()}
        body = b"".join(arrays[name][1].tobytes() for name in sorted(arrays))
        record = {"run": self.key, "sha256": hashlib.sha256(body).hexdigest(), "about": self.about}
        specs = {name: (element, array.shape) for name, (element, array) in arrays.items()}
        earlier = self._keys()
        newest = max(earlier, default=0)
        if self._number is not None and newest > self._number:
            raise _overtaken()
        self._number = newest + 1
        for number, key in earlier.items():  # before the next is written, which may need their space
            if number < newest:
                self.store.backend.delete(key)
        try:
            self.store.backend.create(
                self._numbered(self._number), [safetensors_format.encode_header(record, specs), body]
            )
        except TakenError:
            raise _overtaken() from None

    def load(self) -> dict[str, Any] | None:
        """Load the saved tensors (numpy) of the newest intact file; None where this run has none."""
        earlier = self._keys()
        self._number = max(earlier, default=0)
        for key in earlier.values():
            tensors = self._load_file(key)
            if tensors is not None:
                return tensors
        return None

    def _load_file(self, key: str) -> dict[str, Any] | None:
        try:
            record, layout, _ = _read_header(self.store, key)
            data = self.store.backend.read(key)
        except (FileNotFoundError, DamagedError):
            return None
        start = min((offset for _, offset in layout.values()), default=len(data))
        if record.get("run") != self.key or hashlib.sha256(data[start:]).hexdigest() != record.get("sha256"):
            return None
        return {name: array.copy() for name, array in artifacts.decode(data, layout).items()}

    def discard(self) -> None:
        """Delete the checkpoint of a run that is finished."""
        self.store.backend.delete(self._prefix)
        self.store.backend.delete(self._unnumbered)

    def _keys(self) -> dict[int, str]:
        """Number to key of each file, falling; number 0 is the one file that earlier versions of objtune wrote."""
        names = (entry.name for entry in self.store.backend.list(self._prefix))
        numbers = [int(stem) for name in names if (stem := name.removesuffix(SUFFIX)) != name and stem.isdecimal()]
        keys = {number: self._numbered(number) for number in sorted(numbers, reverse=True)}
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self.store.backend.stat(self._unnumbered)
            keys[0] = self._unnumbered
        return keys

    def _numbered(self, number: int) -> str:
        return f"{self._prefix}{number:09d}{SUFFIX}"

    @property
    def _unnumbered(self) -> str:
        return f"{self._prefix[:-1]}{SUFFIX}"

    @contextlib.contextmanager
    def lock(
        self,
        message: str = "another process is training exactly this",
        hint: str = "wait for it, then run the same command: it reuses the result",
    ) -> Iterator[None]:
        """Lock the run for this process; the system frees the lock however the process ends.

        Correct results do not depend on it: the lock only tells a second process on this machine before it begins.

        Raises:
            BusyError: Another process has the run.
        """
        path = self.store.backend.lock_path(f"{self._prefix[:-1]}.lock")
        if path is None:
            yield
            return
        with disk_errors.translate_os_errors(path.parent.parent.parent):
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


def _overtaken() -> BusyError:
    return BusyError(
        "another process went on with exactly this training",
        "wait for it, then run the same command: it reuses the result",
    )
