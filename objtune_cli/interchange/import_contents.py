"""Opens an imported file: tensors of safetensors files and pickles; every other format is refused by name."""

import io
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from objtune_cli.errors import InputError, ResourceError
from objtune_cli.interchange.import_sources import MAX_CONFIG, ImportFile, header_length, is_safetensors
from objtune_cli.store import safetensors_format

PICKLE_TIMEOUT = 120
"""Time limit of the process that reads a pickle, seconds."""
LOGIN_HINT = "open the link in a browser, log in, and download it there; a command line needs the site's token"
ARCHIVE_MAGIC = (
    (b"PK\x03\x04", "zip"),
    (b"\x1f\x8b", "gzip"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!", "rar"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
)
IMAGE_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8")


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """Tensors of a file and the metadata of its header."""

    file: ImportFile
    tensors: Mapping[str, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)


def open_file(file: ImportFile, allow_pickle: bool) -> OpenedFile:
    """Read the tensors of a safetensors file, or of a pickle if that is allowed; the suffix is ignored.

    Raises:
        InputError: The file has another format, is damaged, or is a pickle that is not allowed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = file.data
    if not is_safetensors(data):
        _refuse_other_formats(file)
        if not allow_pickle:
            raise InputError(
                f"{file.what} is a pickle, which can run code when it is loaded",
                "`--allow-pickle` reads only its tensors; or get it as .safetensors",
            )
        data = _convert_pickle(file.what, data)
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _explain_damage(file, data, str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    if not tensors:
        raise InputError(f"{file.what} contains no tensors", "give a LoRA or an embedding")
    if len(tensors) > safetensors_format.MAX_TENSORS:
        raise InputError(
            f"{file.what} contains {len(tensors)} tensors",
            "a LoRA or an embedding has fewer; a whole model is given as `--base`",
        )
    return OpenedFile(file, tensors, read_metadata(data))


def read_metadata(data: bytes) -> dict[str, str]:
    """Metadata in the header of a safetensors file; {} for other files."""
    if not is_safetensors(data):
        return {}
    try:
        parsed = json.loads(data[8 : 8 + header_length(data)]).get("__metadata__")
    except (ValueError, RecursionError, AttributeError):
        return {}
    return {key: value for key, value in parsed.items() if isinstance(value, str)} if isinstance(parsed, dict) else {}


def _explain_damage(file: ImportFile, data: bytes, reason: str) -> InputError:
    """Why a safetensors file cannot be opened, with the number of missing bytes if it is cut off."""
    try:
        layout = json.loads(data[8 : 8 + header_length(data)])
        ends = [each["data_offsets"][1] for name, each in layout.items() if name != "__metadata__"]
        missing = 8 + header_length(data) + max(ends, default=0) - len(data)
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError, IndexError):
        missing = 0
    if missing > 0:
        return InputError(
            f"{file.what} is cut off: {missing} bytes of {len(data) + missing} are missing", "download it again"
        )
    return InputError(f"{file.what} cannot be read: {reason[:120]}", "get it again")


def _refuse_other_formats(file: ImportFile) -> None:
    """Refuse a file that is neither safetensors nor a pickle, and name its format.

    Raises:
        InputError: The file is no pickle.
    """
    what, data = file.what, file.data
    start = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    if not data.strip(b"\0 \t\r\n"):
        raise InputError(f"{what} is empty", "download it again")
    if start.startswith(b"version https://git-lfs"):
        raise InputError(
            f"{what} is a git-lfs pointer, not the file itself",
            "run `git lfs pull` where it was cloned, or download it from the site",
        )
    if re.match(rb"<(?:!doctype|html|head|body|\?xml)", start, re.I):
        raise InputError(
            f"{what} is a web page, not a model: the site requires a login, or the link leads to a page", LOGIN_HINT
        )
    if start[:1] in (b"{", b"["):
        raise InputError(*_describe_json(what, data))
    kind = next(
        (kind for mark, kind in ARCHIVE_MAGIC if data.startswith(mark)), "tar" if data[257:262] == b"ustar" else ""
    )
    if kind == "zip" and _is_torch_archive(data):
        return
    if kind:
        raise InputError(f"{what} is a {kind} archive", "unpack it, and give the file inside")
    if data.startswith(IMAGE_MAGIC):
        raise InputError(
            f"{what} is a picture", "give a LoRA or an embedding as .safetensors; embeddings in pictures are not read"
        )
    if data.startswith(b"GGUF"):
        raise InputError(f"{what} is a GGUF file", "give a LoRA or an embedding as .safetensors")
    if data[:1] == b"\x80" and data[1:2] in b"\x02\x03\x04\x05":
        return
    try:
        text = " ".join(data[:400].decode().split())
    except UnicodeDecodeError as error:
        text = " ".join(data[: error.start].decode().split()) if error.start > 390 else ""
    if text and text.isprintable() and len(data) < MAX_CONFIG:
        raise InputError(f"{what} is text, not a model: {text[:80]!r}", LOGIN_HINT)
    raise InputError(f"{what} is not a safetensors file, or is cut off", "download it again")


def _describe_json(what: str, data: bytes) -> tuple[str, str]:
    """Name the content of a JSON file and give a hint."""
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError):
        return f"{what} is text that begins like JSON, not a model", "download it again"
    if isinstance(parsed, dict) and "peft_type" in parsed:
        return (
            f"{what} contains the settings of a LoRA, not its weights",
            "give the folder it is in, or the .safetensors file beside it",
        )
    error = (
        next((str(parsed[key]) for key in ("error", "message", "detail", "msg") if parsed.get(key)), "")
        if isinstance(parsed, dict)
        else ""
    )
    if error:
        return f"{what} is an error of the site it was downloaded from: {' '.join(error.split())[:80]}", LOGIN_HINT
    return f"{what} is a JSON file, not a model", "give the .safetensors file"


def _is_torch_archive(data: bytes) -> bool:
    """Whether a zip archive was written by `torch.save`."""
    try:
        return any(name.endswith("data.pkl") for name in zipfile.ZipFile(io.BytesIO(data)).namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return b"data.pkl" in data[:4096]  # cut off; the sandbox reports it


def _convert_pickle(name: str, data: bytes) -> bytes:
    """Convert a pickle to the bytes of a safetensors file in a separate process.

    Raises:
        InputError: The pickle has more than tensors, or is damaged. ResourceError: The process took too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in"), Path(folder, "out")
        source.write_bytes(data)
        command = [sys.executable, "-P", "-m", "objtune_cli.interchange.pickle_sandbox", str(source), str(target)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PICKLE_TIMEOUT, check=False)
        except subprocess.TimeoutExpired:
            raise ResourceError(
                f"{name} took longer than {PICKLE_TIMEOUT} s to read", "get it as .safetensors"
            ) from None
        if done.returncode or not target.exists():
            last_line = (done.stderr.strip().splitlines() or ["it was ended"])[-1][:120]
            raise InputError(
                f"{name} is not a pickle of plain tensors: {last_line}",
                "get it as .safetensors, or save it as one where it was made",
            )
        return target.read_bytes()
