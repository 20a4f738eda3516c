"""Which base models there are and where they lie: names to folders, without opening any weights."""

import contextlib
import hashlib
import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from objtune_cli import paths
from objtune_cli.errors import (
    DamagedError,
    IncompatibleError,
    InputError,
    MissingError,
    ObjtuneError,
    ResourceError,
    UsageError,
)
from objtune_cli.models import families
from objtune_cli.models.families import (
    FAMILIES,
    Family,
    fingerprints,
    model_kind,
    schedulers,
    single_file,
    vae_override,
)
from objtune_cli.models.families import pipeline_folder as folders
from objtune_cli.models.families.fingerprints import CLIP_FOLDERS, IGNORED_FILES
from objtune_cli.renamed_settings import current as _current_names

TOYBOX_FOLDER = Path(__file__).parent.parent / "toybox" / "weights"
TOYBOX_SEGMENTER = TOYBOX_FOLDER / "segmenter"
"""The small segment-anything model that the package carries."""
HUB = {alias: repository for family in FAMILIES for alias, (repository, _) in family.hub.items()}
"""Aliases to hub repositories. Only what is already on this machine is opened; `fetch` brings it."""
REVISIONS = {repository: commit for family in FAMILIES for repository, commit in family.hub.values()}
"""The commit of each that `fetch` brings; of other repositories, what their `main` is."""

PARTS = tuple(dict.fromkeys(part for family in FAMILIES for part in (*family.parts, *CLIP_FOLDERS)))
FILES = ("model_index.json", *(f"{part}/*.{end}" for part in PARTS for end in ("json", "txt", "safetensors")))
"""What of a hub repository a base may need: no pickles."""
FEATURE_MODEL_FILES = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer*.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "model.safetensors",
)
"""What of a hub repository a CLIP or DINO that measures needs."""
PICKLED = "pytorch_model.bin"
"""Its weights where the repository has them in no other form; opened as tensors alone."""
MAX_BYTES_TO_LOAD_TWICE = 256_000_000
"""Bytes of a base that one process may open more than once."""
DISTILLED_SAMPLING = {
    name: {"num_inference_steps": 8, "guidance_scale": 1.0} for name in ("LCMScheduler", "TCDScheduler")
}
"""Samplers that only bases distilled to few steps have, to what suits these."""
DEFAULT_TRAINING: dict[str, Any] = {
    "max_steps": 800, "learning_rate": 1e-4, "embedding_lr": 5e-3, "target_modules": "attention", "batch_size": 1, "target_blocks": "decoder", "prior_loss_interval": 4, "single_forward": False,
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
        weights: A checkpoint in one file; `folder` then holds its family's configs. prediction: what its denoiser predicts, where the scheduler's config does
            not say it; said_prediction: the same, where the user says it. schedule: what is known better than the scheduler's config says.
        zero_snr: Whether a file has the mark of zero terminal SNR. vae: folder or file of an autoencoder in place of its own.
        notes: What a user should know of it, one line each.
        sampling, training: Settings that suit it. words: the classes it knows, if it says so.
        world: the dial of the drawn world that it was trained on, or "".
    """

    id: str
    folder: Path
    fingerprint: str
    clip_path: Path | None
    sampling: dict[str, float]
    training: dict[str, Any]
    known_classes: tuple[str, ...]
    toybox_dial: str
    family: Family = families.SD1
    clip_2_path: Path | None = None
    clip_model: str = ""
    weights: Path | None = None
    prediction: str = ""
    said_prediction: str = ""
    schedule: dict[str, Any] = field(default_factory=dict)
    zero_snr: bool = False
    vae: Path | None = None
    notes: tuple[str, ...] = ()

    def sampling_kwargs(self) -> dict[str, Any]:
        """The settings of sampling that suit it, as fields of `generation.settings.SamplingSettings`."""
        own = self.sampling
        return {
            "num_inference_steps": int(own["num_inference_steps"]),
            "guidance_scale": own["guidance_scale"],
            "guidance_interval_high": own.get("guidance_interval_high", 1.0),
        }

    def scene_guidance(self, asked: float = -1.0) -> float:
        """How much its pictures of an object hold of what it says of the other words, as `generation.sampling.sample` takes it; negative: what suits it."""
        return asked if asked >= 0 else float(self.sampling.get("prompt_guidance_scale", 0.0))

    def object_below(self, asked: float = -1.0) -> float:
        """Noise level from which objects are themselves in its pictures, as `generation.sampling.sample` takes it; negative: what suits it."""
        return asked if asked >= 0 else float(self.sampling.get("subject_conditioning_start", 1.0))

    def object_sampling_kwargs(self) -> dict[str, Any]:
        """The further settings that suit images of trained objects, as fields of `generation.settings.SamplingSettings`."""
        return {"prompt_guidance_scale": self.scene_guidance(), "subject_conditioning_start": self.object_below()}

    def object_guidance(self, asked: float = -1.0) -> float:
        """How far a closer look at an object goes from the class to it; negative: what suits it."""
        return asked if asked >= 0 else float(self.sampling.get("autoguidance_scale", 0.0))

    @property
    def num_latent_cells(self) -> int:
        """Latent cells of the frame that it draws."""
        return (
            model_kind.read_side(self._config(self.family.denoiser).get("sample_size"), self.family.default_latent_size)
            ** 2
        )

    @property
    def scheduler(self) -> dict[str, Any]:
        """The config of its scheduler, with what is known better."""
        return self.family.read_scheduler(self.folder, **self.schedule)

    @property
    def sampler(self) -> tuple[str, str]:
        """What A1111 calls the sampler that it is drawn with, and the type of that one's schedule."""
        return schedulers.describe(self.scheduler)

    def sampler_record(self) -> dict[str, str]:
        """Its sampler as a scene's settings keep it: only where it is another one than all bases of the family were drawn with before."""
        name = schedulers.name_sampler(self.scheduler)
        return {} if name in ("DDIMScheduler", "FlowMatchEulerDiscreteScheduler") else {"sampler": name}

    @property
    def vae_scale_factor(self) -> int:
        """Picture pixels per latent cell, along one side."""
        return int(2 ** (len(self._config("vae").get("block_out_channels", (64,))) - 1))

    @property
    def resolution(self) -> int:
        """Side of the pictures that it was trained on, px."""
        return math.isqrt(self.num_latent_cells) * self.vae_scale_factor

    @property
    def size_multiple(self) -> int:
        """What the sides of its pictures must be multiples of, px."""
        config = {"block_out_channels": range(4), "patch_size": 2} | self._config(
            self.family.denoiser
        )  # of diffusers' classes, where a config says nothing
        return self.vae_scale_factor * self.family.latent_multiple(SimpleNamespace(**config))

    @property
    def largest_side(self) -> int:
        """Longest side of its pictures, px: a transformer knows so many places."""
        places = self._config(self.family.denoiser).get("pos_embed_max_size")
        return int(places) * self.size_multiple if places else 8192

    def _config(self, part: str) -> dict[str, Any]:
        if part == "vae" and self.vae is not None:
            return vae_override.read_config(self.vae) or folders.read_json(
                single_file.LAYOUTS / self.family.name, "vae/config.json"
            )
        return folders.read_json(self.folder, f"{part}/config.json")

    @property
    def fits_twice_in_memory(self) -> bool:
        """Whether several of it may be in memory at once: its denoiser's files, or its one file, are below `SMALL`."""
        files = [self.weights] if self.weights else (self.folder / self.family.denoiser).glob("*.safetensors")
        return sum(file.stat().st_size for file in files) < MAX_BYTES_TO_LOAD_TWICE

    def record(self) -> dict[str, str]:
        """As artifacts keep it; those of the first family came before there were others."""
        own = {"id": self.id, "fingerprint": self.fingerprint}
        own |= {"vae": f"{self.vae.parent.name}/vae" if self.vae.name == "vae" else self.vae.name} if self.vae else {}
        own |= {"noise": "zero-snr"} if self.zero_snr else {}
        if self.family is families.SD1:
            return own | ({"prediction": self.said_prediction} if self.said_prediction else {})
        schedule = json.loads((self.folder / "scheduler" / "scheduler_config.json").read_bytes())
        return own | {
            "family": self.family.name,
            "prediction": self.prediction or str(schedule.get("prediction_type", self.family.prediction)),
        }


def resolve(name: str, tower: str = "", vae: str = "", prediction: str = "") -> Base:
    """A base by alias, folder, checkpoint file, or hub id.

    Args:
        tower: Where its CLIPs with image towers lie, if not in its folder. vae: folder, file or hub id of an autoencoder in place of its own.
        prediction: What its denoiser predicts, if the base says it wrongly or not at all.

    Raises:
        ResourceError: Not on this machine, and `fetch` brings it. MissingError, DamagedError: a folder or file that is not whole.
        IncompatibleError: of another family, or another kind of model. UsageError: no such name.
    """
    said = {"v": "v_prediction"}.get(prediction, prediction)
    given = vae_override.find_vae(vae) if vae else None
    if name == "toybox":
        return _opened("toybox", TOYBOX_FOLDER, tower, given, said)
    path = Path(paths.to_model(name))
    if path.is_dir():
        return _opened(path.resolve().name, path, tower, given, said)
    if path.is_file():
        return _file(path, tower, given, said)
    repository = hub_id(name)
    here = find_snapshot(repository)
    if here is None:
        near = f"; there is no folder {name} here" if path.parent.is_dir() and "/" in name else ""
        raise ResourceError(
            f"the weights of {name} ({repository}) are not on this machine{near}",
            f"`objtune fetch --base {name}` brings them; `--base toybox` needs none",
        )
    try:
        return _opened(name, here, tower, given, said)
    except MissingError as error:
        raise ResourceError(
            f"{name} is only partly on this machine: {error.message}", f"`objtune fetch --base {name}` brings the rest"
        ) from None
    except DamagedError as error:
        raise DamagedError(
            error.message, f"delete {here.parent.parent} and run `objtune fetch --base {name}`"
        ) from None


def hub_id(name: str) -> str:
    """The hub repository of an alias or id.

    Raises:
        UsageError: It is neither.
    """
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not ("/" in name or name in HUB):
        page = re.match(r"https?://huggingface\.co/([\w.-]+/[\w.-]+)", name)
        meant = page[1] if page else "" if "/" in name else re.sub(r"[\W_]", "", name.lower())
        near = f"`--base {meant}`, if that is meant; " if page or meant in ("toybox", *HUB) else ""
        raise UsageError(
            f"there is no base {name}",
            f"{near}known: toybox, {', '.join(HUB)}, a diffusers folder, a .safetensors checkpoint, or a hub id",
        )
    return HUB.get(name, name)


def find_snapshot(repository: str) -> Path | None:
    """Where a repository lies on this machine, whole: the commit that `fetch` brings, else `main` as it was brought otherwise."""
    from huggingface_hub import snapshot_download  # which raises RuntimeError where there is no home folder

    for revision in filter(None, (REVISIONS.get(repository), "main")):
        with contextlib.suppress(ValueError, OSError, RuntimeError):
            found = snapshot_download(
                repository,
                revision=revision,
                local_files_only=True,
                allow_patterns=list(FILES),
                ignore_patterns=list(IGNORED_FILES),
            )
            return Path(found)
    return None


def transformers_model(repository: str) -> Path | None:
    """Where a CLIP or DINO lies on this machine, whole: in safetensors, or in the form that its repository has."""
    from huggingface_hub import snapshot_download

    for files in (FEATURE_MODEL_FILES, (*FEATURE_MODEL_FILES, PICKLED)):
        with contextlib.suppress(ValueError, OSError, RuntimeError):
            found = Path(snapshot_download(repository, local_files_only=True, allow_patterns=list(files)))
            if (found / files[-1]).exists():
                return found
    return None


def _opened(ident: str, folder: Path, tower: str, vae: Path | None, prediction: str) -> Base:
    family = _family(ident, folder)
    _check_prediction(family, prediction)
    folders.check(family, folder, vae)
    if vae is not None:
        vae_override.check_vae(
            vae,
            folders.read_json(
                folder if (folder / "vae/config.json").is_file() else single_file.LAYOUTS / family.name,
                "vae/config.json",
            ),
        )
    written = str(folders.read_json(folder, schedulers.CONFIG).get("prediction_type", family.prediction))
    differs = prediction if prediction != written else ""
    family.read_scheduler(folder, **({"prediction_type": differs} if differs else {}))
    extra: dict[str, Any] = {}
    if (folder / "toybox.json").exists():
        extra = json.loads((folder / "toybox.json").read_bytes())
    first, second, said = _towers(family, folder, tower)
    return _changed(Base(
        id=ident,
        folder=folder,
        fingerprint=fingerprints.fingerprint(folder, family),
        clip_path=first,
        sampling=_current_names("generate", extra.get("sampling", family.sampling)),
        training=_current_names("train", extra.get("training", DEFAULT_TRAINING | family.training)),
        known_classes=tuple(extra.get("classes", ())),
        toybox_dial=str(extra.get("dial", "")),
        family=family,
        clip_2_path=second,
        clip_model=said,
        prediction=differs,
        schedule={"prediction_type": differs} if differs else {},
    ), vae, differs)  # fmt: skip


def _file(path: Path, tower: str, vae: Path | None, prediction: str) -> Base:
    """A single-file checkpoint."""
    single_file.check_kind(path)
    found, differs = single_file.choose_prediction(path, prediction)
    family = found.family
    _check_prediction(family, prediction)
    if not found.has_vae and vae is None:
        raise IncompatibleError(f"{path} holds no autoencoder", f"give one: {vae_override.HOW}")
    folder = single_file.LAYOUTS / family.name
    if vae is not None:
        vae_override.check_vae(vae, folders.read_json(folder, "vae/config.json"))
    first, second, said = _towers(family, folder, tower)
    assumed = (f"{path.name} does not say what its denoiser predicts; {found.prediction} is taken, as of the first models of {family.title}; "
               "`--set prediction=epsilon` says otherwise",)  # fmt: skip
    base = Base(
        id=path.name, folder=folder, fingerprint=fingerprints.fingerprint(folder, family, path), clip_path=first, sampling=family.sampling,
        training=DEFAULT_TRAINING | family.training, known_classes=(), toybox_dial="", family=family, clip_2_path=second, clip_model=said, weights=path,
        prediction=found.prediction, schedule=found.schedule, zero_snr=found.zero_snr,
        notes=assumed if found.assumed and family is families.SD2 else (),
    )  # fmt: skip
    return _changed(base, vae, differs)


def _check_prediction(family: Family, prediction: str) -> None:
    if prediction and family.prediction == "flow":
        raise IncompatibleError(
            f"{family.title} predicts the velocity of a flow, not {prediction}", "leave the setting `prediction` out"
        )


def _changed(base: Base, vae: Path | None, prediction: str) -> Base:
    """The base with what was given for it, which makes it another one."""
    base = replace(base, sampling=DISTILLED_SAMPLING.get(schedulers.name_sampler(base.scheduler), base.sampling))
    if vae is None and not prediction:
        return base
    digest = hashlib.sha256(f"{base.fingerprint}\0{prediction}\0".encode())
    for path in sorted(vae.glob("*") if vae is not None and vae.is_dir() else [vae] if vae is not None else []):
        if (path == vae or path.suffix in (".json", ".safetensors")) and path.is_file():
            fingerprints.add_file(digest, path, path.name, is_weights=path.suffix != ".json")
    return replace(base, fingerprint=digest.hexdigest(), vae=vae, said_prediction=prediction)


def _family(ident: str, folder: Path) -> Family:
    try:
        family = families.detect_family(folder)
    except FileNotFoundError:
        raise MissingError(f"{folder} is no diffusers model: it has no model_index.json", _inner(folder)) from None
    except (ValueError, KeyError, TypeError, OSError):
        folders.read_json(folder, "model_index.json")  # names what is wrong with it
        raise DamagedError(f"{folder}/model_index.json does not say what model it is", folders.AGAIN) from None
    if family is None:
        kind = json.loads((folder / "model_index.json").read_bytes())["_class_name"]
        known = ", ".join(f"{each.title} ({each.pipeline})" for each in FAMILIES)
        raise IncompatibleError(f"{ident} is a {kind}", f"supported so far: {known}")
    return family


def _inner(folder: Path) -> str:
    """What to give in place of a folder that is no base: what lies in it, or around it."""
    if (folder / "snapshots").is_dir():
        inner = next(
            (path for path in sorted((folder / "snapshots").iterdir()) if (path / "model_index.json").exists()), None
        )
        if inner:
            return f"it is a repository of the hub's cache: `--base {shlex.quote(str(inner))}`"
    if (folder.resolve().parent / "model_index.json").exists():
        return f"it is a part of a base: `--base {shlex.quote(str(folder.parent if folder.name else folder.resolve().parent))}`"
    files = [path for path in sorted(folder.glob("*.safetensors"))]
    if len(files) == 1:
        return f"if the checkpoint in it is meant: `--base {shlex.quote(str(files[0]))}`"
    return "give the folder that `save_pretrained` wrote"


def _towers(family: Family, folder: Path, given: str) -> tuple[Path | None, Path | None, str]:
    """The CLIPs of a base's text encoders: those that were asked for, those in its folder, or the family's if they are on this machine."""
    if given:
        names = [name.strip() for name in given.split(",")]
        if len(names) > len(family.encoders):
            raise UsageError(
                f"{len(names)} image towers for {len(family.encoders)} text encoder(s)",
                "give one for each, in their order",
            )
        return _each(
            [_tower(name) for name in names],
            ",".join(Path(name).name if Path(name).exists() else name for name in names),
        )
    own = [
        folder / name if (folder / name / "config.json").exists() else None
        for name in CLIP_FOLDERS[: len(family.encoders)]
    ]
    if any(own) or folder == TOYBOX_FOLDER or not (cache := _cache()).is_dir():
        return _each(own, "")
    here = [
        transformers_model(name) if (cache / f"models--{name.replace('/', '--')}").is_dir() else None
        for name in family.clip_models
    ]
    return _each(here, ",".join(name for name, path in zip(family.clip_models, here, strict=True) if path))


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
        hint = (
            f"`objtune fetch --model {name}` brings it, if that is its hub id"
            if paths.is_hub_id(name)
            else "give its folder or .safetensors file, or its hub id"
        )
        raise ResourceError(f"the CLIP {name} is not on this machine", hint)
    return found


def _cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def suggest_base_option(record: Mapping[str, str], *near: Path) -> str:
    """How the base of an artifact can be given, for a hint.

    Args:
        record: Of the base, as the artifact keeps it. near: Folders beside the present one in which it may lie.
    """
    ident = record.get("id", "?")
    more = f" with `--set vae=` and its VAE {record['vae']}" if "vae" in record else ""
    if ident == "toybox" or ident in HUB or ident.count("/") == 1:
        return f"`--base {ident}`{more}"
    for place in dict.fromkeys((Path(), *near)):
        path = place / ident
        if path.exists():
            with contextlib.suppress(ObjtuneError, OSError):
                if more or resolve(str(path)).fingerprint == record.get("fingerprint"):
                    written = f"./{path}" if path.parts == (ident,) and path.is_dir() else str(path)
                    return f"`--base {shlex.quote(written)}`{more}"
    kind = "file" if ident.endswith(".safetensors") else "folder"
    return f"`--base` with the path of the {kind} {ident}{more}"
