"""Hands batches of jobs to workers, and decides what happens to those that fail; knows no processes and no cluster."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from objtune_cli.workflow.job_file import Job
from objtune_cli.workflow.job_plan import Batch, ClassPrior, JobPlan
from objtune_cli.workflow.job_results import FAILED, STOPPED, JobResult

BUSY_CODE, RETRY_SECONDS, MAX_RETRIES = 8, 2.0, 900
"""Exit code of work that waits for another process; seconds until the next attempt, and number of attempts."""
MAX_DEATHS = 3
"""Workers that a batch may end before it is cut in half, or its only job fails."""
MAX_LOST_NODES = 20
"""Machines that a batch may lose: a machine that goes is seldom the fault of the work on it."""
MEMORY_CODE = 7


@dataclass(slots=True, eq=False)
class Task:
    """A batch, or a class prior that several batches share, on its way to a worker.

    Attributes:
        deaths: Workers that ended on it. lost: machines that went away under it. busy: attempts that met another process.
        after: Earliest time of the next attempt, in seconds of `time.monotonic`.
    """

    jobs: tuple[Job, ...] = ()
    prior: ClassPrior | None = None
    needs: frozenset[ClassPrior] = frozenset()
    deaths: int = 0
    lost: int = 0
    busy: int = 0
    after: float = 0.0


@dataclass(frozen=True, slots=True)
class Ending:
    """How a task ended in its worker.

    Attributes:
        how: "done"; "memory" (it does not fit); "divide" (an error that belongs to one unknown job of several);
            "died" (the worker was killed); "lost" (its machine went away).
        results: Of the jobs that have one.
        message: What the worker reported last.
        code: Exit code of what has no results: of a prior, of a worker that died, of an error.
        seconds: Of the worker, by what was done: "segment", "train", "draw", "prior", and "worker" for all.
    """

    how: str = "done"
    results: tuple[JobResult, ...] = ()
    message: str = ""
    code: int = 1
    seconds: dict[str, float] = field(default_factory=dict)


class Workers(Protocol):
    """Where tasks run: processes of this machine, or a cluster."""

    @property
    def slots(self) -> int:
        """How many tasks may run or wait in the workers at the same time."""

    def submit(self, task: Task) -> None:
        """Start a task."""

    def wait(self, seconds: float) -> Sequence[tuple[Task, Ending]]:
        """Wait at most so long for tasks to end, and return them."""

    def stop(self, signum: int) -> None:
        """Ask all tasks to save their state and end."""


Report = Callable[[JobResult, dict[str, Any]], None]
"""Called with the result of each job that ended, and what is known of its batch."""


class JobScheduler:
    """Runs a plan: priors before the batches that need them, and failed batches again, in halves, or not at all."""

    def __init__(self, plan: JobPlan, workers: Workers, report: Report) -> None:
        self.workers, self.report = workers, report
        self.waiting: deque[Task] = deque(Task(prior=prior) for prior in plan.priors)
        self.waiting.extend(_task(batch) for batch in plan.batches)
        self.making = set(plan.priors)
        self.active = 0
        self.results: dict[str, JobResult] = {}
        self.prior_seconds = 0.0

    def run(self, stopped: Callable[[], int]) -> dict[str, JobResult]:
        """Run everything; the results by the labels of the jobs.

        Args:
            stopped: The signal that asks to stop, 0 for none. It is passed on; then nothing new starts.
        """
        passed = 0
        while self.active or (self.waiting and not passed):
            if stopped() and not passed:
                passed = stopped()
                self.workers.stop(passed)
            while not passed and self.active < self.workers.slots and (task := self._next()):
                self.active += 1
                self.workers.submit(task)
            for task, ending in self.workers.wait(0.05):
                self.active -= 1
                self._end(task, ending, passed)
        return self.results

    def _next(self) -> Task | None:
        """Take the first task that can start now."""
        now = time.monotonic()
        for i, task in enumerate(self.waiting):
            if task.after <= now and not task.needs & self.making:
                del self.waiting[i]
                return task
        return None

    def _end(self, task: Task, ending: Ending, passed: int) -> None:
        if task.prior is not None:
            self._end_prior(task, task.prior, ending, passed)
            return
        jobs = {job.label: job for job in task.jobs}
        for result in ending.results:
            if result.code == BUSY_CODE and task.busy < MAX_RETRIES and not passed:
                continue
            self._finish(jobs.pop(result.name), result, task, ending)
        left = tuple(jobs.values())
        if passed:
            for job in left:
                self._finish(job, JobResult(job.label, STOPPED, 128 + passed, message="stopped"), task, ending)
        elif left:
            self.waiting.extendleft(reversed(self._again(replace(task, jobs=left), ending)))

    def _end_prior(self, task: Task, prior: ClassPrior, ending: Ending, passed: int) -> None:
        """Try a class prior again, or let the batches that need it start; where it failed, they make it themselves."""
        self.prior_seconds += ending.seconds.get("worker", 0.0)
        is_busy = ending.code == BUSY_CODE and task.busy < MAX_RETRIES
        died = ending.how in ("died", "lost") and task.deaths + 1 < MAX_DEATHS
        if (is_busy or died) and not passed:
            pause = RETRY_SECONDS if is_busy else 0.0
            self.waiting.appendleft(
                replace(task, deaths=task.deaths + died, busy=task.busy + is_busy, after=time.monotonic() + pause)
            )
        else:
            self.making.discard(prior)

    def _again(self, task: Task, ending: Ending) -> list[Task]:
        """What is tried next of the jobs without a result; a job that has no further attempt is finished here."""
        if ending.how == "done":  # all of them met another process
            return [replace(task, busy=task.busy + 1, after=time.monotonic() + RETRY_SECONDS)]
        if ending.how == "died" and task.deaths + 1 < MAX_DEATHS:
            return [replace(task, deaths=task.deaths + 1)]
        if ending.how == "lost" and task.lost + 1 < MAX_LOST_NODES:
            return [replace(task, lost=task.lost + 1)]
        if len(task.jobs) > 1:
            middle = (len(task.jobs) + 1) // 2
            return [replace(task, jobs=part, deaths=0) for part in (task.jobs[:middle], task.jobs[middle:])]
        message = f"ended its worker {MAX_DEATHS} times" if ending.how == "died" else ending.message
        if ending.how == "died" and ending.message:
            message += f": {ending.message}"
        code = MEMORY_CODE if ending.how == "memory" else ending.code
        self._finish(task.jobs[0], JobResult(task.jobs[0].label, FAILED, code, message=message), task, ending)
        return []

    def _finish(self, job: Job, result: JobResult, task: Task, ending: Ending) -> None:
        self.results[job.label] = result
        about = {
            "together": len(task.jobs),
            "attempts": 1 + task.deaths + task.lost + task.busy,
            "batch": ending.seconds,
        }
        self.report(result, about)


def _task(batch: Batch) -> Task:
    return Task(batch.jobs, needs=frozenset(batch.priors))
