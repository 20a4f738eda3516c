"""`run --on ray`: tasks of Ray, on the cluster that RAY_ADDRESS names or on a Ray of this machine.

A task is a batch; it carries the photos and masks of its jobs. Attempts are counted by the scheduler alone, so that a batch
is treated alike here and in processes of this machine: Ray itself repeats nothing.
"""

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from objtune_cli.cli import ray_task
from objtune_cli.errors import IncompatibleError, InputError, ResourceError
from objtune_cli.version import __version__
from objtune_cli.workflow.job_file import Job
from objtune_cli.workflow.job_pool import describe_task, read_ending
from objtune_cli.workflow.job_scheduler import Ending, Task

TASKS_PER_SLOT = 4
"""Tasks that run or wait in the cluster for each GPU or processor: enough for an autoscaler, few enough for memory."""
RESOURCES_EVERY = 5.0
"""Seconds between looks at the size of the cluster."""
CONNECT_SECONDS = 10.0
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
MAX_FILE_BYTES = 64 << 20
OBJECT_STORE_BYTES = 512 << 20
"""Memory for the files of waiting tasks of a Ray on this machine."""


def connect(jobs: int | None) -> None:
    """Connect to the cluster of RAY_ADDRESS, or start a Ray on this machine that listens on loopback alone.

    Args:
        jobs: Number of tasks at a time on this machine; None: one for each processor or GPU.

    Raises:
        ResourceError: Ray is not installed, or no cluster answers.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition(":")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not address or host in LOOPBACK:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # else Ray takes the address of the network
    ray = _import_ray()
    if port.isdecimal() and "//" not in host:
        _check_listening(host, int(port))
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
    if not address:
        own = {"num_cpus": jobs, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        options |= own | {"_node_ip_address": "127.0.0.1"}
    try:
        ray.init(address=address or "local", **options)
    except Exception as error:
        where = f"no Ray cluster answers at {address}" if address else "Ray does not start on this machine"
        raise ResourceError(f"{where}: {str(error).splitlines()[0][:200]}", "check RAY_ADDRESS, or unset it") from None


def _check_listening(host: str, port: int) -> None:
    """Refuse an address at which nothing listens; Ray itself tries for minutes.

    Raises:
        ResourceError: Names it.
    """
    try:
        socket.create_connection((host.strip("[]"), port), CONNECT_SECONDS).close()
    except OSError as error:
        raise ResourceError(
            f"no Ray cluster answers at {host}:{port}: {error.strerror or error}", "check RAY_ADDRESS, or unset it"
        ) from None


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ResourceError("Ray is not installed", "`pip install 'objtune[ray]'`, also on the cluster") from None
    return ray


class RayWorkers:
    """Tasks in a Ray cluster.

    Attributes:
        project: The project's folder or address, which all machines see.
    """

    def __init__(self, project: str, work: Callable[..., dict[str, Any]] = ray_task.work) -> None:
        """`work`: what a task does, with the arguments of `ray_task.work`."""
        self._ray = _import_ray()
        self.project = project
        self._tasks: dict[Any, Task] = {}
        self._ended: list[tuple[Task, Ending]] = []
        self._settings = {k: v for k, v in os.environ.items() if k.startswith("OBJTUNE_") and k != "OBJTUNE_PROJECT"}
        self._signum = 0
        self._looked = -RESOURCES_EVERY
        self._slots = 1
        self._has_gpu = False
        remote = self._ray.remote(max_retries=0, max_calls=0)(work)
        self._on_cpu, self._on_gpu = remote.options(num_cpus=1), remote.options(num_cpus=1, num_gpus=1)

    @property
    def slots(self) -> int:
        """Tasks that may run or wait in the cluster, which may grow and shrink."""
        now = time.monotonic()
        if now - self._looked > RESOURCES_EVERY:
            resources = self._ray.cluster_resources()
            self._has_gpu = self._has_gpu or resources.get("GPU", 0) >= 1
            self._slots = TASKS_PER_SLOT * max(1, int(resources.get("GPU" if self._has_gpu else "CPU", 1)))
            self._looked = now
        return self._slots

    def submit(self, task: Task) -> None:
        """Send a task and the files of its jobs to the cluster."""
        try:
            files = dict(read_files(path for job in task.jobs for path in job.files))
        except InputError as error:
            self._ended.append((task, Ending("divide", message=error.message, code=error.code)))
            return
        work = self._on_gpu if self._has_gpu else self._on_cpu
        self._tasks[work.remote(describe_task(task, self.project), files, self._settings, __version__)] = task

    def wait(self, seconds: float) -> list[tuple[Task, Ending]]:
        """Wait at most so long for tasks to end, and return them."""
        finished_tasks, self._ended = self._ended, []
        if not self._tasks:
            time.sleep(0 if finished_tasks else seconds)
            return finished_tasks
        self._ray.wait(list(self._tasks), num_returns=1, timeout=0 if finished_tasks else seconds)
        ready, _ = self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)
        return finished_tasks + [(self._tasks.pop(ref), self._read(ref)) for ref in ready]

    def _read(self, ref: Any) -> Ending:
        """The end of a task, or what became of its worker."""
        errors = self._ray.exceptions
        try:
            document = self._ray.get(ref)
        except errors.OutOfMemoryError as error:
            return Ending("memory", message=_first_line(error))
        except (errors.NodeDiedError, errors.LocalRayletDiedError, errors.ObjectLostError) as error:
            return Ending("lost", message=_first_line(error))
        except errors.WorkerCrashedError:
            return Ending("died", message="killed", code=137)
        except errors.TaskCancelledError:
            return Ending("lost", message="stopped")
        except errors.RayError as error:
            return Ending("divide", message=_first_line(error))
        ending = read_ending(document, document["results"])
        if not self._signum:
            return ending
        code = 128 + self._signum  # the cluster knows one signal alone
        return replace(ending, results=tuple(replace(r, code=code) if r.code >= 128 else r for r in ending.results))

    def stop(self, signum: int) -> None:
        """Ask all tasks to save their state and end; those that wait do not start."""
        self._signum = signum
        for ref in self._tasks:
            self._ray.cancel(ref, force=False)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


def read_files(paths: Iterable[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The files that a task carries: path to the bytes of the file by its name, or of all files of a folder.

    Web addresses and files that are not there are left to the worker, which reads or refuses them.

    Raises:
        InputError: A file is too large.
    """
    for text in paths:
        path = Path(text)
        with suppress(OSError, ValueError):
            files = (
                [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else []
            )
            for file in files:
                if file.stat().st_size > MAX_FILE_BYTES:
                    hint = "make it smaller, or put it where all workers read it and give its web address"
                    raise InputError(f"{file} has more than {MAX_FILE_BYTES >> 20} MiB", hint)
            if files:
                yield text, {file.name: file.read_bytes() for file in files}


def check_cluster(project: str, jobs: Sequence[Job], default_base: str) -> None:
    """Compare objtune, the bases of the jobs and the project on each machine of the cluster with those here.

    Raises:
        IncompatibleError: A machine lacks one of them, or has another one.
    """
    bases = sorted({next((w[7:] for w in job.settings if w.startswith("--base=")), default_base) for job in jobs})
    here = ray_task.describe_machine(bases, project)
    for machine, there in _describe_machines(bases, project).items():
        if there["version"] != __version__:
            what = f"objtune {there['version']}" if there["version"] else "no objtune"
            raise IncompatibleError(
                f"the Ray machine {machine} has {what}, this command is objtune {__version__}",
                f"`pip install objtune=={__version__}` in the environment of its Ray",
            )
        for base in bases:
            if there["bases"][base] != here["bases"][base]:
                raise IncompatibleError(
                    f"the Ray machine {machine} has {'another' if there['bases'][base] else 'no'} base {base}",
                    f"`objtune fetch --base {base}`, or copy its folder, to the same place on all machines",
                )
        if there["project"] != here["project"]:
            raise IncompatibleError(
                f"the Ray machine {machine} does not see the project {project}",
                "put it into a folder that all machines share, or into a bucket whose credentials all of them have",
            )


def _describe_machines(bases: Sequence[str], project: str) -> Mapping[str, dict[str, Any]]:
    """What each machine of the cluster has, by its address."""
    ray = _import_ray()
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def probe() -> dict[str, Any]:  # a nested function travels by value, also to machines without objtune
        try:
            from objtune_cli.cli import ray_task as there
        except ImportError:
            return {"version": ""}
        return there.describe_machine(bases, project)

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0)]
    remote = ray.remote(num_cpus=0, max_retries=3)(probe)
    probes = {
        f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})": remote.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in nodes
    }
    return {name: ray.get(ref) for name, ref in probes.items()}


def disconnect() -> None:
    """Leave the cluster; a Ray that was started for this command ends."""
    _import_ray().shutdown()
