"""The record and tensors of an artifact, and their encoding as the bytes of a file. Touches no disk."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from objtune_cli.errors import DamagedError, GateError
from objtune_cli.store import migrations
from objtune_cli.store import safetensors_format as header
from objtune_cli.store.kinds.adapter import BODY_ROLE
from objtune_cli.store.refs import Ref

IDENTITY_FIELDS = ("kind", "name", "objects", "inputs", "config", "base")
"""The parts of a record that make two artifacts the same work."""
ARRAY_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "U8": "u1",
    "BOOL": "?",
}
"""Element type to the type of its numpy array; numpy has no bf16 and holds its bits."""
FLOAT_TYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Record:
    """How an artifact was made; enough to make it again.

    Attributes:
        kind, name, version: Its ref; the version is set when it is published.
        objects: Object name to class word; one pair except for joint training and scenes.
        inputs: Role to {"ref", "sha256"} of each input. A role `body.…` follows from a file's role and is no part of the identity.
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
    schema: int = migrations.SCHEMA

    @property
    def ref(self) -> Ref:
        return Ref(self.kind, self.name, self.version)

    @property
    def class_word(self) -> str:
        return ", ".join(self.objects.values())

    def header(self) -> dict[str, Any]:
        """The record as the file's header holds it."""
        return {**asdict(self), "class": self.class_word}

    def identity(self) -> str:
        """SHA-256 over the fields that make two artifacts the same work."""
        parts = {name: getattr(self, name) for name in IDENTITY_FIELDS}
        parts["inputs"] = {role: source for role, source in self.inputs.items() if not role.startswith(BODY_ROLE)}
        return hashlib.sha256(header.canonical_json(parts).encode()).hexdigest()


def record_from_header(raw: dict[str, Any], path: Path | str) -> Record:
    """Read the record in a header of any schema.

    Raises:
        DamagedError: Fields are missing or of the wrong type. IncompatibleError: a newer schema.
    """
    migrated = migrations.migrate(raw, path)
    try:
        record = Record(**{name: value for name, value in migrated.items() if name in Record.__dataclass_fields__})
    except TypeError as error:
        raise DamagedError(f"{path} is damaged: {error}", header.RESTORE_HINT) from None
    if not _has_valid_types(record):
        raise DamagedError(f"{path} is damaged: its record has values of the wrong type", header.RESTORE_HINT)
    return record


def _has_valid_types(record: Record) -> bool:
    """Whether a record from a file has the types that its readers rely on."""
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


def is_finite(kind: str, array: Any) -> bool:
    """Whether an array of an element type holds neither NaN nor infinity; BF16 as its bits."""
    import numpy as np

    if kind == "BF16":
        return not bool(((array.view(np.uint16) & 0x7F80) == 0x7F80).any())
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def check_finite(record: Record, arrays: Mapping[str, tuple[str, Any]]) -> None:
    """Refuse to publish tensors or metrics with NaN or infinity.

    Raises:
        GateError: Names the tensor or the metric.
    """
    bad = [name for name, (kind, array) in arrays.items() if not is_finite(kind, array)]
    bad += [name for name, value in record.metrics.items() if not header.is_json_value(value)]
    if bad:
        raise GateError(
            f"{record.kind} {record.name} is not published: {bad[0]} contains NaN or infinite values",
            "`--precision fp32` computes with a wider range; at fp32 the base or the adapter is at fault",
        )


def encode(record: Record, arrays: Mapping[str, tuple[str, Any]]) -> list[Any]:
    """Encode an artifact: its header with the digest of the whole file, then each tensor."""
    specs = {name: (kind, array.shape) for name, (kind, array) in arrays.items()}
    body = [
        memoryview(arrays[name][1].reshape(-1)).cast("B") if arrays[name][1].size else b"" for name in sorted(arrays)
    ]
    head = header.encode_header(record.header() | {"digest": header.ZERO_DIGEST}, specs)
    digest = hashlib.sha256(head)
    for part in body:
        digest.update(part)
    return [header.insert_digest(head, digest.hexdigest()), *body]


def decode(data: bytes, layout: Mapping[str, tuple[header.TensorSpec, int]]) -> dict[str, Any]:
    """Decode the tensors of a safetensors file as numpy arrays that share its memory; bf16 as its bits.

    Args:
        layout: Name to spec and offset, as `read_header` returns them.
    """
    import numpy as np

    return {
        name: np.frombuffer(data, ARRAY_TYPES[kind], math.prod(shape), offset).reshape(shape)
        for name, ((kind, shape), offset) in layout.items()
    }


def to_array(value: Any) -> tuple[str, Any]:
    """Convert a tensor or array to its element type and a contiguous little-endian numpy array."""
    import numpy as np

    if hasattr(value, "detach"):
        value = value.detach().cpu().contiguous()
        if str(value.dtype) == "torch.bfloat16":
            import torch

            return "BF16", np.ascontiguousarray(value.view(torch.int16).numpy())
        value = value.numpy()
    value = np.asarray(value)
    value = np.require(value, value.dtype.newbyteorder("<"), "C")
    element_types = {np.dtype(array_type): element for element, array_type in ARRAY_TYPES.items()}
    return element_types[value.dtype], value
