"""Bytes under keys in object storage: Amazon S3 and what speaks its protocol, Google Cloud Storage, and Azure Blob Storage.

The client is obstore (extra `cloud`), a binding of the Rust crate object_store. It reads credentials and endpoints from the
environment or from the machine's role; nothing here stores or prints them. Only `create` is conditional: it sends
`If-None-Match: *` (S3, Azure) or `x-goog-if-generation-match: 0` (GCS).
"""

import atexit
import contextlib
import functools
import io
import os
import random
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from objtune_cli.errors import ObjtuneError, ResourceError
from objtune_cli.store import storage_client
from objtune_cli.store.backend import CHECKS, Entry, TakenError

HEAD_BYTES = 1 << 16
"""Bytes of a first read, which hold the header of most artifacts."""
BUFFER_BYTES = 8 << 20
PAGE = 1000
"""Keys in a page of a listing."""
CHECK_ATTEMPTS = 4
"""Attempts of the self-check while the storage gives no clear answer."""
CREATE_SECONDS = 180.0
"""Time after which a `create` that gets no answer gives up, seconds."""
_checked: set[str] = set()
_lock = threading.Lock()


class Remote:
    """A project below a prefix of a bucket.

    Attributes:
        address: `s3://bucket/prefix`, without a slash at its end.
    """

    def __init__(self, address: str) -> None:
        self.address = storage_client.clean_address(address)
        self._store = storage_client.open_store(self.address)

    @functools.cached_property
    def folder(self) -> Path:
        """A folder of this process for copies of files that must have a local path; deleted when the process ends."""
        base = tempfile.mkdtemp(prefix="objtune-")
        atexit.register(shutil.rmtree, base, ignore_errors=True)
        return Path(base) / "project"

    def create(self, key: str, parts: Sequence[Any]) -> None:
        """Put an object unless there is one; after any failure, the bytes that lie there decide.

        Raises:
            TakenError: Other bytes have the key. ResourceError: the storage refuses, or does not answer.
        """
        import obstore
        from obstore.exceptions import BaseError

        self._check_once()
        body = b"".join(parts)
        until, pause = time.monotonic() + CREATE_SECONDS, 0.05
        while True:
            try:
                obstore.put(self._store, key, body, mode="create")
                return
            except (BaseError, OSError) as error:
                if storage_client.is_refused(error):
                    raise self._failure(error, "written", key) from None
                has_same_bytes = self._has_bytes(key, body)
                if has_same_bytes:
                    return
                if has_same_bytes is not None:
                    raise TakenError(key) from None
                if time.monotonic() > until:
                    raise self._failure(error, "written", key) from None
            time.sleep(random.random() * pause)
            pause = min(2 * pause, 5.0)

    def _has_bytes(self, key: str, body: bytes) -> bool | None:
        """Whether an object has these bytes; None if there is none."""
        try:
            return self.stat(key).size == len(body) and self.read(key) == body
        except FileNotFoundError:
            return None

    def read(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        """Read a part of an object, or all of it."""
        if size is None and not start:
            import obstore

            with self._translated("read", key):
                return bytes(obstore.get(self._store, key).bytes())
        with self.open(key) as file:
            file.seek(start)
            return file.read(-1 if size is None else size)

    def open(self, key: str) -> BinaryIO:
        """Open an object; its first bytes are fetched now, later ones in large parts."""
        return io.BufferedReader(_RemoteFile(self, key), BUFFER_BYTES)

    def get(self, key: str, start: int, stop: int) -> tuple[bytes, int]:
        """Read the bytes from `start` up to `stop` that there are, and the object's size."""
        import obstore
        from obstore.exceptions import BaseError

        with self._translated("read", key):
            try:
                answer = obstore.get(self._store, key, options={"range": (start, stop)})
                return bytes(answer.bytes()), int(answer.meta["size"])
            except BaseError as error:
                if "416" not in str(error) and start:
                    raise
            answer = obstore.get(self._store, key)  # an empty object has no range
            return bytes(answer.bytes()), int(answer.meta["size"])

    def stat(self, key: str) -> Entry:
        """Return size and time of an object."""
        import obstore

        with self._translated("read", key):
            meta = obstore.head(self._store, key)
            return Entry(key, meta["size"], meta["last_modified"].timestamp())

    def list(self, prefix: str, *, deep: bool = False) -> Iterator[Entry]:
        """List objects: a deep listing page by page in the storage's order, a shallow one by name."""
        import obstore

        with self._translated("listed", prefix):
            if deep:
                for page in obstore.list(self._store, prefix or None, chunk_size=PAGE):
                    yield from (_entry(each) for each in page)
                return
            listing = obstore.list_with_delimiter(self._store, prefix or None)
            folders = [Entry(f"{each}/") for each in listing["common_prefixes"]]
            yield from sorted([*folders, *map(_entry, listing["objects"])], key=lambda entry: entry.name)

    def delete(self, key: str) -> None:
        """Delete an object, or all objects below a key that ends with `/`."""
        import obstore

        keys = [entry.key for entry in self.list(key, deep=True)] if key.endswith("/") else [key]
        with self._translated("deleted", key):
            for start in range(0, len(keys), PAGE):
                with contextlib.suppress(FileNotFoundError):
                    obstore.delete(self._store, keys[start : start + PAGE])

    def now(self) -> float:
        """Return the time by the storage's clock."""
        key = f"{CHECKS}{uuid.uuid4().hex}"
        self.create(key, [b"clock"])
        try:
            return self.stat(key).modified
        finally:
            self.delete(key)

    def locate(self, key: str) -> str:
        """Return the address of an object."""
        return f"{self.address}/{key}"

    def locate_path(self, path: Path) -> Path | str:
        """Return the address of an object for the path of its copy; any other path as it is."""
        return self.locate(path.relative_to(self.folder).as_posix()) if path.is_relative_to(self.folder) else path

    def path(self, key: str) -> Path:
        """Return the path of a copy that is made now; without an object there is none."""
        path = self.folder / key
        try:
            data = self.read(key)
        except FileNotFoundError:
            path.unlink(missing_ok=True)
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def lock_path(self, key: str) -> None:
        """There are no locks."""

    def check_writable(self, prefix: str) -> None:
        """Refuse a bucket that is not there, cannot be written, or would overwrite objects."""
        self._check_once()

    def find_orphaned(self) -> Sequence[Entry]:
        """Find nothing: an object appears whole, and is sent in one request."""
        return []

    def _check_once(self) -> None:
        """Check once in a process, before its first object, that the storage refuses to overwrite.

        Raises:
            ResourceError: It does not, or cannot be written at all.
        """
        from obstore.exceptions import BaseError

        with _lock:
            if self.address in _checked:
                return
            key = f"{CHECKS}{uuid.uuid4().hex}"
            for left in reversed(range(CHECK_ATTEMPTS)):
                try:
                    is_refused = self._refuses_to_overwrite(key)
                    break
                except (BaseError, OSError) as error:
                    if not left or storage_client.is_refused(error):
                        raise self._failure(error, "written", "") from None
            if not is_refused:
                raise ResourceError(
                    f"{self.address} overwrites objects although it is asked not to (If-None-Match)",
                    "two writers would lose work: use a storage with conditional writes, such as S3, GCS, Azure, R2, or a folder",
                )
            _checked.add(self.address)

    def _refuses_to_overwrite(self, key: str) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError

        obstore.put(self._store, key, b"first")
        try:
            obstore.put(self._store, key, b"second", mode="create")
            return False
        except AlreadyExistsError:
            return bytes(obstore.get(self._store, key).bytes()) == b"first"
        except BaseError as error:
            if storage_client.read_code(error) in ("501 Not Implemented", "NotImplemented", "NotSupported"):
                return False
            raise
        finally:
            with contextlib.suppress(BaseError, OSError):
                obstore.delete(self._store, [key])

    @contextlib.contextmanager
    def _translated(self, verb: str, key: str) -> Iterator[None]:
        """Raise errors of the client as one line with its remedy; a missing object stays FileNotFoundError."""
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError as error:
            if storage_client.read_code(error) == "NoSuchBucket":
                raise self._failure(error, verb, key) from None
            raise FileNotFoundError(self.locate(key)) from None
        except (BaseError, OSError) as error:
            raise self._failure(error, verb, key) from None

    def _failure(self, error: BaseException, verb: str, key: str) -> ObjtuneError:
        """One line for an error of the client, whose own text may hold parts of credentials."""
        code = storage_client.read_code(error)
        where = self.locate(key).rstrip("/")
        if code == "NoSuchBucket" or "404" in code:
            hint = "create the bucket, or check its name in `--project`"
        elif storage_client.is_refused(error):
            hint = "check the credentials in the environment, and that they may read, write, list and delete there"
        else:
            hint = "check the connection and the endpoint, then run the same command: it goes on where it stopped"
        return ResourceError(f"{where} cannot be {verb}: {code}", hint)


@functools.cache
def open_remote(address: str) -> Remote:
    """The bucket of an address; one object in a process, with one folder of copies.

    Raises:
        UsageError: The address is none. ResourceError: obstore is not installed, or lacks a setting.
    """
    return Remote(address)


class _RemoteFile(io.RawIOBase):
    """An object as a file that can be read at any place."""

    def __init__(self, remote: Remote, key: str) -> None:
        self._remote, self._key, self._position = remote, key, 0
        self._head, self._size = remote.get(key, 0, HEAD_BYTES)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        start = self._position
        stop = min(start + len(buffer), self._size)
        if start >= stop:
            return 0
        data = self._head[start:stop] or self._remote.get(self._key, start, stop)[0]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _entry(meta: Any) -> Entry:
    return Entry(meta["path"], meta["size"], meta["last_modified"].timestamp())
