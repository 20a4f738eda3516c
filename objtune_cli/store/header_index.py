"""Lists an artifact's ref, class, base and inputs for hundreds of thousands of artifacts, with a cache of their headers.

The cache is `.objtune/index/<sha256>.ndjson.gz`: one JSON array a line, in the order of a listing. It is never the truth:
every listing asks the place which artifacts there are, and reads the headers that the cache lacks. It may be deleted at any
time, and `verify` does not use it.
"""

import contextlib
import gzip
import hashlib
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from objtune_cli.errors import MissingError, ObjtuneError
from objtune_cli.store import KINDS, refs
from objtune_cli.store.artifacts import Record
from objtune_cli.store.backend import Backend, Entry, Local
from objtune_cli.store.refs import Ref
from objtune_cli.store.store import Store

INDEX = ".objtune/index/"
"""Prefix of the files of the cache."""
SUFFIX = ".ndjson.gz"
MIN_NEW_HEADERS = 1000
"""Headers read from artifacts from which a listing adds them to the cache."""
MAX_SEGMENTS = 8
"""Files of the cache from which the next one replaces all of them."""
FIRST_PAGE, PAGE = 32, 1000
"""Artifacts that are looked up together; few at first, so that the first line comes soon."""
THREADS = 32
"""Headers that are read from object storage at a time."""


@dataclass(frozen=True, slots=True)
class ArtifactHeader:
    """What a listing shows of an artifact.

    Attributes:
        size: Bytes of its file. base: Id of its base model, or empty. inputs: Refs that it was made from.
    """

    ref: Ref
    size: int
    class_word: str
    base: str
    inputs: tuple[str, ...]

    @classmethod
    def of(cls, record: Record, size: int) -> "ArtifactHeader":
        inputs = tuple(source["ref"] for source in record.inputs.values() if source["ref"])
        return cls(record.ref, size, record.class_word, record.base.get("id", ""), inputs)

    def to_line(self) -> bytes:
        row = [self.ref.kind, self.ref.name, self.ref.version, self.size, self.class_word, self.base, self.inputs]
        return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def list_headers(store: Store, kind: str = "") -> Iterator[ArtifactHeader]:
    """List all versions, of one kind or of all kinds, as they are found: by kind, name and version.

    In a bucket, more than a page of files of one kind comes in the order of the storage.

    Raises:
        DamagedError: A header is damaged.
    """
    index = _Index(store.backend)
    entries = (each for one in ([kind] if kind else KINDS) for each in _find_artifacts(store.backend, one))
    size = FIRST_PAGE
    with ThreadPoolExecutor(THREADS) as threads:
        read_all = map if isinstance(store.backend, Local) else threads.map
        while page := list(islice(entries, size)):
            indexed = [index.find(ref, entry) for ref, entry in page]
            missing = [each for each, header in zip(page, indexed, strict=True) if header is None]
            fresh_headers = iter(read_all(partial(_read_header, store), missing))
            for header in indexed:
                header = index.keep(header) if header else index.add(next(fresh_headers))
                if header:
                    yield header
            size = PAGE
    index.save()


def _read_header(store: Store, artifact: tuple[Ref, Entry]) -> ArtifactHeader | None:
    """Read an artifact's header; None if it was removed meanwhile."""
    try:
        return ArtifactHeader.of(store.read_record(artifact[0]), artifact[1].size)
    except MissingError:
        return None


def _find_artifacts(backend: Backend, kind: str) -> Iterator[tuple[Ref, Entry]]:
    """The artifacts of a kind with their files; names are visited as they are found."""
    prefix = f"{refs.ARTIFACTS}{kind}/"
    if isinstance(backend, Local):
        for folder in backend.list(prefix):
            if refs.NAME_PATTERN.fullmatch(folder.name):
                yield from _sort_versions(kind, folder.name, list(backend.list(folder.key)))
        return
    entries = backend.list(prefix, deep=True)
    first = list(islice(entries, PAGE))
    names: dict[str, list[Entry]] = {}
    for entry in first:
        names.setdefault(entry.key[len(prefix) :].partition("/")[0], []).append(entry)
    if len(first) < PAGE:
        for name in sorted(names):
            yield from _sort_versions(kind, name, names[name])
        return
    last = list(names)[-1]
    for name in list(names)[:-1]:
        yield from _sort_versions(kind, name, names[name])
    group = names[last]
    for entry in entries:
        name = entry.key[len(prefix) :].partition("/")[0]
        if name != last:
            yield from _sort_versions(kind, last, group)
            last, group = name, []
        group.append(entry)
    yield from _sort_versions(kind, last, group)


def _sort_versions(kind: str, name: str, entries: list[Entry]) -> Iterator[tuple[Ref, Entry]]:
    """The artifacts among the files of one name, by version."""
    start = f"{refs.ARTIFACTS}{kind}/{name}/"
    versions: dict[int, Entry] = {}
    for entry in entries:
        parsed = refs.parse_file_name(entry.key[len(start) :])
        if parsed and parsed[1] == "safetensors":
            versions[parsed[0]] = entry
    if refs.NAME_PATTERN.fullmatch(name):
        yield from ((Ref(kind, name, version), versions[version]) for version in sorted(versions))


@dataclass
class _Index:
    """The cache as one listing reads it: lazily, since its lines are in the order of a listing."""

    backend: Backend
    _rows: dict[tuple[str, str, int], ArtifactHeader] = field(default_factory=dict)
    _lines: Iterator[ArtifactHeader] | None = None
    _segments: list[str] = field(default_factory=list)
    _new: list[bytes] = field(default_factory=list)
    _kept: list[bytes] = field(default_factory=list)

    def find(self, ref: Ref, entry: Entry) -> ArtifactHeader | None:
        """The header of an artifact, if the cache has it and its file still has that size."""
        if self._lines is None:
            self._segments = [each.key for each in self.backend.list(INDEX) if each.key.endswith(SUFFIX)]
            self._lines = self._read()
        key = (ref.kind, ref.name, ref.version)
        if key not in self._rows:
            for each in self._lines:
                self._rows[each.ref.kind, each.ref.name, each.ref.version] = each
                if each.ref == ref:
                    break
        header = self._rows.pop(key) if key in self._rows else None
        return header if header and header.size == entry.size else None

    def _read(self) -> Iterator[ArtifactHeader]:
        for key in self._segments:
            with contextlib.suppress(OSError, EOFError, ValueError, TypeError):  # damaged: as if it was not there
                for line in gzip.GzipFile(fileobj=io.BytesIO(self.backend.read(key))):
                    kind, name, version, size, word, base, inputs = json.loads(line)
                    yield ArtifactHeader(Ref(kind, name, version), size, word, base, tuple(inputs))

    def keep(self, header: ArtifactHeader) -> ArtifactHeader:
        """Note a header that came from the cache."""
        if len(self._segments) > MAX_SEGMENTS:
            self._kept.append(header.to_line())
        return header

    def add(self, header: ArtifactHeader | None) -> ArtifactHeader | None:
        """Note a header that was read from its artifact."""
        if header:
            self._new.append(header.to_line())
        return header

    def save(self) -> None:
        """Add the new headers to the cache if there are many; a project that cannot be written goes without."""
        if len(self._new) < MIN_NEW_HEADERS:
            return
        data = gzip.compress(b"".join([*self._kept, *self._new]), 6, mtime=0)
        with contextlib.suppress(ObjtuneError):
            self.backend.create(f"{INDEX}{hashlib.sha256(data).hexdigest()}{SUFFIX}", [data])
            for key in self._segments if len(self._segments) > MAX_SEGMENTS else ():
                self.backend.delete(key)
