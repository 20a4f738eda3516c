"""The fingerprint of a base: a hash of what is opened of it, quick to take of many gigabytes."""

import contextlib
import hashlib
import os
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli.errors import MissingError
from objtune_cli.models.families import pipeline_folder as folders

if TYPE_CHECKING:
    from objtune_cli.models.families.family import Family

CLIP_FOLDERS = ("clip", "clip_2")
"""Folders of a base with the CLIPs of its text encoders."""
IGNORED_FILES = ("*.fp16.*", "*.fp16-*", "*.non_ema.*")
"""The same weights again in other forms."""
SLICE = 1 << 14


def fingerprint(folder: Path, family: "Family", weights: Path | None = None) -> str:
    """SHA-256 over the parts that are opened: configs whole, of weights the size and 66 evenly spaced slices."""
    digest = hashlib.sha256(family.fingerprint_extra(folder).encode())
    parts = [
        path
        for part in (*family.parts, *CLIP_FOLDERS)
        for path in (folder / part).glob("*")
        if not path.name.startswith(".")
    ]
    opened = set() if weights else _opened_variants(family, folder)
    for path in [*sorted(parts), *([weights] if weights else [])]:
        again = any(fnmatch(path.name, pattern) for pattern in IGNORED_FILES) and path != weights and path not in opened
        if (
            (path.suffix.lower() not in (".json", ".txt", ".safetensors") and path != weights)
            or again
            or not path.is_file()
        ):
            continue
        is_weights = path == weights or path.suffix.lower() == ".safetensors"
        add_file(
            digest,
            path,
            "checkpoint" if path == weights else path.relative_to(folder).as_posix(),
            is_weights=is_weights,
        )
    return digest.hexdigest()


def _opened_variants(family: "Family", folder: Path) -> set[Path]:
    """Files of a variant (fp16, …) that are opened because there is nothing else."""
    found: set[Path] = set()
    for part in folders.networks(family, folder):
        with contextlib.suppress(MissingError):  # an autoencoder that is given in its place
            weights = folders.find_weights(folder, part)
            found |= set(weights.files) if weights.variant else set()
    return found


def add_file(digest: Any, path: Path, name: str, *, is_weights: bool) -> None:
    """A file's name, size, and bytes: of weights 66 evenly spaced slices."""
    size = path.stat().st_size
    digest.update(f"{name}\0{size}\0".encode())
    with path.open("rb") as file:
        if not is_weights:
            digest.update(file.read())
            return
        for i in range(66):
            file.seek(i * max(0, size - SLICE) // 65, os.SEEK_SET)
            digest.update(file.read(SLICE))
