"""Which base models there are and where they lie: names to folders, without opening any weights."""

import contextlib
import hashlib
import json
import math
import os
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from objtune_cli import families
from objtune_cli.errors import IncompatibleError, InputError, ResourceError, UsageError
from objtune_cli.families import FAMILIES, Family, single

EMBEDDED = Path(__file__).parent / "toybox" / "weights"
SEGMENTER = EMBEDDED / "segmenter"
"""The small segment-anything model that the package carries."""
HUB = {alias: repository for family in FAMILIES for alias, (repository, _) in family.hub.items()}
"""Aliases to hub repositories. Only what is already on this machine is opened; `fetch` brings it."""
REVISIONS = {repository: commit for family in FAMILIES for repository, commit in family.hub.values()}
"""The commit of each that `fetch` brings; of other repositories, what their `main` is."""

TOWERS = ("clip", "clip_2")
"""Folders of a base with the CLIPs of its text encoders."""
PARTS = tuple(dict.fromkeys(part for family in FAMILIES for part in (*family.parts, *TOWERS)))
FILES = ("model_index.json", *(f"{part}/*.{end}" for part in PARTS for end in ("json", "txt", "safetensors")))
"""What of a hub repository a base may need: no pickles."""
SKIPPED = ("*.fp16.*", "*.fp16-*", "*.non_ema.*")
"""The same weights again in other forms."""
JUDGE = ("config.json", "preprocessor_config.json", "tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json", "model.safetensors")
"""What of a hub repository a CLIP or DINO that measures needs."""
PICKLED = "pytorch_model.bin"
"""Its weights where the repository has them in no other form; opened as tensors alone."""
SLICE = 1 << 14
SMALL = 256_000_000
"""Bytes of a base that one process may open more than once."""
TRAINING: dict[str, Any] = {
    "steps": 800, "lr": 1e-4, "token_lr": 5e-3, "modules": "attention", "batch": 1, "blocks": "decoder", "class_every": 4, "passes": "apart",
}  # fmt: skip
"""What suits bases that do not say it: the rates of the literature for LoRA on one photo, not tried here; rows and passes for small cards."""


@dataclass(frozen=True, slots=True)
class Base:
    """A base model on this machine.

    Attributes:
        id: What artifacts remember: an alias, a hub id, or the folder's own name.
        folder: Where it lies. fingerprint: of its configs and weights.
        image_tower: A CLIP with both towers that shares the token space, folder or file, or None. second_tower: of a second text encoder.
        tower: What the towers were asked for as, where they do not lie in the base's folder.
        weights: A checkpoint in one file; `folder` then holds its family's configs. prediction: what its denoiser predicts.
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
    family: Family = families.SD1
    second_tower: Path | None = None
    tower: str = ""
    weights: Path | None = None
    prediction: str = ""

    def drawn(self) -> dict[str, Any]:
        """How its pictures are drawn, as `method.sampling.sample` takes it."""
        own = self.sampling
        return {"steps": int(own["steps"]), "guidance": own["guidance"], "below": own.get("guidance_below", 1.0)}

    def scene_guidance(self, asked: float = -1.0) -> float:
        """How much its pictures of an object hold of what it says of the other words, as `method.sampling.sample` takes it; negative: what suits it."""
        return asked if asked >= 0 else float(self.sampling.get("scene_guidance", 0.0))

    def object_below(self, asked: float = -1.0) -> float:
        """Noise level from which objects are themselves in its pictures, as `method.sampling.sample` takes it; negative: what suits it."""
        return asked if asked >= 0 else float(self.sampling.get("object_below", 1.0))

    def of_objects(self) -> dict[str, Any]:
        """How its pictures of learned objects are drawn beside `drawn`, as `method.sampling.sample` takes it."""
        return {"scene": self.scene_guidance(), "object_below": self.object_below()}

    def object_guidance(self, asked: float = -1.0) -> float:
        """How far a closer look at an object goes from the class to it; negative: what suits it."""
        return asked if asked >= 0 else float(self.sampling.get("object_guidance", 0.0))

    @property
    def cells(self) -> int:
        """Latent cells of the frame that it draws."""
        return int(json.loads((self.folder / self.family.denoiser / "config.json").read_text()).get("sample_size", 0)) ** 2

    @property
    def factor(self) -> int:
        """Picture pixels per latent cell, along one side."""
        return int(2 ** (len(self._config("vae").get("block_out_channels", (64,))) - 1))

    @property
    def side(self) -> int:
        """Side of the pictures that it was trained on, px."""
        return math.isqrt(self.cells) * self.factor

    @property
    def unit(self) -> int:
        """What the sides of its pictures must be multiples of, px."""
        config = {"block_out_channels": range(4), "patch_size": 2} | self._config(self.family.denoiser)  # of diffusers' classes, where a config says nothing
        return self.factor * self.family.cells(SimpleNamespace(**config))

    @property
    def largest_side(self) -> int:
        """Longest side of its pictures, px: a transformer knows so many places."""
        places = self._config(self.family.denoiser).get("pos_embed_max_size")
        return int(places) * self.unit if places else 8192

    def _config(self, part: str) -> dict[str, Any]:
        return json.loads((self.folder / part / "config.json").read_text())

    @property
    def small(self) -> bool:
        """Whether several of it may be in memory at once: its denoiser's files, or its one file, are below `SMALL`."""
        files = [self.weights] if self.weights else (self.folder / self.family.denoiser).glob("*.safetensors")
        return sum(file.stat().st_size for file in files) < SMALL

    def record(self) -> dict[str, str]:
        """As artifacts keep it; those of the first family came before there were others."""
        own = {"id": self.id, "fingerprint": self.fingerprint}
        if self.family is families.SD1:
            return own
        schedule = json.loads((self.folder / "scheduler" / "scheduler_config.json").read_text())
        return own | {"family": self.family.name, "prediction": self.prediction or str(schedule.get("prediction_type", self.family.prediction))}


def find(name: str, tower: str = "") -> Base:
    """A base by alias, folder, checkpoint file, or hub id; `tower`: where its CLIPs with image towers lie, if not in its folder.

    Raises:
        ResourceError: Not on this machine. InputError: a folder that is no model. IncompatibleError: of another family.
        UsageError: no such name.
    """
    if name == "toybox":
        return _opened("toybox", EMBEDDED, tower)
    folder = Path(name)
    if folder.is_dir():
        return _opened(folder.resolve().name, folder, tower)
    if folder.is_file():
        return _file(folder, tower)
    repository = hub_id(name)
    here = cached(repository)
    if here is None:
        raise ResourceError(
            f"the weights of {name} ({repository}) are not on this machine",
            f"`objtune fetch --base {name}` brings them; `--base toybox` needs none",
        )
    return _opened(name, here, tower)


def hub_id(name: str) -> str:
    """The hub repository of an alias or id.

    Raises:
        UsageError: It is neither.
    """
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not ("/" in name or name in HUB):
        raise UsageError(
            f"there is no base {name}", f"known: toybox, {', '.join(HUB)}, a diffusers folder, a .safetensors checkpoint, or a hub id"
        )
    return HUB.get(name, name)


def cached(repository: str) -> Path | None:
    """Where a repository lies on this machine, whole: the commit that `fetch` brings, else `main` as it was brought otherwise."""
    from huggingface_hub import snapshot_download

    for revision in filter(None, (REVISIONS.get(repository), "main")):
        with contextlib.suppress(ValueError, OSError):
            found = snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=list(FILES), ignore_patterns=list(SKIPPED))
            return Path(found)
    return None


def transformers_model(repository: str) -> Path | None:
    """Where a CLIP or DINO lies on this machine, whole: in safetensors, or in the form that its repository has."""
    from huggingface_hub import snapshot_download

    for files in (JUDGE, (*JUDGE, PICKLED)):
        with contextlib.suppress(ValueError, OSError):
            found = Path(snapshot_download(repository, local_files_only=True, allow_patterns=list(files)))
            if (found / files[-1]).exists():
                return found
    return None


def _opened(ident: str, folder: Path, tower: str) -> Base:
    family = _family(ident, folder)
    extra: dict[str, Any] = {}
    if (folder / "toybox.json").exists():
        extra = json.loads((folder / "toybox.json").read_text())
    first, second, said = _towers(family, folder, tower)
    return Base(
        id=ident,
        folder=folder,
        fingerprint=_fingerprint(folder, family),
        image_tower=first,
        sampling=extra.get("sampling", family.sampling),
        training=extra.get("training", TRAINING | family.training),
        words=tuple(extra.get("classes", ())),
        world=str(extra.get("dial", "")),
        family=family,
        second_tower=second,
        tower=said,
    )


def _file(path: Path, tower: str) -> Base:
    """A single-file checkpoint."""
    if path.suffix != ".safetensors":
        raise InputError(f"{path} is no .safetensors file", "checkpoints in pickles (.ckpt) are not opened; get it as .safetensors")
    family, prediction = single.described(path)
    folder = single.LAYOUTS / family.name
    first, second, said = _towers(family, folder, tower)
    return Base(
        id=path.name, folder=folder, fingerprint=_fingerprint(folder, family, path), image_tower=first, sampling=family.sampling,
        training=TRAINING | family.training, words=(), world="", family=family, second_tower=second, tower=said, weights=path, prediction=prediction,
    )  # fmt: skip


def _family(ident: str, folder: Path) -> Family:
    try:
        family = families.of(folder)
    except FileNotFoundError:
        raise InputError(
            f"{folder} is no diffusers model: it has no model_index.json", "give the folder that `save_pretrained` wrote"
        ) from None
    except (ValueError, KeyError):
        raise InputError(f"{folder}/model_index.json cannot be read", "download the model again") from None
    if family is None:
        kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
        known = ", ".join(f"{each.title} ({each.pipeline})" for each in FAMILIES)
        raise IncompatibleError(f"{ident} is a {kind}", f"supported so far: {known}")
    return family


def _towers(family: Family, folder: Path, given: str) -> tuple[Path | None, Path | None, str]:
    """The CLIPs of a base's text encoders: those that were asked for, those in its folder, or the family's if they are on this machine."""
    if given:
        names = [name.strip() for name in given.split(",")]
        if len(names) > len(family.encoders):
            raise UsageError(f"{len(names)} image towers for {len(family.encoders)} text encoder(s)", "give one for each, in their order")
        return _each([_tower(name) for name in names], ",".join(Path(name).name if Path(name).exists() else name for name in names))
    own = [folder / name if (folder / name / "config.json").exists() else None for name in TOWERS[: len(family.encoders)]]
    if any(own) or folder == EMBEDDED or not (cache := _cache()).is_dir():
        return _each(own, "")
    here = [transformers_model(name) if (cache / f"models--{name.replace('/', '--')}").is_dir() else None for name in family.towers]
    return _each(here, ",".join(name for name, path in zip(family.towers, here, strict=True) if path))


def _each(found: list[Path | None], said: str) -> tuple[Path | None, Path | None, str]:
    return found[0], found[1] if len(found) > 1 else None, said


def _tower(name: str) -> Path:
    """A CLIP by folder, safetensors file, or hub id.

    Raises:
        ResourceError: It is not on this machine. InputError: a file of another kind.
    """
    path = Path(name)
    if path.is_file() and path.suffix != ".safetensors":
        raise InputError(f"{path} is no safetensors file", "give the CLIP as a .safetensors file or as a folder")
    if path.exists():
        return path
    found = transformers_model(name)
    if found is None:
        raise ResourceError(f"the CLIP {name} is not on this machine", f"`objtune fetch --model {name}` brings it, if that is its hub id")
    return found


def _cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _fingerprint(folder: Path, family: Family, weights: Path | None = None) -> str:
    """SHA-256 over the parts that are opened: configs whole, of weights the size and 66 evenly spaced slices."""
    digest = hashlib.sha256(family.said(folder).encode())
    parts = [path for part in (*family.parts, *TOWERS) for path in (folder / part).glob("*") if not path.name.startswith(".")]
    for path in [*sorted(parts), *([weights] if weights else [])]:
        again = any(fnmatch(path.name, pattern) for pattern in SKIPPED) and path != weights
        if path.suffix not in (".json", ".txt", ".safetensors") or again or not path.is_file():
            continue
        size = path.stat().st_size
        name = "checkpoint" if path == weights else path.relative_to(folder).as_posix()
        digest.update(f"{name}\0{size}\0".encode())
        with path.open("rb") as file:
            if path.suffix != ".safetensors":
                digest.update(file.read())
                continue
            for i in range(66):
                file.seek(i * max(0, size - SLICE) // 65, os.SEEK_SET)
                digest.update(file.read(SLICE))
    return digest.hexdigest()
