"""`fetch`: download a base model with all that a run on photographs needs, or one other model, from the Hugging Face hub."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from objtune_cli.errors import InputError, ObjtuneError, ResourceError, UsageError
from objtune_cli.interchange import hub_download
from objtune_cli.interchange.hub_download import DownloadPlan, DownloadProgress
from objtune_cli.models import hub_cache, needed_models, registry
from objtune_cli.models.families import fingerprints, vae_override
from objtune_cli.workflow.reporting import Reporter


@dataclass(frozen=True, slots=True)
class FetchResult:
    """Location of a fetched model; `files` and `bytes` count what was downloaded now."""

    base: str
    repository: str
    revision: str
    folder: Path
    files: int = 0
    bytes: int = 0
    reused: bool = True


def fetch_base(
    name: str,
    report: Reporter,
    stopped: Callable[[], int],
    *,
    base_only: bool = False,
    with_metrics: bool = False,
) -> list[FetchResult]:
    """Download a base model and what a run on photographs needs besides, unless it is cached; the base comes first.

    Args:
        base_only: Leave out CLIP models and segmenter. with_metrics: Also bring what `evaluate` needs on photographs.

    Raises:
        UsageError: Unknown name. ResourceError: No connection, no such repository or no disk space. InputError: The
        repository has no diffusers model in safetensors. DamagedError: A file has another digest than the hub names.
        Stopped: A signal arrived; finished files stay.
    """
    if name == "toybox" or Path(name).is_dir():
        report.note(f"{name} is already downloaded")
        return [FetchResult(name, "", "", registry.resolve(name).folder)]
    progress = DownloadProgress(report, stopped)
    base = _plan_base(name, progress)
    if base_only:
        return _bring([base], report, progress)
    family = needed_models.family_of(name)
    if family is None:  # a hub id: its own files say which family it is
        downloads = _bring([base], report, progress)
        family, base = (
            registry.resolve(name, inpainting=True).family,
            DownloadPlan(name, base.repository, "", folder=downloads[0].folder),
        )
    else:
        downloads = []
    needed = needed_models.companions(family, base.folder, with_metrics=with_metrics)
    plans = [plan for each in needed if (plan := _plan_companion(each, report, progress)) is not None]
    return [*downloads, *_bring(plans if downloads else [base, *plans], report, progress)]


def fetch_model(repository: str, report: Reporter, stopped: Callable[[], int]) -> FetchResult:
    """Download a CLIP, DINO, SAM, salient-object or VAE model as `fetch_base` does; its pickle only if there are no safetensors.

    Raises:
        UsageError: The id is not a hub id. Otherwise as `fetch_base`.
    """
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        raise UsageError(f"{repository} is not a hub id", "for example `objtune fetch --model facebook/dino-vits16`")
    progress = DownloadProgress(report, stopped)
    return _bring([_plan_model(repository, progress)], report, progress)[0]


def _plan_base(name: str, progress: DownloadProgress) -> DownloadPlan:
    repository = hub_cache.resolve_hub_id(name)
    revision = hub_cache.REVISIONS.get(repository, "main")
    here = hub_cache.find_snapshot(repository)
    if here is not None and _is_complete(name):
        return DownloadPlan(name, repository, here.name, folder=here)
    return hub_download.plan_download(name, repository, revision, progress, hub_cache.BASE_FILES, _check_base_files)


def _plan_model(repository: str, progress: DownloadProgress) -> DownloadPlan:
    here = (
        hub_cache.find_transformers_model(repository)
        or vae_override.cached(repository)
        or hub_cache.find_onnx_model(repository)
    )
    if here is not None:
        return DownloadPlan(repository, repository, here.name, folder=here)
    patterns = (
        *hub_cache.FEATURE_MODEL_FILES,
        *hub_cache.SEGMENTER_FILES,
        *vae_override.FILES,
        *hub_cache.WEIGHT_SHARDS,
        hub_cache.PICKLED_WEIGHTS,
        *hub_cache.ONNX_FILES,
    )
    return hub_download.plan_download(repository, repository, "main", progress, patterns, _check_feature_model_files)


def _plan_companion(
    needed: needed_models.NeededModel, report: Reporter, progress: DownloadProgress
) -> DownloadPlan | None:
    """Plan a model beside the base; one in a layout that cannot be opened is left out with a note."""
    if needed.folder is not None:
        return DownloadPlan(needed.repository, needed.repository, needed.folder.name, folder=needed.folder)
    try:
        return _plan_model(needed.repository, progress)
    except InputError as error:
        report.note(f"{needed.what}: {error.message}; it is skipped")
        return None


def _bring(plans: list[DownloadPlan], report: Reporter, progress: DownloadProgress) -> list[FetchResult]:
    """Say what is missing and how large it is, then download it."""
    missing = [plan for plan in plans if plan.folder is None]
    for plan in plans:
        report.note(
            f"{plan.name} is already downloaded"
            if plan.folder is not None
            else f"{plan.repository}: {len(plan.files)} files, {plan.size / 1e9:.2f} GB"
        )
    progress.total = progress.finished + sum(plan.size for plan in missing)
    if len(missing) > 1:
        report.note(f"altogether {sum(plan.size for plan in missing) / 1e9:.2f} GB")
    if missing:
        hub_download.check_disk_space(", ".join(plan.name for plan in missing), sum(plan.size for plan in missing))
    return [
        FetchResult(plan.name, plan.repository, plan.revision, plan.folder)
        if plan.folder is not None
        else _finish(plan, hub_download.download(plan, progress))
        for plan in plans
    ]


def _finish(plan: DownloadPlan, folder: Path) -> FetchResult:
    return FetchResult(plan.name, plan.repository, folder.name, folder, len(plan.files), plan.size, reused=False)


def _check_base_files(name: str, files: list[str]) -> tuple[str, ...]:
    """Check that a repository has a base model, and return variants of weights to ignore.

    Raises:
        InputError: The repository has no diffusers model in safetensors.
    """
    weights = [file for file in files if file.startswith(("unet/", "transformer/")) and file.endswith(".safetensors")]
    if "model_index.json" not in files or not weights:
        raise InputError(
            f"{name} contains no diffusers model in safetensors",
            "give the id of a repository with model_index.json and unet/*.safetensors or transformer/*.safetensors",
        )
    return redundant_variants(files)


def redundant_variants(files: list[str]) -> tuple[str, ...]:
    """Weights of variants (fp16, non_ema) in folders that also have the plain weights."""
    others = {file for file in files if any(fnmatch(file, pattern) for pattern in fingerprints.IGNORED_FILES)}
    plain = {file.rpartition("/")[0] for file in files if file.endswith(".safetensors") and file not in others}
    return tuple(sorted(file for file in others if file.rpartition("/")[0] in plain))


def _is_complete(name: str) -> bool:
    """Whether all parts of a base are on this machine; fetching does not repair other problems."""
    try:
        registry.resolve(name, inpainting=True)
    except ResourceError:
        return False
    except ObjtuneError:
        return True
    return True


def _check_feature_model_files(name: str, files: list[str]) -> tuple[str, ...]:
    """Check that a repository has a transformers model, and return the further forms of its weights, which are ignored.

    Raises:
        InputError: The repository has no such model.
    """
    shards = [file for file in files if any(fnmatch(file, pattern) for pattern in hub_cache.WEIGHT_SHARDS)]
    forms = [
        [file for file in files if file == hub_cache.SINGLE_WEIGHTS],
        shards if hub_cache.SHARD_INDEX in shards else [],
        [file for file in files if file == hub_cache.PICKLED_WEIGHTS],
    ]
    if vae_override.FILES[-1] in files:
        forms.insert(0, [vae_override.FILES[-1]])
    networks = [file for file in files if file.removesuffix("_data") in hub_cache.ONNX_NETWORKS]
    forms.append(networks if "preprocessor_config.json" in files else [])
    best = next((form for form in forms if form), None)
    if "config.json" not in files or best is None:
        raise InputError(
            f"{name} contains no transformers model",
            "give the id of a repository with config.json and model.safetensors",
        )
    return tuple(file for form in (*forms, shards, networks) for file in form if file not in best)
