"""The artifacts of a project as one object: create, read, list, delete, and the look-ups that are made of them.

Everything in a project is a key of the store's backend: artifacts, the images beside them, tombstones of removed versions,
checkpoints of runs, rejected masks and cached hashes.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from objtune_cli.errors import DamagedError, IncompatibleError, MissingError
from objtune_cli.store import (
    KINDS,
    artifacts,
    finite_tensors,
    publishing,
    refs,
    regular_files,
    removal,
    safetensors_format,
)
from objtune_cli.store.artifacts import Record
from objtune_cli.store.backend import Backend, Local, TakenError
from objtune_cli.store.refs import Ref
from objtune_cli.store.safetensors_format import TensorSpec


@dataclass(frozen=True, slots=True)
class Store:
    """The artifacts of a project.

    Attributes:
        backend: The place that holds the project's bytes.
    """

    backend: Backend

    @classmethod
    def at(cls, folder: Path) -> "Store":
        """The store of a project's folder, which need not exist yet."""
        return cls(Local(folder))

    def create(
        self,
        record: Record,
        tensors: Mapping[str, Any],
        *,
        version: int = 0,
        accepts: Callable[[Record], bool] | None = None,
    ) -> Ref:
        """Publish an artifact whole under the next free version; nothing is ever overwritten.

        Of several writers each gets a version of its own. Equal content gives equal bytes.

        Args:
            tensors: Name to numpy array or CPU torch tensor.
            version: The version to take, instead of the next free one.
            accepts: Return a published version of the same work for which this is true, instead of a further one.

        Raises:
            TakenError: `version` is taken. GateError: a tensor or a metric contains NaN or infinity.
            ResourceError: The place does not take it. BusyError: others took every free version, many times.
        """
        arrays = {name: artifacts.to_array(value) for name, value in tensors.items()}
        artifacts.check_finite(record, arrays)
        if version:
            return publishing.create_version(self, record, version, arrays)
        return publishing.create_next(self, record, arrays, accepts)

    def write(self, key: str, data: bytes) -> None:
        """Write a picture or a cached file, of which the newest counts; for a moment there may be none.

        Raises:
            ResourceError: The place does not take it.
        """
        for _ in range(publishing.MAX_ATTEMPTS):
            try:
                self.backend.create(key, [data])
                return
            except TakenError:
                self.backend.delete(key)

    def read(self, ref: Ref, sha256: str = "") -> tuple[Record, dict[str, Any]]:
        """Read a record and its tensors (numpy; bf16 as uint16), checked against `sha256`, or else against the file's own digest.

        Raises:
            MissingError: There is no such version. DamagedError: the bytes are not those that were published.
        """
        record = self.read_record(ref) if sha256 else self.verify(ref)[0]
        data = self.backend.read(ref.key)
        if sha256 and hashlib.sha256(data).hexdigest() != sha256:
            raise DamagedError(
                f"{self.locate(ref)} is not the file that was recorded", "restore it, or make it again with `--force`"
            )
        return record, artifacts.decode(data, self._read_header(ref)[1])

    def read_record(self, ref: Ref) -> Record:
        """Read a record alone, without a look at the tensors' bytes.

        Raises:
            MissingError: There is no such version. DamagedError: the header is damaged.
        """
        path = self.locate(ref)
        try:
            raw = self._read_header(ref)[0]
        except FileNotFoundError:
            raise _missing(path) from None
        record = artifacts.record_from_header(raw, path)
        if record.ref != ref:
            raise DamagedError(f"{path} says it is {record.ref}", "it was moved or renamed by hand; put it back")
        return record

    def read_tensor_specs(self, ref: Ref) -> dict[str, TensorSpec]:
        """Read element type and shape of each tensor.

        Raises:
            DamagedError: The header is damaged. FileNotFoundError: there is no such version.
        """
        return {name: spec for name, (spec, _) in self._read_header(ref)[1].items()}

    def verify(self, ref: Ref) -> tuple[Record, str]:
        """Check every byte of an artifact against its own digest; return its record and SHA-256. Files of schema 1 have no digest.

        Raises:
            MissingError: There is no such version. DamagedError: the bytes are not those that were published.
        """
        path = self.locate(ref)
        try:
            sha256, is_intact = safetensors_format.check_digest(path, self._opener(ref))
        except FileNotFoundError:
            raise _missing(path) from None
        if is_intact is False:
            raise DamagedError(f"{path} is damaged: its bytes do not match its digest", safetensors_format.RESTORE_HINT)
        return self.read_record(ref), sha256

    def compute_sha256(self, ref: Ref) -> str:
        """Compute the SHA-256 of an artifact's file without checking it."""
        with self.backend.open(ref.key) as file:
            return regular_files.compute_sha256(file)

    def delete(self, ref: Ref, *, force: bool = False) -> None:
        """Replace an artifact by a tombstone, so that its version is never used again.

        Args:
            force: Delete it even where other artifacts were made from it.

        Raises:
            UsageError: Other artifacts were made from it.
        """
        removal.remove(self, [ref], force=force)

    def list_versions(self, kind: str, name: str) -> Sequence[int]:
        """List the published versions, rising."""
        return sorted(version for version, suffix in self.list_files(kind, name) if suffix == "safetensors")

    def list_names(self, kind: str) -> Sequence[str]:
        """List the names with at least one version, sorted."""
        return list(dict.fromkeys(ref.name for ref in self.list(kind)))

    def list(self, kind: str = "") -> Sequence[Ref]:
        """List all versions, of one kind or of all kinds, by kind, name and version."""
        return [
            Ref(each, folder.name, version)
            for each in ([kind] if kind else KINDS)
            for folder in self.backend.list(f"{refs.ARTIFACTS}{each}/")
            if refs.NAME_PATTERN.fullmatch(folder.name)
            for version in self.list_versions(each, folder.name)
        ]

    def resolve(self, ref: Ref) -> Ref:
        """Fill in the version of a ref; a renamed artifact is found under its new name.

        Raises:
            MissingError: No such artifact; the hint lists those that there are.
        """
        versions = self.list_versions(ref.kind, ref.name)
        if ref.version in versions or (versions and not ref.version):
            return replace(ref, version=ref.version or versions[-1])
        tombstone = self.read_tombstone(ref) if ref.version else None
        if tombstone and tombstone["moved"]:
            return self.resolve(refs.parse(tombstone["moved"]))
        listed = ", ".join(map(str, versions))
        if tombstone:
            raise MissingError(f"{ref} was removed", f"versions of {ref.name}: {listed or 'none'}")
        if versions:
            raise MissingError(f"there is no {ref}", f"versions of {ref.name}: {listed}")
        names = self.list_names(ref.kind)
        hint = (
            f"known: {', '.join(names)}" if names else f"this project has no {ref.kind} yet; `objtune list` shows all"
        )
        raise MissingError(f"there is no {ref}", hint)

    def find(self, text: str, kinds: Sequence[str] = KINDS) -> Ref:
        """Find the artifact that a text names, of one of several kinds where it names none.

        Raises:
            MissingError: No artifact, or artifacts of several kinds, have that name. IncompatibleError: another kind.
        """
        if "/" in text or len(kinds) == 1:
            ref = refs.parse(text, None if "/" in text else kinds[0])
            if ref.kind not in kinds:
                raise IncompatibleError(f"{text} is {refs.with_article(ref.kind)}", f"wanted: {', '.join(kinds)}")
            return self.resolve(ref)
        wanted = refs.parse(text, kinds[0])
        matches = [kind for kind in kinds if self.list_versions(kind, wanted.name)]
        if len(matches) > 1:
            raise MissingError(f"{text} is ambiguous", "say which: " + ", ".join(f"{kind}/{text}" for kind in matches))
        return self.resolve(replace(wanted, kind=matches[0] if matches else kinds[0]))

    def read_tombstone(self, ref: Ref) -> dict[str, str] | None:
        """Read the tombstone of a removed version: {"ref", "sha256", "moved"}; None where there is none.

        Raises:
            DamagedError: It cannot be read.
        """
        try:
            tombstone = json.loads(self.backend.read(ref.tombstone_key))
            return {field: str(tombstone[field]) for field in ("ref", "sha256", "moved")}
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, OSError):
            raise DamagedError(
                f"{self.backend.path(ref.tombstone_key)} is damaged",
                "restore it from a copy; it only says what became of a removed version",
            ) from None

    def find_identical(self, wanted: Record, accepts: Callable[[Record], bool] = lambda record: True) -> Ref | None:
        """Find the newest version that is the same work as `wanted` and that `accepts` is true of."""
        identity = wanted.identity()
        for version in reversed(self.list_versions(wanted.kind, wanted.name)):
            record = self.read_record(Ref(wanted.kind, wanted.name, version))
            if record.identity() == identity and accepts(record):
                return record.ref
        return None

    def find_bad_tensor(self, ref: Ref) -> str:
        """Find a tensor that contains NaN or infinity, which earlier versions of objtune published; its name, or ""."""
        return finite_tensors.find_bad(self.backend, ref.key, self._read_header(ref)[1])

    def require_finite(self, ref: Ref) -> None:
        """Refuse an artifact that contains NaN or infinity, from which only black images come (DamagedError)."""
        bad = self.find_bad_tensor(ref)
        if bad:
            raise DamagedError(
                f"{ref} contains NaN or infinite values, first in {bad}",
                "train it again at a lower rate, or import a file without them",
            )

    def list_images(self, ref: Ref) -> Sequence[Path]:
        """List the paths of the images beside an artifact, by name."""
        images = (entry.key for entry in self.backend.list(ref.images_key) if entry.key.endswith(".png"))
        return [self.backend.path(key) for key in images]

    def write_image(self, ref: Ref, name: str, data: bytes) -> Path:
        """Write an image beside an artifact; return its path."""
        self.write(ref.images_key + name, data)
        return self.backend.path(ref.images_key + name)

    def check_writable(self, kind: str, name: str) -> None:
        """Refuse a project in which an artifact cannot be written, before any work is done.

        Raises:
            ResourceError: Names the folder.
        """
        self.backend.check_writable(f"{refs.ARTIFACTS}{kind}/{name}/")

    def locate(self, ref: Ref) -> str:
        """Path or address of an artifact, for messages and for people."""
        return self.backend.locate(ref.key)

    def path(self, ref: Ref) -> Path:
        """Local path of an artifact, or of a copy of it."""
        return self.backend.path(ref.key)

    def list_files(self, kind: str, name: str) -> Sequence[tuple[int, str]]:
        """Version and suffix of each file in an artifact's folder."""
        names = (entry.name for entry in self.backend.list(f"{refs.ARTIFACTS}{kind}/{name}/"))
        return [parsed for parsed in map(refs.parse_file_name, names) if parsed]

    def has(self, key: str) -> bool:
        """Whether there is a file under a key."""
        try:
            self.backend.stat(key)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _opener(self, ref: Ref) -> Callable[[Path | str], Any]:
        return lambda _path: self.backend.open(ref.key)

    def _read_header(self, ref: Ref) -> tuple[dict[str, Any], dict[str, tuple[TensorSpec, int]], int]:
        return safetensors_format.read_header(self.locate(ref), self._opener(ref))


def _missing(path: str) -> MissingError:
    return MissingError(f"there is no {path}", "it was removed, or it is a link that leads nowhere")
