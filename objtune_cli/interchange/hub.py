"""`fetch`: download a base model or a feature model from the Hugging Face hub. No other module opens a connection."""

import contextlib
import errno
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from objtune_cli.errors import InputError, ObjtuneError, ResourceError, Stopped, UsageError
from objtune_cli.interchange import hub_environment
from objtune_cli.models import hub_cache, registry
from objtune_cli.models.families import fingerprints, vae_override
from objtune_cli.workflow.reporting import Reporter

FREE_RESERVE = 256 << 20
"""Bytes that must stay free on the disk after a download."""


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


HUB_TIMEOUT = 20.0
"""Seconds to wait for the hub's first response."""


def run(name: str, report: Reporter, stopped: Callable[[], int]) -> FetchResult:
    """Download the safetensors and configs of a base model at one commit, unless they are cached.

    Raises:
        UsageError: Unknown name. ResourceError: No connection, no such repository or no disk space. InputError: The
        repository has no diffusers model in safetensors. Stopped: A signal arrived; finished files stay.
    """
    if name == "toybox" or Path(name).is_dir():
        report.note(f"{name} lies here already: nothing to bring")
        return FetchResult(name, "", "", registry.resolve(name).folder)
    repository = hub_cache.hub_id(name)
    revision = hub_cache.REVISIONS.get(repository, "main")
    here = hub_cache.find_snapshot(repository)
    if here is not None and _is_complete(name):
        report.note(f"{name} is here already")
        return FetchResult(name, repository, here.name, here)
    return _download(name, repository, revision, report, stopped, hub_cache.BASE_FILES, _check_base_files)


def fetch_model(repository: str, report: Reporter, stopped: Callable[[], int]) -> FetchResult:
    """Download a CLIP, DINO, SAM or VAE model as `run` does; its pickle only if there are no safetensors.

    Raises:
        UsageError: The id is not a hub id. Otherwise as `run`.
    """
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        raise UsageError(f"{repository} is no hub id", "for example `objtune fetch --model facebook/dino-vits16`")
    here = hub_cache.find_transformers_model(repository) or vae_override.cached(repository)
    if here is not None:
        report.note(f"{repository} is here already")
        return FetchResult(repository, repository, here.name, here)
    return _download(
        repository,
        repository,
        "main",
        report,
        stopped,
        (*hub_cache.FEATURE_MODEL_FILES, *hub_cache.SEGMENTER_FILES, *vae_override.FILES, hub_cache.PICKLED_WEIGHTS),
        _check_feature_model_files,
    )


def _download(
    name: str, repository: str, revision: str, report: Reporter, stopped: Callable[[], int],
    patterns: tuple[str, ...], check: Callable[[str, list[str]], tuple[str, ...]],
) -> FetchResult:  # fmt: skip
    """Download files by patterns; `check` refuses other kinds of models and returns further files to ignore."""
    from huggingface_hub import HfApi, snapshot_download

    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": list(patterns), "ignore_patterns": []}
    hub_environment.check_environment()
    with _translate_errors(repository), _silence_client_log():
        HfApi().model_info(
            repository, revision=revision, timeout=HUB_TIMEOUT
        )  # says at once that nobody is there; what follows would try for half a minute
        listed = snapshot_download(
            repository, dry_run=True, tqdm_class=_progress_bar_class(report, stopped, 0), **wanted
        )
        wanted["ignore_patterns"] += check(name, [each.filename for each in listed])
        missing = [each for each in listed if each.will_download and each.filename not in wanted["ignore_patterns"]]
        size = sum(each.file_size for each in missing)
        _check_disk_space(name, size)
        report.note(f"{repository}: {len(missing)} files, {size / 1e9:.2f} GB")
        folder = Path(snapshot_download(repository, tqdm_class=_progress_bar_class(report, stopped, size), **wanted))
    report.step("fetch", max(size, 1), max(size, 1))
    return FetchResult(name, repository, folder.name, folder, len(missing), size, reused=False)


def _check_base_files(name: str, files: list[str]) -> tuple[str, ...]:
    """Check that a repository has a base model, and return variants of weights to ignore.

    Raises:
        InputError: The repository has no diffusers model in safetensors.
    """
    weights = [file for file in files if file.startswith(("unet/", "transformer/")) and file.endswith(".safetensors")]
    if "model_index.json" not in files or not weights:
        raise InputError(
            f"{name} holds no diffusers model in safetensors",
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
        registry.resolve(name)
    except ResourceError:
        return False
    except ObjtuneError:
        return True
    return True


def _check_feature_model_files(name: str, files: list[str]) -> tuple[str, ...]:
    """Check that a repository has a transformers model, and return the pickle to ignore if there are safetensors.

    Raises:
        InputError: The repository has no such model.
    """
    if "config.json" in files and vae_override.FILES[-1] in files:
        return (hub_cache.PICKLED_WEIGHTS,)
    if "config.json" not in files or not {"model.safetensors", hub_cache.PICKLED_WEIGHTS} & set(files):
        raise InputError(
            f"{name} holds no model of transformers",
            "give the id of a repository with config.json and model.safetensors",
        )
    return (hub_cache.PICKLED_WEIGHTS,) if "model.safetensors" in files else ()


def _check_disk_space(name: str, size: int) -> None:
    """Check the free disk space.

    Raises:
        ResourceError: The download does not fit.
    """
    place = _cache_folder()
    free = shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free
    if 0 < free < size + FREE_RESERVE:  # some network disks always report 0
        raise ResourceError(
            f"{name} takes {size / 1e9:.2f} GB and {place} has {free / 1e9:.2f} GB free",
            "free some space, or set HF_HOME to a folder on a larger disk",
        )


def _cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _progress_bar_class(report: Reporter, stopped: Callable[[], int], total: int) -> type:
    """A tqdm class for the hub client that reports progress and raises `Stopped` after a signal.

    Two bars count each byte, when it is received and when it is written; the larger count is reported.
    """
    from tqdm import tqdm

    lock, ahead = threading.Lock(), 0

    class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})
            self.counts = options.get("unit") == "B"

        def update(self, n: float | None = 1) -> None:
            nonlocal ahead
            if stopped():
                raise Stopped(
                    stopped(), "stopped while fetching", "the same command goes on; files that are whole stay"
                )
            self.n += n or 0
            with lock:
                if self.counts and ahead < self.n < total:
                    ahead = int(self.n)
                    report.step("fetch", ahead, total)

    return Bar


@contextlib.contextmanager
def _silence_client_log() -> Iterator[None]:
    """Silence the client's log, which repeats every failure."""
    import logging

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _is_client_error(error: Exception) -> bool:
    """Whether the hub client or a library below it raised an error; each layer has its own classes."""
    return isinstance(error, OSError | RuntimeError) or any(
        c.__module__.startswith(("huggingface_hub", "httpx")) for c in type(error).__mro__
    )


@contextlib.contextmanager
def _translate_errors(repository: str) -> Iterator[None]:
    """Translate errors of the hub client into a `ResourceError` with a hint."""
    try:
        yield
    except ObjtuneError:
        raise
    except Exception as error:
        if not (_is_client_error(error) or isinstance(error, ImportError)):
            raise
        raise _translate_error(error, repository) from error


def _translate_error(error: Exception, repository: str) -> ResourceError:
    from huggingface_hub import constants, errors

    cause = error.__cause__ if isinstance(error, errors.DryRunError) else error
    if isinstance(cause, errors.GatedRepoError):
        hint = f"accept its terms at {constants.ENDPOINT}/{repository}, then `hf auth login` or set HF_TOKEN"
        return ResourceError(f"{repository} asks for an account", hint)
    if isinstance(cause, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
        return ResourceError(
            f"{constants.ENDPOINT} has no {repository}", "check the name; one that is not public needs HF_TOKEN"
        )
    if constants.HF_HUB_OFFLINE:
        return ResourceError(
            f"{repository} cannot be fetched: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE and run the same command"
        )
    if isinstance(cause, OSError) and cause.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
    ):
        return ResourceError(
            f"{_cache_folder()} cannot be written: {cause.strerror}",
            "free some space, or set HF_HOME to another folder",
        )
    hint = f"{hub_environment.suggest_variables()}check the connection and run the same command; or copy the model's folder here and give it as `--base DIR`"
    return ResourceError(f"{repository} cannot be fetched from {constants.ENDPOINT}", hint)
