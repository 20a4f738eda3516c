"""The artifacts of a project as one object: create, read, list, delete.

Everything above the store needs only these four and what follows from them. Artifacts lie on a local disk; the functions
of `artifacts`, `refs` and `removal` do the work and take the folder as their first argument.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from objtune_cli.store import artifacts, refs, removal
from objtune_cli.store.artifacts import Record
from objtune_cli.store.refs import Ref


@dataclass(frozen=True, slots=True)
class Store:
    """The artifacts below a folder.

    Attributes:
        root: The folder `artifacts` of a project.
    """

    root: Path

    def create(self, record: Record, tensors: Mapping[str, Any]) -> Ref:
        """Publish an artifact whole under the next free version; nothing is ever overwritten.

        Raises:
            GateError: A tensor or a metric holds NaN or infinity. ResourceError: the disk does not take it.
        """
        return artifacts.publish(self.root, record, tensors)

    def read(self, ref: Ref, sha256: str = "") -> tuple[Record, dict[str, Any]]:
        """Read a record and its tensors (numpy), checked against `sha256`, or else against the file's own digest.

        Raises:
            MissingError: There is no such version. DamagedError: the bytes are not those that were published.
        """
        return artifacts.load(self.root, ref, sha256)

    def read_record(self, ref: Ref) -> Record:
        """Read a record alone, without a look at the tensors' bytes.

        Raises:
            MissingError: There is no such version. DamagedError: the header is damaged.
        """
        return artifacts.read_record(self.root, ref)

    def list(self, kind: str = "") -> Sequence[Ref]:
        """List all versions, of one kind or of all kinds, by kind, name and version."""
        return refs.list_refs(self.root, kind or None)

    def delete(self, ref: Ref, *, force: bool = False) -> None:
        """Replace an artifact by a tombstone, so that its version is never used again.

        Args:
            force: Delete it even where other artifacts were made from it.

        Raises:
            UsageError: Other artifacts were made from it.
        """
        removal.remove(self.root, [ref], force=force)
