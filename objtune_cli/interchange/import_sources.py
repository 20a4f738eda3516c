"""The files that `import` is given: which of a folder's are meant, what bytes that are no tensors are, the settings beside a LoRA."""

import hashlib
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
from shlex import quote
from typing import Any

from objtune_cli.errors import InputError, ResourceError
from objtune_cli.store import safetensors_format

PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
MAX_FILE = 4 << 30
MAX_HEADER = 8 << 20
MAX_CONFIG = 4 << 20
PICKLE_TIMEOUT = 120
"""A pickle's process is given so long."""
PEFT_CONFIG = "adapter_config.json"
WEIGHT_NAMES = ("adapter_model", "pytorch_lora_weights", "learned_embeds", "learned_embeds_2")
"""Files that diffusers and peft write into a folder."""
NETWORK_FOLDERS = ("unet", "transformer", "text_encoder", "text_encoder_2")
"""Folders in which peft's examples keep the LoRA of each network."""
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
class ImportFile:
    """A file, read once: what is checked is what is used.

    Attributes:
        what: How messages call it. config: the bytes of its `adapter_config.json`, b"" for none. network: whose folder it is in.
    """

    path: Path
    what: str
    data: bytes
    config: bytes = b""
    network: str = ""

    @property
    def sha256(self) -> str:
        return sha256_of(self.data)

    @property
    def body(self) -> str:
        """SHA-256 of what follows the header of a safetensors file, by which Civitai and A1111 know a LoRA; else of all of it."""
        start = 8 + _header_length(self.data) if _is_safetensors(self.data) else 0
        return sha256_of(memoryview(self.data)[start:])


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """A file's tensors and the metadata of its header."""

    file: ImportFile
    tensors: Mapping[str, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)


def sha256_of(data: bytes | memoryview) -> str:
    """SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def read_files(paths: list[Path]) -> list[ImportFile]:
    """The files of what was given, a folder's those that it stands for.

    Raises:
        InputError: One cannot be read, or a folder does not say which file is meant.
    """
    return [_read_file(*found) for path in paths for found in _resolve_path(path)]


def _resolve_path(path: Path) -> list[tuple[Path, str, str]]:
    """The files that a path stands for, how messages call them, and the networks they are of.

    Raises:
        InputError: It is no path of a file or a folder that can be read.
    """
    if re.match(r"https?:/", str(path)):
        raise InputError(f"{path} is an address, not a file", "download it, and give the file")
    try:
        if path.is_dir():
            return _resolve_folder(path)
        missing = not path.exists()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}", "give a .safetensors file that can be read"
        ) from None
    if missing:
        raise InputError(
            f"{path} cannot be read: there is no such file",
            "check the path; a LoRA or an embedding is a .safetensors file",
        )
    return [(path, path.name, "")]


def _resolve_folder(folder: Path) -> list[tuple[Path, str, str]]:
    """The files that a folder stands for, how messages call them, and the networks they are of."""
    if (folder / "model_index.json").is_file():
        raise InputError(f"{folder} is a whole model", f"give it as the base: `--base {quote(str(folder))}`")
    parts = [(folder / name, name) for name in NETWORK_FOLDERS if (folder / name / PEFT_CONFIG).is_file()]
    if parts and not (folder / PEFT_CONFIG).is_file():
        return [
            (path, f"{network}/{path.name}", network) for inner, network in parts for path in _find_weight_files(inner)
        ]
    return [(path, path.name, "") for path in _find_weight_files(folder)]


def _find_weight_files(folder: Path) -> list[Path]:
    """The files of one folder: by their names, or the only one there is."""
    endings = (".safetensors", *PICKLE_SUFFIXES)
    known = [
        next((folder / f"{name}{end}" for end in endings if (folder / f"{name}{end}").is_file()), None)
        for name in WEIGHT_NAMES
    ]
    found = [path for path in known if path]
    if found:
        return found
    others = sorted(path for path in folder.iterdir() if path.suffix.lower() in endings and path.is_file())
    kept = [path for path in others if path.suffix.lower() == ".safetensors"] or others
    if not kept:
        raise InputError(
            f"{folder} is a folder without a LoRA or an embedding",
            "give a .safetensors file, or the folder that holds it",
        )
    if len(kept) > 1:
        raise InputError(
            f"{folder} holds {len(kept)} files: {', '.join(path.name for path in kept[:3])}",
            "give the one that is meant",
        )
    return kept


def _read_file(path: Path, what: str, network: str) -> ImportFile:
    data = _read_bytes(path, MAX_FILE, "a LoRA or an embedding is far smaller; a whole model is given as `--base`")
    beside = path.parent / PEFT_CONFIG
    config = b""
    if beside.is_file() and (path.stem == WEIGHT_NAMES[0] or b"base_model.model." in data[: 8 + MAX_HEADER]):
        config = _read_bytes(beside, MAX_CONFIG, "get it again")
    return ImportFile(path, what, data, config, network)


def _read_bytes(path: Path, limit: int, hint: str) -> bytes:
    try:
        with safetensors_format.open_regular(path) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}", "give a .safetensors file") from None
    if len(data) > limit:
        raise InputError(f"{path} is larger than {limit >> 20} MB", hint)
    return data


def open_file(file: ImportFile, allow_pickle: bool) -> OpenedFile:
    """The tensors of a safetensors file, or of a pickle where that is allowed, whatever the ending of its name.

    Raises:
        InputError: It is something else, broken, or a pickle without leave.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = file.data
    if not _is_safetensors(data):
        _refuse_other_formats(file)
        if not allow_pickle:
            raise InputError(
                f"{file.what} is a pickle, a kind of file that can hold programs",
                "`--allow-pickle` reads its tensors alone, or get it as .safetensors",
            )
        data = _convert_pickle(file.what, data)
    try:
        found = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _explain_damage(file, data, str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    if not found:
        raise InputError(f"{file.what} holds no tensors", "give a LoRA or an embedding")
    if len(found) > safetensors_format.MAX_TENSORS:
        raise InputError(
            f"{file.what} holds {len(found)} tensors",
            "a LoRA or an embedding holds fewer; a whole model is given as `--base`",
        )
    return OpenedFile(file, found, read_metadata(data))


def read_metadata(data: bytes) -> dict[str, str]:
    """The metadata in the header of a safetensors file; {} of what is none."""
    if not _is_safetensors(data):
        return {}
    try:
        said = json.loads(data[8 : 8 + _header_length(data)]).get("__metadata__")
    except (ValueError, RecursionError, AttributeError):
        return {}
    return {key: value for key, value in said.items() if isinstance(value, str)} if isinstance(said, dict) else {}


def _header_length(data: bytes) -> int:
    return int.from_bytes(data[:8], "little")


def _is_safetensors(data: bytes) -> bool:
    return 2 <= _header_length(data) <= min(MAX_HEADER, max(0, len(data) - 8)) and data[8:9] == b"{"


def _explain_damage(file: ImportFile, data: bytes, said: str) -> InputError:
    """Why a safetensors file cannot be opened; one that is too short says how many bytes are missing."""
    try:
        layout = json.loads(data[8 : 8 + _header_length(data)])
        ends = [each["data_offsets"][1] for name, each in layout.items() if name != "__metadata__"]
        missing = 8 + _header_length(data) + max(ends, default=0) - len(data)
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError, IndexError):
        missing = 0
    if missing > 0:
        return InputError(
            f"{file.what} is cut off: {missing} bytes of {len(data) + missing} are missing", "download it again"
        )
    return InputError(f"{file.what} cannot be read: {said[:120]}", "get it again")


def _refuse_other_formats(file: ImportFile) -> None:
    """Say what a file is that is neither safetensors nor a pickle.

    Raises:
        InputError: Always, but for a pickle.
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
            f"{what} is a web page, not a model: the site asked for a login, or the link is of a page", LOGIN_HINT
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
        raise InputError(f"{what} is a text, not a model: {text[:80]!r}", LOGIN_HINT)
    raise InputError(f"{what} is no safetensors file, or is cut off", "download it again")


def _describe_json(what: str, data: bytes) -> tuple[str, str]:
    """What a JSON text in place of a model is, and what to do."""
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return f"{what} is a text that begins like JSON, not a model", "download it again"
    if isinstance(said, dict) and "peft_type" in said:
        return (
            f"{what} holds the settings of a LoRA, not its weights",
            "give the folder it is in, or the .safetensors file beside it",
        )
    error = (
        next((str(said[key]) for key in ("error", "message", "detail", "msg") if said.get(key)), "")
        if isinstance(said, dict)
        else ""
    )
    if error:
        return f"{what} is an error of the site it was downloaded from: {' '.join(error.split())[:80]}", LOGIN_HINT
    return f"{what} is a JSON file, not a model", "give the .safetensors file"


def _is_torch_archive(data: bytes) -> bool:
    """Whether a zip archive is one that torch writes."""
    try:
        return any(name.endswith("data.pkl") for name in zipfile.ZipFile(io.BytesIO(data)).namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return b"data.pkl" in data[:4096]  # cut off: the process that reads it says so


def _convert_pickle(name: str, data: bytes) -> bytes:
    """A pickle's tensors as the bytes of a safetensors file, made by a process of its own.

    Raises:
        InputError: It holds more than tensors, or is broken. ResourceError: it took too long.
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
            said = (done.stderr.strip().splitlines() or ["it was ended"])[-1][:120]
            raise InputError(
                f"{name} is no pickle of plain tensors: {said}",
                "get it as .safetensors, or save it as one where it was made",
            )
        return target.read_bytes()
