"""The bytes of exported files, and whether a file that is already there is an earlier export of the same adapter."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from objtune_cli.errors import ObjtuneError
from objtune_cli.interchange import kohya_metadata, lora_keys
from objtune_cli.interchange.number_formats import DTYPES, convert
from objtune_cli.lora import file_names
from objtune_cli.models.families import Family
from objtune_cli.store import artifacts, safetensors_format
from objtune_cli.store.artifacts import Record
from objtune_cli.store.kinds import adapter
from objtune_cli.store.refs import Ref
from objtune_cli.store.store import Store

PLAIN_METADATA = {"format": "pt"}
"""Metadata of files without any of their own."""


@dataclass(frozen=True, slots=True)
class AdapterExport:
    """An adapter to export.

    Attributes:
        tensors: In the number format of the files.
        words: Object to trigger word.
    """

    record: Record
    tensors: Mapping[str, Any]
    family: Family
    words: Mapping[str, str]

    def encode(self, kind: str) -> bytes:
        """Encode one file; `kind` is "diffusers", "kohya", "bundle", or the name of an object for its embedding."""
        record, tensors, family, words = self.record, self.tensors, self.family, self.words
        if kind == "diffusers":
            return _encode_file(lora_keys.to_diffusers(tensors, family), PLAIN_METADATA)
        if kind not in ("kohya", "bundle"):
            return _encode_file(_embedding_tensors(tensors, kind, family, f"<{kind}>"), PLAIN_METADATA)
        renamed = lora_keys.to_kohya(tensors, family)
        if kind == "bundle":
            words = {name: word.replace(".", "_") for name, word in words.items()}  # a dot ends the word
            renamed |= {
                f"bundle_emb.{words[name]}.{key}": vectors
                for name in record.objects
                for key, vectors in _embedding_tensors(tensors, name, family, "string_to_param.*").items()
            }
        metadata = kohya_metadata.describe_file(record, tensors, family, words, is_bundle=kind == "bundle")
        return _encode_file(renamed, metadata)

    def is_earlier_export(self, store: Store, kind: str, content: bytes) -> bool:
        """Whether a file is an unchanged export of some version of this adapter."""
        check = self._has_signature if kind in ("kohya", "bundle") else self._is_reproducible
        return check(store, kind, content)

    def _has_signature(self, store: Store, kind: str, content: bytes) -> bool:
        """Whether a file's metadata names a version of this adapter, and its tensors match the stored hash."""
        try:
            length = int.from_bytes(content[:8], "little")
            metadata = json.loads(content[8 : 8 + length])["__metadata__"]
            digest = json.loads(metadata["objtune"])["digest"]
            is_whole = metadata["sshs_model_hash"] == hashlib.sha256(content[8 + length :]).hexdigest()
        except (ValueError, KeyError, TypeError):
            return False
        return bool(digest) and is_whole and digest in [version.digest for version in self._read_versions(store)]

    def _is_reproducible(self, store: Store, kind: str, content: bytes) -> bool:
        """Whether a file without metadata equals the export of some version of this adapter in some number format."""
        for record in self._read_versions(store):
            tensors = store.read(record.ref)[1]
            for dtype in DTYPES:
                with contextlib.suppress(ObjtuneError, KeyError):
                    export = AdapterExport(record, convert(record.ref, tensors, dtype), self.family, self.words)
                    if export.encode(kind) == content:
                        return True
        return False

    def _read_versions(self, store: Store) -> Iterator[Record]:
        """Records of all readable versions of this adapter, newest first."""
        for version in reversed(store.list_versions("adapter", self.record.name)):
            with contextlib.suppress(ObjtuneError):
                yield store.read_record(Ref("adapter", self.record.name, version))


def body_hash(tensors: Mapping[str, Any]) -> str:
    """SHA-256 of the bytes after the header of the encoded file, kohya's `sshs_model_hash`."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(artifacts.to_array(tensors[name])[1].tobytes())
    return digest.hexdigest()


def embedding_hash(tensors: Mapping[str, Any], name: str, family: Family) -> str:
    """SHA-256 of the file that the format `embedding` writes for an object."""
    encoded = _encode_file(_embedding_tensors(tensors, name, family, f"<{name}>"), PLAIN_METADATA)
    return hashlib.sha256(encoded).hexdigest()


def _embedding_tensors(tensors: Mapping[str, Any], name: str, family: Family, only: str) -> dict[str, Any]:
    """A token's vectors under the keys of an embedding file; `only` is the key where there is one text encoder."""
    keys = file_names.of_family(family).embedding_keys or (only,)
    return {key: tensors[own] for key, own in zip(keys, adapter.token_names(name), strict=False)}


def _encode_file(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """Encode a safetensors file with sorted keys; ModelSpec metadata gets the hash of the bytes after the header."""
    arrays = {name: artifacts.to_array(value) for name, value in tensors.items()}
    specs = {name: (element, array.shape) for name, (element, array) in arrays.items()}
    body = b"".join(arrays[name][1].tobytes() for name in sorted(arrays))
    hashes = {}
    if "modelspec.sai_model_spec" in metadata:
        digest = body_hash(tensors)
        hashes = {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}
    return safetensors_format.encode_with_metadata({**metadata, **hashes}, specs) + body
