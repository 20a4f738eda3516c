"""Reads and writes safetensors headers, so that equal content gives equal bytes with any version of the library.

Layout: 8 bytes little-endian length, canonical JSON padded with spaces to 8 bytes, tensor bytes in
the order of their names without holes. One metadata key, `objtune`. See docs/reference/file-format.md.
"""

import errno
import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from objtune_cli.errors import DamagedError, IncompatibleError, ResourceError
from objtune_cli.store.regular_files import open_regular

METADATA_KEY = "objtune"
MAX_HEADER = 1 << 20
MAX_TENSORS = 4096
MAX_ELEMENTS = 1 << 48
RESTORE_HINT = "restore it from a copy, or make it again; nothing was deleted"
ZERO_DIGEST = "0" * 64
"""Stands for the digest while it is computed."""
ELEMENT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
"""Element types that artifacts hold, and their bytes."""

TensorSpec = tuple[str, tuple[int, ...]]
"""Element type and shape."""


def canonical_json(value: Any) -> str:
    """Encode a value as canonical JSON: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def is_json_value(value: Any) -> bool:
    """Whether JSON can hold a value: no NaN and no infinity anywhere in it."""
    try:
        canonical_json(value)
    except ValueError:
        return False
    return True


def replace_nonfinite(value: Any) -> Any:
    """Replace every NaN and infinity in a value by None, at any depth, so that any JSON reader accepts it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: replace_nonfinite(each) for key, each in value.items()}
    return [replace_nonfinite(each) for each in value] if isinstance(value, list | tuple) else value


def size_of(spec: TensorSpec) -> int:
    """Bytes of a tensor."""
    return math.prod(spec[1]) * ELEMENT_BYTES[spec[0]]


def encode_header(record: dict[str, Any], specs: dict[str, TensorSpec]) -> bytes:
    """Encode length and header of an artifact; its tensors follow in the order of their names."""
    return encode_with_metadata({METADATA_KEY: canonical_json(record)}, specs)


def encode_with_metadata(metadata: dict[str, str], specs: dict[str, TensorSpec]) -> bytes:
    """Encode length and header of any safetensors file with its metadata."""
    header: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for name in sorted(specs):
        end = start + size_of(specs[name])
        header[name] = {"dtype": specs[name][0], "shape": list(specs[name][1]), "data_offsets": [start, end]}
        start = end
    text = canonical_json(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _digest_field(digest: str) -> bytes:
    """A digest as the header holds it: JSON within a JSON text."""
    return f'\\"digest\\":\\"{digest}\\"'.encode()


def insert_digest(head: bytes, digest: str) -> bytes:
    """Replace the zeros in a header by the file's digest."""
    return head.replace(_digest_field(ZERO_DIGEST), _digest_field(digest))


def check_digest(
    path: Path | str, open_file: Callable[[Path | str], BinaryIO] | None = None
) -> tuple[str, bool | None]:
    """Compute the SHA-256 of a file, and check its digest, which is that of all its bytes with zeros for its own digits.

    Returns:
        The second is None for a file that contains no digest (schema 1).

    Raises:
        DamagedError, ResourceError, FileNotFoundError: As `read_header`.
    """
    record, _, _ = read_header(path, open_file)
    digest = str(record.get("digest") or "")
    whole, blanked = hashlib.sha256(), hashlib.sha256()
    with (open_file or open_regular)(path) as file:
        head = file.read(8)
        head += file.read(int.from_bytes(head, "little"))
        whole.update(head)
        blanked.update(head.replace(_digest_field(digest), _digest_field(ZERO_DIGEST)))
        while block := file.read(1 << 20):
            whole.update(block)
            blanked.update(block)
    return whole.hexdigest(), blanked.hexdigest() == digest if digest else None


def read_header(
    path: Path | str, open_file: Callable[[Path | str], BinaryIO] | None = None
) -> tuple[dict[str, Any], dict[str, tuple[TensorSpec, int]], int]:
    """Check and read a header with the standard library alone.

    Args:
        path: The file's name in errors.
        open_file: Opens the file; by default `open_regular`.

    Returns:
        The record, each tensor's spec with its offset in the file, and the file's size.

    Raises:
        DamagedError: Not a well-formed artifact of objtune. The file is left as it is.
        ResourceError: The system refuses to read it. FileNotFoundError: there is none.
    """
    try:
        with (open_file or open_regular)(path) as file:
            total = file.seek(0, os.SEEK_END)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER, total - 8):
                raise ValueError(f"header of {length} bytes in a file of {total}")
            text = file.read(length)
        return (*_parse_header(text, total - 8 - length, 8 + length), total)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: {error}", RESTORE_HINT) from None
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ELOOP):
            raise DamagedError(f"{path} is {error.strerror}", RESTORE_HINT) from None
        raise ResourceError(f"{path} cannot be read: {error.strerror}", "check its owner and mode") from None


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("the header has a key twice")
    return result


def _parse_json(text: str) -> dict[str, Any]:
    """Parse a JSON object, and refuse values that `canonical_json` cannot write."""
    value = _DECODER.decode(text)
    if not isinstance(value, dict):
        raise ValueError("the header is no JSON object")
    if "\\u" in text or not text.isascii():  # where half a character may hide
        canonical_json(value).encode()
    return value


def _parse_finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} in the header")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} in the header")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant, parse_float=_parse_finite
)


def _parse_header(text: bytes, body: int, start: int) -> tuple[dict[str, Any], dict[str, tuple[TensorSpec, int]]]:
    if text[:1] != b"{":
        raise ValueError("the header is no JSON object")
    header = _parse_json(text.decode())
    record = _parse_json(header.pop("__metadata__")[METADATA_KEY])
    if len(header) > MAX_TENSORS:
        raise ValueError(f"{len(header)} tensors")
    tensors, end = {}, 0
    for name, info in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        spec = (info["dtype"], tuple(info["shape"]))
        low, high = info["data_offsets"]
        if math.prod(max(side, 1) for side in spec[1] if type(side) is int) > MAX_ELEMENTS:
            raise ValueError(f"tensor {name!r} is too large")
        if spec[0] not in ELEMENT_BYTES or any(type(side) is not int or side < 0 for side in spec[1]):
            raise ValueError(f"tensor {name!r} has no valid type or shape")
        if type(low) is not int or type(high) is not int or low != end or high - low != size_of(spec):
            raise ValueError(f"tensor {name!r} does not lie where it should")
        tensors[name] = (spec, start + low)
        end = high
    if end != body:
        raise ValueError(f"{body} bytes of tensors where the header says {end}")
    return record, tensors


def check_schema(record: dict[str, Any], supported: int, path: Path | str) -> None:
    """Refuse records that a later objtune wrote.

    Raises:
        IncompatibleError: A newer schema. DamagedError: no schema at all.
    """
    schema = record.get("schema")
    if type(schema) is not int:
        raise DamagedError(f"{path} is damaged: it has no schema number", RESTORE_HINT)
    if schema > supported:
        raise IncompatibleError(
            f"{path} has schema {schema}; this objtune reads up to {supported}", "update it: `pip install -U objtune`"
        )
