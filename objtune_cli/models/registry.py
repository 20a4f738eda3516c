"""Finds a base model by alias, folder, checkpoint file or hub id, and describes it without opening any weights."""

import contextlib
import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from objtune_cli import paths
from objtune_cli.errors import DamagedError, IncompatibleError, MissingError, ObjtuneError, ResourceError
from objtune_cli.models import clip_lookup, families, hub_cache
from objtune_cli.models.base_spec import BaseSpec
from objtune_cli.models.families import (
    FAMILIES,
    Family,
    denoiser_file,
    fingerprints,
    model_kind,
    schedulers,
    single_file,
    vae_override,
)
from objtune_cli.models.families import pipeline_folder as folders
from objtune_cli.renamed_settings import current as current_names

TOYBOX_FOLDER = Path(__file__).parent.parent / "toybox" / "weights"
TOYBOX_SEGMENTER = TOYBOX_FOLDER / "segmenter"
"""The small segment-anything model in the package."""
DISTILLED_SAMPLING = {
    name: {"num_inference_steps": 8, "guidance_scale": 1.0} for name in ("LCMScheduler", "TCDScheduler")
}
"""Sampling settings of bases that are distilled to few steps, by the sampler that only they have."""
DEFAULT_TRAINING: dict[str, Any] = {
    "max_steps": 800, "learning_rate": 1e-4, "embedding_lr": 5e-3, "target_modules": "attention", "batch_size": 1, "target_blocks": "decoder", "prior_loss_interval": 4, "single_forward": False,
}  # fmt: skip
"""Training settings of bases that bring none: rates of the literature for LoRA on one photo, not measured here; batches for small GPUs."""


def resolve(
    name: str, clip_model: str = "", vae: str = "", prediction: str = "", parts: str = "", *, inpainting: bool = False
) -> BaseSpec:
    """Return the base model of an alias, a folder, a checkpoint file or a hub id.

    Args:
        clip_model: CLIPs with vision encoders for its text encoders, if not in its folder; separated by commas.
        vae: Folder, file or hub id of a VAE in place of its own.
        prediction: What its denoiser predicts, if its config is wrong or leaves it out: `epsilon` or `v_prediction`.
        parts: Folder, alias or hub id of a model with the parts that the file of a denoiser alone lacks.
        inpainting: Whether it may be a model whose denoiser takes a picture too: an inpainting or editing model.

    Raises:
        ResourceError: It is not on this machine; `fetch` downloads it. UsageError: there is no such name.
        MissingError, DamagedError: The folder or file is not complete.
        IncompatibleError: It is of an unsupported family, or another kind of model.
    """
    base = _find(name, clip_model, vae, prediction, parts)
    if base.picture_input and not inpainting:
        inputs = "a mask and a picture" if base.picture_input == "inpainting" else "a picture"
        raise IncompatibleError(
            f"the base {name} is an {base.picture_input} model: its denoiser takes {inputs} beside the latents",
            "`objtune place` draws into photos with it; elsewhere use the text-to-image model that it came from",
        )
    return base


def _find(name: str, clip_model: str, vae: str, prediction: str, parts: str) -> BaseSpec:
    prediction = {"v": "v_prediction"}.get(prediction, prediction)
    vae_path = vae_override.find_vae(vae) if vae else None
    if name == "toybox":
        return _describe_folder("toybox", TOYBOX_FOLDER, clip_model, vae_path, prediction)
    path = Path(paths.to_model(name))
    if path.is_dir():
        return _describe_folder(path.resolve().name, path, clip_model, vae_path, prediction)
    if path.is_file():
        single_file.check_kind(path)
        denoiser = denoiser_file.read(path, FAMILIES)
        if denoiser is not None:
            return _describe_denoiser(denoiser, clip_model, prediction, parts)
        return _describe_file(path, clip_model, vae_path, prediction)
    repository = hub_cache.resolve_hub_id(name)
    snapshot = hub_cache.find_snapshot(repository)
    if snapshot is None:
        no_folder = f"; there is no folder {name} here" if path.parent.is_dir() and "/" in name else ""
        raise ResourceError(
            f"the weights of {name} ({repository}) are not on this machine{no_folder}",
            f"`objtune fetch --base {name}` downloads them; `--base toybox` needs none",
        )
    try:
        return _describe_folder(name, snapshot, clip_model, vae_path, prediction)
    except MissingError as error:
        raise ResourceError(
            f"{name} is only partly on this machine: {error.message}",
            f"`objtune fetch --base {name}` downloads the rest",
        ) from None
    except DamagedError as error:
        raise DamagedError(
            error.message, f"delete {snapshot.parent.parent} and run `objtune fetch --base {name}`"
        ) from None


def _describe_folder(ident: str, folder: Path, clip_model: str, vae: Path | None, prediction: str) -> BaseSpec:
    """Return the base model in a diffusers folder."""
    family = _detect_family(ident, folder)
    _check_prediction(family, prediction)
    folders.check_folder(family, folder, vae)
    if vae is not None and family.vae_class != families.SD1.vae_class:
        raise IncompatibleError(
            f"{ident} is a {family.title}, whose VAE cannot be replaced", "leave the setting `vae` out"
        )
    if vae is not None:
        has_own = (folder / "vae/config.json").is_file()
        vae_override.check_vae(
            vae, folders.read_json(folder if has_own else single_file.LAYOUTS / family.name, "vae/config.json")
        )
    in_config = str(folders.read_json(folder, schedulers.CONFIG).get("prediction_type", family.prediction))
    override = prediction if prediction != in_config else ""
    schedule = {"prediction_type": override} if override else {}
    family.read_scheduler(folder, **schedule)  # refuses a scheduler of another kind
    settings: dict[str, Any] = {}
    if (folder / "toybox.json").exists():
        settings = json.loads((folder / "toybox.json").read_bytes())
    clips = clip_lookup.find_clips(family, folder, clip_model)
    base = BaseSpec(
        id=ident,
        folder=folder,
        fingerprint=fingerprints.fingerprint(folder, family),
        clip_path=clips.first,
        sampling=current_names("generate", settings.get("sampling", family.sampling)),
        training=current_names("train", settings.get("training", DEFAULT_TRAINING | family.training)),
        known_classes=tuple(settings.get("classes", ())),
        toybox_dial=str(settings.get("dial", "")),
        family=family,
        clip_2_path=clips.second,
        clip_model=clips.names,
        prediction=override,
        schedule=schedule,
        picture_input=_find_picture_input(folder, family),
        distilled_from=family.distilled_from(folder),
    )
    return _apply_overrides(base, vae, override)


def _describe_file(path: Path, clip_model: str, vae: Path | None, prediction: str) -> BaseSpec:
    """Return the base model in a single-file checkpoint."""
    checkpoint, override = single_file.choose_prediction(path, prediction)
    family = checkpoint.family
    _check_prediction(family, prediction)
    if not checkpoint.has_vae and vae is None:
        raise IncompatibleError(f"{path} has no VAE", f"use {vae_override.HOW}")
    folder = single_file.LAYOUTS / family.name
    if vae is not None:
        vae_override.check_vae(vae, folders.read_json(folder, "vae/config.json"))
    clips = clip_lookup.find_clips(family, folder, clip_model)
    assumption = (
        f"{path.name} does not name its prediction type; {checkpoint.prediction} is assumed, as in the first "
        f"models of {family.title}; change it with `--set prediction_type=epsilon`"
    )
    base = BaseSpec(
        id=path.name,
        folder=folder,
        fingerprint=fingerprints.fingerprint(folder, family, path),
        clip_path=clips.first,
        sampling=family.sampling,
        training=DEFAULT_TRAINING | family.training,
        known_classes=(),
        toybox_dial="",
        family=family,
        clip_2_path=clips.second,
        clip_model=clips.names,
        weights=path,
        prediction=checkpoint.prediction,
        schedule=checkpoint.schedule,
        zero_snr=checkpoint.zero_snr,
        picture_input=checkpoint.picture_input,
        notes=(assumption,) if checkpoint.assumed and family is families.SD2 and not checkpoint.picture_input else (),
    )
    return _apply_overrides(base, vae, override)


def _describe_denoiser(file: denoiser_file.DenoiserFile, clip_model: str, prediction: str, parts: str) -> BaseSpec:
    """Return the base model of a denoiser's file and the parts of another model of its family.

    Raises:
        ResourceError: The parts are not on this machine. IncompatibleError: They are of another family or size.
    """
    own = next(iter(file.family.hub))
    try:
        base = _find(parts or own, clip_model, "", prediction, "")
    except ResourceError as error:
        raise ResourceError(
            f"{file.path} is a denoiser alone, and its text encoder and VAE are not on this machine",
            error.hint if parts else f"`objtune fetch --base {own}` downloads them; or `--set base_parts=FOLDER`",
        ) from None
    if base.family is not file.family or base.weights is not None:
        raise IncompatibleError(
            f"{file.path} is a denoiser of {file.family.title}, and {parts} has no parts for it",
            f"give a diffusers folder of {file.family.title}: `--set base_parts=…`",
        )
    file.check_parts(base.folder)
    note = f"{file.path.name} does not say whether it is distilled: it is taken as {base.id} is"
    return replace(
        base,
        id=file.path.name,
        fingerprint=fingerprints.fingerprint(base.folder, file.family, file.path),
        weights=file.path,
        notes=(*base.notes, note),
    )


def _find_picture_input(folder: Path, family: Family) -> model_kind.PictureInput:
    config = folders.read_json(folder, f"{family.denoiser}/config.json")
    latents = int(config.get("out_channels") or config.get("in_channels") or 4)
    return model_kind.picture_input(int(config.get("in_channels") or latents), latents)


def _check_prediction(family: Family, prediction: str) -> None:
    if prediction and family.prediction == "flow":
        raise IncompatibleError(
            f"{family.title} predicts the velocity of a flow, not {prediction}",
            "leave the setting `prediction_type` out",
        )


def _apply_overrides(base: BaseSpec, vae: Path | None, prediction: str) -> BaseSpec:
    """Return the base with another VAE or prediction; each changes its fingerprint."""
    base = replace(base, sampling=DISTILLED_SAMPLING.get(schedulers.name_sampler(base.scheduler), base.sampling))
    base = replace(base, sampling=base.family.distilled_sampling) if base.distilled_from else base
    if vae is None and not prediction:
        return base
    digest = hashlib.sha256(f"{base.fingerprint}\0{prediction}\0".encode())
    for path in sorted(vae.glob("*") if vae is not None and vae.is_dir() else [vae] if vae is not None else []):
        if (path == vae or path.suffix in (".json", ".safetensors")) and path.is_file():
            fingerprints.add_file(digest, path, path.name, is_weights=path.suffix != ".json")
    return replace(base, fingerprint=digest.hexdigest(), vae=vae, prediction_override=prediction)


def _detect_family(ident: str, folder: Path) -> Family:
    try:
        family = families.detect_family(folder)
    except FileNotFoundError:
        raise MissingError(
            f"{folder} is not a diffusers model: it has no model_index.json", _suggest_folder(folder)
        ) from None
    except (ValueError, KeyError, TypeError, OSError):
        folders.read_json(folder, "model_index.json")  # its message is more exact
        raise DamagedError(f"{folder}/model_index.json does not say what model it is", folders.AGAIN) from None
    if family is None:
        kind = json.loads((folder / "model_index.json").read_bytes())["_class_name"]
        supported = ", ".join(f"{each.title} ({each.pipeline})" for each in FAMILIES)
        raise IncompatibleError(f"{ident} is a {kind}", f"supported: {supported}")
    return family


def _suggest_folder(folder: Path) -> str:
    """Return a hint that names a base inside or around a folder that is none."""
    if (folder / "snapshots").is_dir():
        snapshots = sorted((folder / "snapshots").iterdir())
        snapshot = next((path for path in snapshots if (path / "model_index.json").exists()), None)
        if snapshot:
            return f"it is a repository of the hub's cache: `--base {shlex.quote(str(snapshot))}`"
    if (folder.resolve().parent / "model_index.json").exists():
        parent = folder.parent if folder.name else folder.resolve().parent
        return f"it is a part of a base: `--base {shlex.quote(str(parent))}`"
    checkpoints = sorted(folder.glob("*.safetensors"))
    if len(checkpoints) == 1:
        return f"if the checkpoint in it is meant: `--base {shlex.quote(str(checkpoints[0]))}`"
    return "give the folder that `save_pretrained` wrote"


def suggest_base_option(record: Mapping[str, str], *search_folders: Path) -> str:
    """Return the `--base` option that selects the base of an artifact, for a hint.

    Args:
        record: The base's entry in the artifact's record.
        search_folders: Folders, beside the present one, in which the base may lie.
    """
    ident = record.get("id", "?")
    vae = f" with `--set vae=` and its VAE {record['vae']}" if "vae" in record else ""
    if ident == "toybox" or ident in hub_cache.HUB_REPOSITORIES or ident.count("/") == 1:
        return f"`--base {ident}`{vae}"
    for place in dict.fromkeys((Path(), *search_folders)):
        path = place / ident
        if path.exists():
            with contextlib.suppress(ObjtuneError, OSError):
                if vae or resolve(str(path)).fingerprint == record.get("fingerprint"):
                    option = f"./{path}" if path.parts == (ident,) and path.is_dir() else str(path)
                    return f"`--base {shlex.quote(option)}`{vae}"
    kind = "file" if ident.endswith(".safetensors") else "folder"
    return f"`--base` with the path of the {kind} {ident}{vae}"
