"""Immutable artifacts: published whole under the next free version, or not at all."""

import errno
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from objtune_cli.errors import DamagedError, GateError, MissingError
from objtune_cli.store import atomic_files, refs
from objtune_cli.store import migrations as schema
from objtune_cli.store import safetensors_format as header
from objtune_cli.store.atomic_files import flush_folder as flush_folder
from objtune_cli.store.atomic_files import translate_os_errors as translate_os_errors
from objtune_cli.store.atomic_files import write_file as write_file
from objtune_cli.store.kinds.adapter import BODY_ROLE
from objtune_cli.store.refs import Ref

IDENTITY_FIELDS = ("kind", "name", "objects", "inputs", "config", "base")
"""The parts of a record that make two artifacts the same work."""


class TakenError(Exception):
    """A version's number belongs to another artifact, or did."""


@dataclass(frozen=True, slots=True)
class Record:
    """How an artifact came to be; enough to make it again.

    Attributes:
        kind, name, version: Its ref; the version is set when it is published.
        objects: Object name to class word; one pair except for joint training and scenes.
        inputs: Role to {"ref", "sha256"} of everything that was read. A role `body.…` follows from a file's and is no part of the identity.
        config: The fully resolved settings of the stage.
        base: {"id", "fingerprint"} of the base model; empty where none was used.
        metrics: Measured numbers. tools: package to version. Neither is part of the identity.
        digest: SHA-256 of the file with these digits as zeros; set when it is published, empty in files of schema 1.
    """

    kind: str
    name: str
    objects: Mapping[str, str]
    inputs: Mapping[str, Mapping[str, str]]
    config: Mapping[str, Any]
    base: Mapping[str, str]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    version: int = 0
    digest: str = ""
    schema: int = schema.SCHEMA

    @property
    def ref(self) -> Ref:
        return Ref(self.kind, self.name, self.version)

    @property
    def class_word(self) -> str:
        return ", ".join(self.objects.values())

    def header(self) -> dict[str, Any]:
        """The record as it stands in the file."""
        return {**asdict(self), "class": self.class_word}

    def identity(self) -> str:
        """SHA-256 over what makes this the same work as another."""
        parts = {name: getattr(self, name) for name in IDENTITY_FIELDS}
        parts["inputs"] = {role: source for role, source in self.inputs.items() if not role.startswith(BODY_ROLE)}
        return hashlib.sha256(header.canonical_json(parts).encode()).hexdigest()


def read_record(root: Path, ref: Ref) -> Record:
    """The record of a published artifact, without its tensors; no torch, no numpy."""
    path = ref.path(root)
    try:
        raw, _, _ = header.read_header(path)
    except FileNotFoundError:
        raise MissingError(f"there is no {path}", "it was removed, or it is a link that leads nowhere") from None
    raw = schema.migrate(raw, path)
    known = Record.__dataclass_fields__
    try:
        record = Record(**{k: v for k, v in raw.items() if k in known})
    except TypeError as error:
        raise DamagedError(f"{path} is damaged: {error}", header.RESTORE_HINT) from None
    if not _has_valid_types(record):
        raise DamagedError(f"{path} is damaged: its record has values of the wrong type", header.RESTORE_HINT)
    if (record.kind, record.name, record.version) != (ref.kind, ref.name, ref.version):
        raise DamagedError(f"{path} says it is {record.ref}", "it was moved or renamed by hand; put it back")
    return record


def _has_valid_types(record: Record) -> bool:
    """Whether a record from a file has the types that every reader counts on."""
    tables = (record.objects, record.inputs, record.config, record.base, record.metrics, record.tools)
    if (
        type(record.version) is not int
        or type(record.digest) is not str
        or not all(isinstance(table, dict) for table in tables)
    ):
        return False
    inputs = all(
        isinstance(i, dict) and isinstance(i.get("ref"), str) and isinstance(i.get("sha256"), str)
        for i in record.inputs.values()
    )
    return inputs and all(isinstance(word, str) for word in (*record.objects.values(), *record.base.values()))


def file_sha256(path: Path) -> str:
    """Digest of a file's bytes."""
    with header.open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def verify(root: Path, ref: Ref) -> tuple[Record, str]:
    """Record and SHA-256 of an artifact, every byte checked against its own digest (files of schema 1 have none).

    Raises:
        DamagedError: The bytes are not those that were published.
    """
    path = ref.path(root)
    try:
        found, own = header.check_digest(path)
    except FileNotFoundError:
        raise MissingError(f"there is no {path}", "it was removed, or it is a link that leads nowhere") from None
    if own is False:
        raise DamagedError(f"{path} is damaged: its bytes are not those that its digest is of", header.RESTORE_HINT)
    return read_record(root, ref), found


def find_identical(root: Path, wanted: Record, serves: Callable[[Record], bool] = lambda found: True) -> Ref | None:
    """The newest published version that is the same work as `wanted`; `serves`: what else is asked of it."""
    key = wanted.identity()
    for version in reversed(refs.list_versions(root, wanted.kind, wanted.name)):
        found = read_record(root, Ref(wanted.kind, wanted.name, version))
        if found.identity() == key and serves(found):
            return found.ref
    return None


def find_bad_tensor(root: Path, ref: Ref) -> str:
    """The name of a tensor of an artifact that holds NaN or infinity, which earlier versions published; empty where none does."""
    import numpy as np

    path = ref.path(root)
    _, layout, _ = header.read_header(path)
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    for name, ((kind, shape), offset) in layout.items():
        if kind in kinds and 0 not in shape and not is_finite(kind, np.memmap(path, kinds[kind], "r", offset, shape)):
            return name
    return ""


def require_finite(root: Path, ref: Ref) -> None:
    """Refuse an artifact that holds NaN or infinity, as earlier versions imported them: whatever it draws is black.

    Raises:
        DamagedError: It does.
    """
    bad = find_bad_tensor(root, ref)
    if bad:
        raise DamagedError(
            f"{ref} holds NaN or infinite values, first in {bad}",
            "train it again at a lower rate, or import a file without them",
        )


def is_finite(kind: str, array: Any) -> bool:
    """Whether an array of an element type holds neither NaN nor infinity; BF16 as its bits."""
    import numpy as np

    if kind == "BF16":
        return not bool(((array.view(np.uint16) & 0x7F80) == 0x7F80).any())
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def check_finite(record: Record, arrays: Mapping[str, tuple[str, Any]]) -> None:
    """Refuse to publish what holds NaN or infinity, whatever let it come this far.

    Raises:
        GateError: Names the tensor or the metric.
    """
    bad = [name for name, (kind, array) in arrays.items() if not is_finite(kind, array)]
    bad += [name for name, value in record.metrics.items() if not header.is_json_value(value)]
    if bad:
        raise GateError(
            f"{record.kind} {record.name} is not published: {bad[0]} holds NaN or infinite values",
            "`--precision fp32` computes with a wider range; at fp32 the base or what was learned is at fault",
        )


def load(root: Path, ref: Ref, expected: str = "") -> tuple[Record, dict[str, Any]]:
    """Record and tensors (numpy; BF16 as uint16), checked against `expected`, or else against the file's own digest.

    Raises:
        DamagedError: The bytes are not those that were recorded.
    """
    import numpy as np

    path = ref.path(root)
    record = read_record(root, ref) if expected else verify(root, ref)[0]
    with header.open_regular(path) as file:
        data = file.read()
    if expected and hashlib.sha256(data).hexdigest() != expected:
        raise DamagedError(f"{path} is not the file that was recorded", "restore it, or make it again with `--force`")
    _, layout, _ = header.read_header(path)
    kinds = {
        "F64": "<f8",
        "F32": "<f4",
        "F16": "<f2",
        "BF16": "<u2",
        "I64": "<i8",
        "I32": "<i4",
        "U8": "u1",
        "BOOL": "?",
    }
    tensors = {
        name: np.frombuffer(
            data, kinds[spec[0]], header.size_of(spec) // header.ELEMENT_BYTES[spec[0]], offset
        ).reshape(spec[1])
        for name, (spec, offset) in layout.items()
    }
    return record, tensors


def publish(root: Path, record: Record, tensors: Mapping[str, Any], *, number: int = 0) -> Ref:
    """Write an artifact under the next free version.

    Written beside the store, flushed, then named by an operation that never overwrites, so that of several
    writers each gets a number of its own. Equal content gives equal bytes.

    Args:
        tensors: Name to numpy array or CPU torch tensor.
        number: The version to take, instead of the next free one.

    Raises:
        TakenError: `number` is taken. GateError: a tensor or a metric holds NaN or infinity.
    """
    arrays = {name: to_array(value) for name, value in tensors.items()}
    check_finite(record, arrays)
    tried = 0
    while True:
        tried = max(*refs.used_versions(root, record.kind, record.name), 0, tried) + 1
        numbered = replace(record, version=number or tried, schema=schema.SCHEMA)
        try:
            with translate_os_errors(root):
                _publish_version(root, numbered, arrays)
        except TakenError:  # by another process, since we looked
            if number:
                raise
            continue
        return numbered.ref


def _publish_version(root: Path, record: Record, arrays: Mapping[str, tuple[str, Any]]) -> None:
    """Publish under exactly the record's version.

    Raises:
        TakenError: The number is taken, or was once.
    """
    path = record.ref.path(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = encode(record, arrays)
    for place in (found := atomic_files.temp_folders(root, path.parent)):
        try:
            with atomic_files.temp_path(place) as partial:
                atomic_files.write_new(partial, parts)
                atomic_files.make_read_only(partial)
                _name_exclusively(partial, path)
                if refs.tombstone_path(
                    root, record.ref
                ).exists():  # published and removed by others since we looked for a number
                    path.unlink()
                    raise TakenError
            break
        except OSError as error:
            if error.errno != errno.EXDEV or place is found[-1]:
                raise
    flush_folder(path.parent)


def _name_exclusively(partial: Path, path: Path) -> None:
    try:
        atomic_files.name_exclusively(partial, path)
    except FileExistsError:
        raise TakenError from None


def encode(record: Record, arrays: Mapping[str, tuple[str, Any]]) -> list[Any]:
    """The bytes of an artifact: its header with the digest of all of them, then each tensor."""
    specs = {name: (kind, array.shape) for name, (kind, array) in arrays.items()}
    body = [
        memoryview(arrays[name][1].reshape(-1)).cast("B") if arrays[name][1].size else b"" for name in sorted(arrays)
    ]
    head = header.encode_header(record.header() | {"digest": header.ZERO_DIGEST}, specs)
    digest = hashlib.sha256(head)
    for part in body:
        digest.update(part)
    return [header.insert_digest(head, digest.hexdigest()), *body]


def to_array(value: Any) -> tuple[str, Any]:
    """Element type and contiguous little-endian numpy array of a tensor or array."""
    import numpy as np

    if hasattr(value, "detach"):
        value = value.detach().cpu().contiguous()
        if str(value.dtype) == "torch.bfloat16":
            import torch

            return "BF16", np.ascontiguousarray(value.view(torch.int16).numpy())
        value = value.numpy()
    value = np.asarray(value)
    value = np.require(value, value.dtype.newbyteorder("<"), "C")
    kinds = {
        "float64": "F64",
        "float32": "F32",
        "float16": "F16",
        "int64": "I64",
        "int32": "I32",
        "uint8": "U8",
        "bool": "BOOL",
        "uint16": "BF16",
    }  # numpy has no bf16: `load` gives its bits
    return kinds[value.dtype.name], value
