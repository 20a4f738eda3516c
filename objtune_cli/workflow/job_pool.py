"""Runs tasks in worker processes of this machine: each keeps Python and the libraries loaded, and has a GPU of its own."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from objtune_cli.store.project import Project
from objtune_cli.workflow.job_results import JobResult
from objtune_cli.workflow.job_scheduler import Ending, Task

WORKER_MODULE = "objtune_cli.cli.job_worker"
LOG_FOLDER = ".objtune/log"


def describe_task(task: Task, project: str) -> dict[str, Any]:
    """A task as JSON for a worker."""
    if task.prior is not None:
        return {"project": project, "prior": task.prior.class_word, "settings": task.prior.settings}
    jobs = [{"label": job.label, "classes": job.classes, "commands": job.commands} for job in task.jobs]
    return {"project": project, "jobs": jobs}


def read_ending(document: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Ending:
    """The end of a task as its worker describes it."""
    return Ending(
        document["how"], tuple(JobResult(**each) for each in results), document["message"], document["code"], document["seconds"]
    )  # fmt: skip


def log_file(project: Project, label: str) -> Path:
    """The log of a batch, under the name of its first job; of a job that failed, under its own."""
    return project.local_folder / LOG_FOLDER / f"{label[:100]}.txt"


class WorkerProcess:
    """A process that works on one task at a time; a new one replaces one that ended."""

    def __init__(self, project: Project, environment: Mapping[str, str]) -> None:
        self.project, self.environment = project, environment
        self.task: Task | None = None
        self.results: list[dict[str, Any]] = []
        self.started = 0.0
        self.child: subprocess.Popen[str] | None = None

    def start(self, task: Task, messages: "queue.Queue[Message]") -> None:
        """Give the process a task; its messages go into a queue."""
        if self.child is None or self.child.poll() is not None:
            self.child = self._open()
            threading.Thread(target=_read_messages, args=(self, self.child, messages), daemon=True).start()
        self.task, self.results, self.started = task, [], time.monotonic()
        label = task.jobs[0].label if task.jobs else f"prior-{task.prior.class_word if task.prior else ''}"
        log = log_file(self.project, label.replace("/", "_"))
        log.parent.mkdir(parents=True, exist_ok=True)
        document = describe_task(task, self.project.location) | {
            "log": str(log),
            "again": task.deaths + task.busy > 0,
        }
        assert self.child.stdin is not None
        try:
            self.child.stdin.write(json.dumps(document) + "\n")
            self.child.stdin.flush()
        except BrokenPipeError:  # it was killed while it had nothing to do
            self.child.wait()

    def add(self, result: dict[str, Any]) -> None:
        """Keep the result of a job; the log of one that failed names the log of its batch."""
        self.results.append(result)
        assert self.task is not None
        first = self.task.jobs[0].label
        if result.get("code") and result["name"] != first:
            text = f"error: {result.get('message', '')}\nThe log of its batch is {log_file(self.project, first)}.\n"
            log_file(self.project, result["name"]).write_text(text, encoding="utf-8")

    def _open(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-P", "-m", WORKER_MODULE],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment, text=True,
            start_new_session=True,  # a signal of the terminal reaches it once, through us; a second one would end it unsaved
        )  # fmt: skip

    def died(self) -> Ending:
        """How a process ended that has gone without a word."""
        code = self.child.wait() if self.child else 1
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        seconds = {"worker": round(time.monotonic() - self.started, 3)}
        return Ending(
            "died",
            tuple(JobResult(**each) for each in self.results),
            name,
            128 - code if code < 0 else code or 1,
            seconds,
        )


Message = tuple[WorkerProcess, "subprocess.Popen[str]", dict[str, Any] | None]
"""A worker, its process, and a line of it; None: its output has ended."""


def _read_messages(worker: WorkerProcess, child: "subprocess.Popen[str]", messages: "queue.Queue[Message]") -> None:
    stream: IO[str] | None = child.stdout
    for line in stream or ():
        messages.put((worker, child, json.loads(line)))
    messages.put((worker, child, None))


class LocalWorkers:
    """Worker processes of this machine."""

    def __init__(self, project: Project, slots: int, gpus: Sequence[str] = ()) -> None:
        self.slots = slots
        self._messages: queue.Queue[Message] = queue.Queue()
        self._idle = [
            WorkerProcess(project, worker_environment(slots, gpus[i % len(gpus)] if gpus else "")) for i in range(slots)
        ]
        self._busy: list[WorkerProcess] = []

    def submit(self, task: Task) -> None:
        """Start a task in a process that has none."""
        worker = self._idle.pop(0)
        self._busy.append(worker)
        worker.start(task, self._messages)

    def wait(self, seconds: float) -> list[tuple[Task, Ending]]:
        """Wait at most so long for tasks to end, and return them."""
        finished_tasks = []
        for worker, child, document in self._take(seconds):
            if child is not worker.child or worker.task is None:
                continue
            if document is not None and "how" not in document:
                worker.add(document)
                continue
            ending = worker.died() if document is None else read_ending(document, worker.results)
            finished_tasks.append((worker.task, ending))
            worker.task = None
            self._busy.remove(worker)
            self._idle.insert(0, worker)
        return finished_tasks

    def _take(self, seconds: float) -> Iterator[Message]:
        """Messages that are there, after waiting for the first."""
        try:
            yield self._messages.get(timeout=seconds)
            while True:
                yield self._messages.get_nowait()
        except queue.Empty:
            return

    def stop(self, signum: int) -> None:
        """Ask all processes to save their state and end."""
        for worker in self._busy:
            if worker.child:
                worker.child.send_signal(signum)

    def close(self) -> None:
        """End processes that have nothing to do."""
        for worker in (*self._idle, *self._busy):
            if worker.child and worker.child.stdin:
                worker.child.stdin.close()
                worker.child.wait()


@contextmanager
def local_workers(project: Project, slots: int, gpus: Sequence[str] = ()) -> Iterator[LocalWorkers]:
    """Worker processes that end with the context."""
    workers = LocalWorkers(project, slots, gpus)
    try:
        yield workers
    finally:
        workers.close()


def find_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; empty without GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    devices = [path for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdecimal()]
    return [str(i) for i in range(len(devices))]


def worker_environment(slots: int, gpu: str = "") -> dict[str, str]:
    """The environment of a worker: its GPU, and its share of the processors unless the user sets the number of threads."""
    share = max(1, (os.cpu_count() or 1) // slots)
    threads = {"OMP_NUM_THREADS": str(share)} if slots > 1 and not gpu else {}
    return {
        **threads,
        **os.environ,
        **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])),
    }
