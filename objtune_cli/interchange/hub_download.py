"""Plans and makes one download from the Hugging Face hub, and checks its digests."""

import contextlib
import errno
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from objtune_cli.errors import DamagedError, ObjtuneError, ResourceError, Stopped
from objtune_cli.interchange import hub_environment
from objtune_cli.store import regular_files
from objtune_cli.workflow.reporting import Reporter

FREE_RESERVE = 256 << 20
"""Bytes that must stay free on the disk after a download."""
HUB_TIMEOUT = 20.0
"""Seconds to wait for the hub's first response."""


@dataclass(frozen=True, slots=True)
class DownloadPlan:
    """What a repository lacks on this machine.

    Attributes:
        name: What the user calls it. revision: Commit or branch. patterns, ignored: Which files are taken.
        files: Names of files that are missing. size: Their bytes. digests: SHA-256 of those that the hub names one for.
        folder: Where it is, if nothing is missing.
    """

    name: str
    repository: str
    revision: str
    patterns: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    size: int = 0
    digests: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None


def plan_download(
    name: str, repository: str, revision: str, progress: "DownloadProgress",
    patterns: tuple[str, ...], check: Callable[[str, list[str]], tuple[str, ...]],
) -> DownloadPlan:  # fmt: skip
    """List what a download would bring.

    Args:
        check: Refuses other kinds of models and returns further files to ignore.

    Raises:
        ResourceError: No connection or no such repository. Whatever `check` raises.
    """
    from huggingface_hub import HfApi, snapshot_download

    hub_environment.check_environment()
    with _translate_errors(repository), _silence_client_log():
        info = HfApi().model_info(  # says at once that nobody is there; what follows would try for half a minute
            repository, revision=revision, timeout=HUB_TIMEOUT, files_metadata=True
        )
        listed = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(patterns),
            dry_run=True,
            tqdm_class=progress.bar_class(0),
        )
        ignored = check(name, [each.filename for each in listed])
    missing = [each for each in listed if each.will_download and each.filename not in ignored]
    digests = {each.rfilename: each.lfs.sha256 for each in info.siblings or () if each.lfs}
    size = sum(int(each.file_size or 0) for each in missing)
    files = tuple(each.filename for each in missing)
    return DownloadPlan(name, repository, revision, patterns, ignored, files, size, digests)


def download(plan: DownloadPlan, progress: "DownloadProgress") -> Path:
    """Download what is missing and return the folder.

    Raises:
        ResourceError: No connection. Stopped: A signal arrived; finished files stay. DamagedError: A file has another digest than the hub names.
    """
    from huggingface_hub import snapshot_download

    with _translate_errors(plan.repository), _silence_client_log():
        folder = Path(
            snapshot_download(
                plan.repository,
                revision=plan.revision,
                allow_patterns=list(plan.patterns),
                ignore_patterns=list(plan.ignored),
                tqdm_class=progress.bar_class(plan.size),
            )
        )
    _check_digests(plan, folder)
    progress.finish(plan.size)
    return folder


def _check_digests(plan: DownloadPlan, folder: Path) -> None:
    """Compare the downloaded files with the digests that the hub names, and delete a damaged one.

    Raises:
        DamagedError: A file has another digest.
    """
    for name in plan.files:
        path = folder / name
        if name in plan.digests and regular_files.file_sha256(path.resolve()) != plan.digests[name]:
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise DamagedError(
                f"{name} of {plan.repository} was damaged by the download: its SHA-256 differs from the hub's",
                "run the same command again",
            )


def check_disk_space(name: str, size: int) -> None:
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


class DownloadProgress:
    """Reports the bytes of all downloads of a command as one count, and stops them after a signal.

    Attributes:
        total: Bytes of all downloads. finished: Bytes of those that are complete.
    """

    def __init__(self, report: Reporter, stopped: Callable[[], int], total: int = 0) -> None:
        self.report, self.stopped, self.total = report, stopped, total
        self.finished = 0

    def finish(self, size: int) -> None:
        """Count a complete download."""
        self.finished += size
        self.report.step("fetch", max(self.finished, 1), max(self.total, 1))

    def bar_class(self, size: int) -> type:
        """A tqdm class for the hub client that reports one download of `size` bytes and raises `Stopped` after a signal.

        Two bars count each byte, when it is received and when it is written; the larger count is reported.
        """
        from tqdm import tqdm

        lock, ahead, progress = threading.Lock(), 0, self

        class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **{**options, "disable": True})
                self.counts = options.get("unit") == "B"

            def update(self, n: float | None = 1) -> None:
                nonlocal ahead
                if progress.stopped():
                    raise Stopped(
                        progress.stopped(),
                        "stopped while fetching",
                        "the same command resumes; complete files are kept",
                    )
                self.n += n or 0
                with lock:
                    if self.counts and ahead < self.n < size:
                        ahead = int(self.n)
                        progress.report.step("fetch", progress.finished + ahead, progress.total)

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
        return ResourceError(f"{repository} requires an account", hint)
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
