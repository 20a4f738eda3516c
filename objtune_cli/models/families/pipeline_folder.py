"""A base as a diffusers folder: the weight files of each component, and checks that all are present, complete and supported.

Only configs and headers are read, so that an unusable base is refused before anything is loaded.
"""

import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli.errors import DamagedError, IncompatibleError, MissingError
from objtune_cli.models.families import model_kind

if TYPE_CHECKING:
    from objtune_cli.models.families.family import Family

AGAIN = "download the model again"
VARIANTS = ("fp32", "bf16", "fp16", "non_ema")
"""Variants of weights that are used if the plain files are missing, best first; all other names come after these."""
WORD_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))
"""Sets of tokenizer files, of which one must be complete; without any, the libraries build a tokenizer without words."""
POINTER = b"version https://git-lfs"
MAX_HEADER = 100_000_000
"""Maximum size of a header, bytes, as in the safetensors library."""
SCALED = (".scale_weight", ".weight_scale", "scaled_fp8", ".comfy_quant", ".absmax")
"""Suffixes of the keys of scales, without which quantised weights have no meaning."""
INTEGERS = ("I8", "U8")
"""Number formats that only quantised weights have."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The weight files of a component.

    Attributes:
        variant: The variant in their names, such as fp16; empty for plain files.
    """

    variant: str
    files: tuple[Path, ...]


def find_weights(folder: Path, part: str) -> Weights:
    """Find the safetensors files of a component: the plain files, else those of a variant.

    Raises:
        MissingError: No files, or not all files of an index. IncompatibleError: Only pickles. DamagedError: Unreadable index.
    """
    stem = "model" if part.startswith(("text_encoder", "clip")) else "diffusion_pytorch_model"
    names = sorted(path.name for path in (folder / part).iterdir()) if (folder / part).is_dir() else []
    variants = {
        match[1]
        for name in names
        if (match := re.fullmatch(rf"{stem}\.(\w+)\.safetensors|{stem}\.safetensors\.index\.(\w+)\.json", name))
        and match[1]
    }
    variants |= {
        match[1] for name in names if (match := re.fullmatch(rf"{stem}\.safetensors\.index\.(\w+)\.json", name))
    }
    ranked = [name for name in VARIANTS if name in variants] + sorted(variants - set(VARIANTS))
    for variant in ("", *ranked):
        dotted = f".{variant}" if variant else ""
        single, index = f"{stem}{dotted}.safetensors", f"{stem}.safetensors.index{dotted}.json"
        order = (single, index) if stem == "model" else (index, single)  # as each of the two libraries looks for them
        for name in order:
            if name in names:
                return Weights(variant, _listed(folder, part, name) if name == index else (folder / part / name,))
    if any(name.endswith((".bin", ".ckpt", ".pt", ".pth")) or ".bin.index" in name for name in names):
        raise IncompatibleError(
            f"the base in {folder} has the weights of {part} only as a pickle, which can run code when it is loaded",
            f"if you trust it, convert it with `{_converter(folder)}` and use the new folder",
        )
    raise _missing(folder, f"{part}/{stem}.safetensors" if names else f"{part}/")


def _converter(folder: Path) -> str:
    """A command that converts a folder of pickles to safetensors; the pickles are read as tensors only."""
    code = f"import objtune_cli.models.base_model; from diffusers import DiffusionPipeline as P; P.from_pretrained({str(folder)!r}).save_pretrained({folder.resolve().name + '-safetensors'!r})"
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"


def _listed(folder: Path, part: str, index: str) -> tuple[Path, ...]:
    """The files in an index."""
    table = read_json(folder, f"{part}/{index}").get("weight_map")
    if not isinstance(table, dict) or not table:
        raise DamagedError(f"the base in {folder} is damaged: {part}/{index} names no files", AGAIN)
    names = sorted({str(name) for name in table.values()})
    for name in names:
        if Path(name).name != name:
            raise DamagedError(
                f"the base in {folder} is damaged: {part}/{index} names a file outside of its folder: {name}", AGAIN
            )
        if not (folder / part / name).is_file():
            raise _missing(folder, f"{part}/{name}")
    return tuple(folder / part / name for name in names)


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object of the folder.

    Raises:
        MissingError: The file is missing. DamagedError: It is unreadable.
    """
    try:
        data = (folder / name).read_bytes()
    except OSError:
        raise _missing(folder, name) from None
    _refuse_pointer(folder, str(folder / name), data)
    try:
        document = json.loads(
            data.decode()
        )  # strict, because diffusers and transformers read neither UTF-16 nor a byte order mark
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise DamagedError(f"the base in {folder} is damaged: {name} cannot be read", AGAIN)
    return document


def is_safetensors(path: Path) -> bool:
    """Whether a file starts like a safetensors file; its name may end in .sft, or in .ckpt after a rename."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER


def read_header(path: Path, name: str = "") -> dict[str, Any]:
    """Read the header of a safetensors file: format, shape and offsets by tensor name, and `__metadata__`.

    Args:
        name: The file in messages; "" for its path.

    Raises:
        DamagedError: The file is incomplete, a Git LFS pointer, or not in safetensors format. MissingError: It cannot be read.
    """
    name = name or str(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            data = file.read(min(length, MAX_HEADER, max(size, 8) - 8))
    except OSError as error:
        raise MissingError(
            f"{name} cannot be read: {error.strerror or error}", "check the file and who may read it"
        ) from None
    _refuse_pointer(path.parent, name, start + data)
    if size < 8 or length != len(data):
        raise DamagedError(f"{name} is damaged: it is incomplete, or not a safetensors file", AGAIN)
    try:
        header: dict[str, Any] = json.loads(data)
        end = max((int(each["data_offsets"][1]) for key, each in header.items() if key != "__metadata__"), default=0)
        is_complete = all({"dtype", "shape"} <= each.keys() for key, each in header.items() if key != "__metadata__")
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError, IndexError):
        is_complete, end = False, 0
    if not is_complete:
        raise DamagedError(f"{name} is damaged: it is not a safetensors file", AGAIN)
    if size != 8 + length + end:
        raise DamagedError(f"{name} is damaged: it has {size} bytes of {8 + length + end}", AGAIN)
    return header


def check_folder(family: "Family", folder: Path, vae: Path | None = None, *, has_denoiser: bool = True) -> None:
    """Refuse a folder with missing or damaged components, or of another kind of model than the family's.

    Args:
        vae: A VAE in place of the folder's own, which may then be missing.
        has_denoiser: Whether the weights of its denoiser are needed; its config always is.

    Raises:
        MissingError, DamagedError, IncompatibleError: Each names the component.
    """
    model_kind.check_index(family, folder, read_json(folder, "model_index.json"))
    parts = [part for part in networks(family, folder) if part != "vae" or vae is None]
    configs = {part: read_json(folder, f"{part}/config.json") for part in parts}
    if vae is not None:
        own = read_json(folder, "vae/config.json") if (folder / "vae/config.json").is_file() else {}
        configs["vae"] = own or (read_json(vae, "config.json") if vae.is_dir() else {})
    read_json(folder, "scheduler/scheduler_config.json")
    for part in family.parts:
        if part.startswith("tokenizer") and part.replace("tokenizer", "text_encoder") in configs:
            _check_tokenizer(folder, part)
    model_kind.check_configs(family, folder, configs)
    for part in parts if has_denoiser else (part for part in parts if part != family.denoiser):
        for path in find_weights(folder, part).files:
            _check_formats(folder, part, read_header(path, f"{folder}/{part}/{path.name}"))


def networks(family: "Family", folder: Path) -> Iterator[str]:
    """The components that have weights; an optional text encoder only if it is loaded."""
    for part in family.parts:
        if not part.startswith(("tokenizer", "scheduler")) and (
            part != "text_encoder_3" or not family.fingerprint_extra(folder)
        ):
            yield part


def _check_tokenizer(folder: Path, part: str) -> None:
    if (folder / part).is_dir():
        read_json(
            folder, f"{part}/tokenizer_config.json"
        )  # without it the libraries pad with other tokens, and to no fixed length
    sets = [names for names in WORD_FILES if all((folder / part / name).is_file() for name in names)]
    if not sets:
        raise _missing(folder, f"{part}/vocab.json or {part}/merges.txt" if (folder / part).is_dir() else f"{part}/")
    for name in sets[0]:
        with (folder / part / name).open("rb") as file:
            start = file.read(1024)
        _refuse_pointer(folder, str(folder / part / name), start)
        if not start.strip():
            raise DamagedError(f"the base in {folder} is damaged: {part}/{name} is empty", AGAIN)


def _check_formats(folder: Path, part: str, header: Mapping[str, Any]) -> None:
    """Refuse quantised weights, because their scales are not read."""
    for key, each in header.items():
        if key.endswith(SCALED) or ".quant_state" in key or (key != "__metadata__" and each.get("dtype") in INTEGERS):
            raise IncompatibleError(
                f"the base in {folder} has quantised weights in {part} ({key})",
                "use it in fp32, bf16 or fp16; `--set train.quantize_base=4bit` saves memory",
            )


def _refuse_pointer(folder: Path, name: str, start: bytes) -> None:
    if start.startswith(POINTER):
        raise DamagedError(
            f"{name} is damaged: it is a Git LFS pointer, not the file itself",
            f"run `git -C {folder} lfs pull`, or {AGAIN}",
        )


def _missing(folder: Path, name: str) -> MissingError:
    return MissingError(f"a part of the base in {folder} is missing: {name}", AGAIN)
