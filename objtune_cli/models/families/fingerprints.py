"""Fingerprints of base models: a hash over the files that are loaded; fast even for many gigabytes."""

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
"""Folders of a base with the CLIP models of its text encoders."""
IGNORED_FILES = ("*.fp16.*", "*.fp16-*", "*.non_ema.*")
"""Copies of the weights in other formats."""
SLICE = 1 << 14


def fingerprint(folder: Path, family: "Family", weights: Path | None = None) -> str:
    """SHA-256 over the loaded components: complete configs, and the size and 66 evenly spaced slices of weights."""
    digest = hashlib.sha256(family.fingerprint_extra(folder).encode())
    parts = [
        path
        for part in (*family.parts, *CLIP_FOLDERS)
        for path in (folder / part).glob("*")
        if not path.name.startswith(".")
    ]
    variants = set() if weights else _opened_variants(family, folder)
    for path in [*sorted(parts), *([weights] if weights else [])]:
        again = (
            any(fnmatch(path.name, pattern) for pattern in IGNORED_FILES) and path != weights and path not in variants
        )
        if (
            (path.suffix.lower() not in (".json", ".txt", ".jinja", ".safetensors") and path != weights)
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
    """Files of a variant, such as fp16, that are loaded because the plain ones are missing."""
    files: set[Path] = set()
    for part in folders.networks(family, folder):
        with contextlib.suppress(MissingError):  # the user replaces the VAE
            weights = folders.find_weights(folder, part)
            files |= set(weights.files) if weights.variant else set()
    return files


def add_file(digest: Any, path: Path, name: str, *, is_weights: bool) -> None:
    """Add a file's name, size and bytes to a digest; of weights only 66 evenly spaced slices."""
    size = path.stat().st_size
    digest.update(f"{name}\0{size}\0".encode())
    with path.open("rb") as file:
        if not is_weights:
            digest.update(file.read())
            return
        for i in range(66):
            file.seek(i * max(0, size - SLICE) // 65, os.SEEK_SET)
            digest.update(file.read(SLICE))
