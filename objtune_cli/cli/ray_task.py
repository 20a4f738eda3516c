"""What a task of Ray does on a worker: it unpacks the files of its jobs, works on the batch, and returns the results."""

import contextlib
import gc
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from objtune_cli.cli import environment, job_batch
from objtune_cli.cli.signals import HANDLED, StopFlag
from objtune_cli.errors import ObjtuneError
from objtune_cli.version import __version__

Files = Mapping[str, Mapping[str, bytes]]
"""Path on the machine that sends a task, to the bytes of its files by name: one, or those of a folder."""


def work(task: Mapping[str, Any], files: Files, settings: Mapping[str, str], version: str) -> dict[str, Any]:
    """Work on a task of a machine with the same version of objtune.

    Args:
        settings: OBJTUNE_… variables of that machine.

    Returns:
        The ending of `job_batch.run_task`, and `results`.
    """
    if version != __version__:
        message = f"a worker has objtune {__version__}, and this batch comes from objtune {version}"
        return {"how": "divide", "code": 6, "message": message, "seconds": {}, "results": []}
    results: list[dict[str, Any]] = []
    environment.repair_environment()
    os.environ.update(settings)  # a worker process serves one `run` alone
    with tempfile.TemporaryDirectory(prefix="objtune-") as folder, _stop_flag() as stop:
        places = unpack_files(files, Path(folder))
        ending = job_batch.run_task(_relocate(task, places), stop, lambda result: results.append(asdict(result)))
    for document in (ending, *results):
        for path, place in places.items():
            document["message"] = document["message"].replace(place, path)
    gc.collect()
    return {**ending, "results": results}


def unpack_files(files: Files, folder: Path) -> dict[str, str]:
    """Write the files of a task, each under its own name in a folder of its own; their places by their former paths."""
    places: dict[str, str] = {}
    for number, (path, contents) in enumerate(files.items()):
        target = folder / str(number)
        target.mkdir()
        for name, data in contents.items():
            (target / name).write_bytes(data)
        is_file = list(contents) == [Path(path).name]
        places[path] = str(target / Path(path).name if is_file else target)
    return places


def _relocate(task: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
    """The task with the paths of its files replaced by their places here."""

    def replace_path(word: str) -> str:
        option, equals, value = word.rpartition("=")
        if word in places:
            return places[word]
        return f"{option}={places[value]}" if equals and value in places else word

    jobs = [
        job | {"commands": [[replace_path(w) for w in words] for words in job["commands"]]}
        for job in task.get("jobs", ())
    ]
    return {**task, "jobs": jobs} if "jobs" in task else dict(task)


@contextlib.contextmanager
def _stop_flag() -> Iterator[StopFlag]:
    """Signals of this task; Ray's own handlers come back afterwards."""
    earlier = {number: signal.getsignal(number) for number in HANDLED}
    try:
        yield StopFlag()
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def describe_machine(bases: Sequence[str], project: str) -> dict[str, Any]:
    """Version of objtune, fingerprints of bases ("" where one is missing), and a digest of the project's settings file."""
    import hashlib

    from objtune_cli.models import registry
    from objtune_cli.store.project import SETTINGS_FILE, find_project

    fingerprints = dict.fromkeys(bases, "")
    for base in bases:
        with contextlib.suppress(ObjtuneError):
            fingerprints[base] = registry.resolve(base).fingerprint
    settings = ""
    with contextlib.suppress(ObjtuneError, OSError):
        settings = hashlib.sha256(find_project(project).store.backend.read(SETTINGS_FILE)).hexdigest()
    return {"version": __version__, "bases": fingerprints, "project": settings}
