"""Photos from web addresses and stdin; their bytes are stored in the project under their digest."""

import hashlib
import re
import sys
from pathlib import Path

from objtune_cli.errors import InputError, ResourceError
from objtune_cli.images import photo
from objtune_cli.store.garbage import PHOTOS
from objtune_cli.store.project import Project
from objtune_cli.version import __version__

STDIN = "-"
MAX_BYTES = 256 << 20
TIMEOUT = 30.0
"""Timeout of web servers, seconds."""
_ADDRESS = re.compile(r"https?://", re.I)


def is_address(text: str) -> bool:
    """Whether a text is a web address."""
    return _ADDRESS.match(text.strip("\"' ")) is not None


def save_photo(project: Project, text: str) -> Path:
    """Store the photo of a web address or of `-` (stdin) in the project's `.objtune/photos`, and return the file.

    Equal bytes have one file.

    Raises:
        InputError: It is no photo, too large, empty, or not on the server. ResourceError: The server does not answer.
    """
    data = _download(text.strip("\"' ")) if is_address(text) else _read_stdin()
    if not data:
        raise InputError(f"{_name(text)} is empty", "give a photo")
    key = f"{PHOTOS}{hashlib.sha256(data).hexdigest()[:16]}{_suffix(text)}"
    project.store.write(key, data)
    path = project.store.backend.path(key)
    try:
        photo.read_header(path)
    except InputError as error:  # it names a file that the user has never seen
        project.store.backend.delete(key)
        raise InputError(error.message.replace(str(path), _name(text)), error.hint) from None
    return path


def _name(text: str) -> str:
    return "stdin" if text == STDIN else text


def _suffix(text: str) -> str:
    """The suffix of the file name in an address."""
    match = re.search(r"\.[a-z0-9]{1,5}$", text.partition("?")[0].partition("#")[0].lower())
    return match[0] if match and is_address(text) else ""


def _read_stdin() -> bytes:
    if sys.stdin.isatty():
        raise InputError("stdin has no photo", "for example `curl -s https://… | objtune segment - --class dog`")
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    _check_size("stdin", len(data))
    return data


def _check_size(name: str, size: int) -> None:
    if size > MAX_BYTES:
        raise InputError(f"{name} has more than {MAX_BYTES >> 20} MiB", f"at most {MAX_BYTES >> 20} MiB are read")


def _download(address: str) -> bytes:
    import urllib.error
    import urllib.request

    request = urllib.request.Request(address, headers={"User-Agent": f"objtune/{__version__}"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            data: bytes = answer.read(MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        raise InputError(
            f"{address} returned {error.code} {error.reason}",
            "open it in a browser; a picture behind a login needs to be saved first",
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ResourceError(
            f"{address} cannot be downloaded: {reason}",
            "check the address and the connection, or save the picture and give the file",
        ) from None
    _check_size(address, len(data))
    return data
