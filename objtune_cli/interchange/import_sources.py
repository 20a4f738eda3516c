"""Finds and reads the files that `import` receives: single files, folders, and the settings next to a LoRA."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from objtune_cli.errors import InputError
from objtune_cli.store import regular_files

PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
MAX_FILE = 4 << 30
MAX_HEADER = 8 << 20
MAX_CONFIG = 4 << 20
PEFT_CONFIG = "adapter_config.json"
WEIGHT_NAMES = ("adapter_model", "pytorch_lora_weights", "learned_embeds", "learned_embeds_2")
"""Stems of the files that diffusers and peft write into a folder."""
NETWORK_FOLDERS = ("unet", "transformer", "text_encoder", "text_encoder_2")
"""Subfolders in which peft's examples store the LoRA of each network."""


@dataclass(frozen=True, slots=True)
class ImportFile:
    """A file that is read into memory once, so that the checked bytes are the used ones.

    Attributes:
        what: Its name in messages. config: Bytes of its `adapter_config.json`, b"" for none. network: Name of its network folder, "" for none.
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
        """SHA-256 of the bytes after the header of a safetensors file, as Civitai and A1111 compute it; of all bytes for others."""
        start = 8 + header_length(self.data) if is_safetensors(self.data) else 0
        return sha256_of(memoryview(self.data)[start:])


def sha256_of(data: bytes | memoryview) -> str:
    """SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def read_files(paths: list[Path]) -> list[ImportFile]:
    """Read files; a folder stands for the weight files in it.

    Raises:
        InputError: A file is unreadable, or a folder has several candidates.
    """
    return [_read_file(*resolved) for path in paths for resolved in _resolve_path(path)]


def _resolve_path(path: Path) -> list[tuple[Path, str, str]]:
    """Files that a path stands for, each with its name in messages and its network.

    Raises:
        InputError: The path is an address, is missing or is unreadable.
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
    """Weight files of a folder, each with its name in messages and its network."""
    if (folder / "model_index.json").is_file():
        raise InputError(f"{folder} is a whole model", f"give it as the base: `--base {quote(str(folder))}`")
    parts = [(folder / name, name) for name in NETWORK_FOLDERS if (folder / name / PEFT_CONFIG).is_file()]
    if parts and not (folder / PEFT_CONFIG).is_file():
        return [
            (path, f"{network}/{path.name}", network) for inner, network in parts for path in _find_weight_files(inner)
        ]
    return [(path, path.name, "") for path in _find_weight_files(folder)]


def _find_weight_files(folder: Path) -> list[Path]:
    """Weight files of one folder: those with known names, else the only one there is."""
    endings = (".safetensors", *PICKLE_SUFFIXES)
    by_name = [
        next((folder / f"{name}{end}" for end in endings if (folder / f"{name}{end}").is_file()), None)
        for name in WEIGHT_NAMES
    ]
    matching = [path for path in by_name if path]
    if matching:
        return matching
    others = sorted(path for path in folder.iterdir() if path.suffix.lower() in endings and path.is_file())
    candidates = [path for path in others if path.suffix.lower() == ".safetensors"] or others
    if not candidates:
        raise InputError(
            f"{folder} is a folder without a LoRA or an embedding",
            "give a .safetensors file, or the folder that contains it",
        )
    if len(candidates) > 1:
        raise InputError(
            f"{folder} contains {len(candidates)} files: {', '.join(path.name for path in candidates[:3])}",
            "give one of them",
        )
    return candidates


def _read_file(path: Path, what: str, network: str) -> ImportFile:
    data = _read_bytes(path, MAX_FILE, "a LoRA or an embedding is far smaller; a whole model is given as `--base`")
    config_path = path.parent / PEFT_CONFIG
    config = b""
    if config_path.is_file() and (path.stem == WEIGHT_NAMES[0] or b"base_model.model." in data[: 8 + MAX_HEADER]):
        config = _read_bytes(config_path, MAX_CONFIG, "get it again")
    return ImportFile(path, what, data, config, network)


def _read_bytes(path: Path, limit: int, hint: str) -> bytes:
    try:
        with regular_files.open_regular(path) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}", "give a .safetensors file") from None
    if len(data) > limit:
        raise InputError(f"{path} is larger than {limit >> 20} MB", hint)
    return data


def header_length(data: bytes) -> int:
    return int.from_bytes(data[:8], "little")


def is_safetensors(data: bytes) -> bool:
    return 2 <= header_length(data) <= min(MAX_HEADER, max(0, len(data) - 8)) and data[8:9] == b"{"
