"""Runs jobs as processes with the commands that a user would type, several at a time; a failed job does not stop the others."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from objtune_cli.store.project import Project
from objtune_cli.workflow.job_file import Job
from objtune_cli.workflow.reporting import Reporter

BUSY_CODE, RETRY_SECONDS, MAX_RETRIES = 8, 2.0, 900
"""Exit code of a command that waits for another one; seconds until the next attempt, and number of attempts."""


@dataclass(slots=True)
class JobResult:
    """The result of a job; `state`: done, reused, unfinished (time limit), failed, stopped."""

    name: str
    state: str = "stopped"
    code: int = 0
    refs: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    seconds: float = 0.0
    message: str = ""


class JobProcess:
    """A running job: its commands one after the other."""

    def __init__(self, job: Job, project: Project, environment: dict[str, str]) -> None:
        self.job, self.project, self.environment = job, project, environment
        self.result = JobResult(job.label)
        self.started, self.tries, self.number, self.retry = time.monotonic(), 0, 0, 0.0
        self.fresh = False
        self.log = project.folder / ".objtune" / "log" / f"{job.label[:100]}.txt"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.unlink(missing_ok=True)
        self.child: subprocess.Popen[str] | None = None

    def poll(self) -> bool:
        """Start the next command if the last one has ended; return whether the job has ended."""
        if self.child is None:
            if time.monotonic() >= self.retry:
                self._start()
            return False
        if self.child.poll() is None:
            return False
        report, _ = self.child.communicate()
        code, self.child = self.child.returncode, None
        if code == BUSY_CODE and self.tries < MAX_RETRIES:
            self.tries, self.retry = self.tries + 1, time.monotonic() + RETRY_SECONDS
            return False
        return self._finish(128 - code if code < 0 else code, report)

    def _start(self) -> None:
        program = [sys.executable, "-P", "-m", "objtune_cli", "--json", f"--project={self.project.folder}"]
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [*program, *self.job.commands[self.number]],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=self.environment, text=True,
                start_new_session=True,  # so that a signal of the terminal reaches the job once; a second one would end it unsaved
            )  # fmt: skip

    def _finish(self, code: int, report: str) -> bool:
        """Add the results of an ended command; return whether it was the last."""
        result = self.result
        result.seconds = round(time.monotonic() - self.started, 1)
        try:
            document: dict[str, Any] = json.loads(report)
        except ValueError:  # killed, or a bug
            document = {"error": {"message": f"ended without output; see {self.log}"}}
        if code:
            result.code, result.state = code, "stopped" if code >= 128 else "failed"
            result.message = document.get("error", {}).get("message", f"see {self.log}")
            return True
        result.refs += [each["ref"] for each in document["refs"]]
        result.images += document["images"]
        self.fresh = self.fresh or not all(each["reused"] for each in document["refs"])
        if not document.get("finished", True):
            result.state, result.message = "unfinished", document["message"]
            return True
        self.number += 1
        result.state = "done" if self.fresh else "reused"
        return self.number == len(self.job.commands)


def run(
    jobs: list[Job], project: Project, processes: int, report: Reporter, stopped: Callable[[], int]
) -> list[JobResult]:
    """Run all jobs, at most `processes` at a time, and return the results in the order of the file.

    The first job of a class runs before the others of that class, which then reuse the class prior. A signal is passed
    on; the jobs save their state and end.
    """
    waiting = list(jobs)
    active: list[JobProcess] = []
    results: dict[str, JobResult] = {}
    classes: set[str] = set()
    environment = _environment(processes)
    passed = 0
    while waiting or active:
        if stopped() and not passed:
            passed, waiting = stopped(), []
            for each in active:
                if each.child:
                    each.child.send_signal(passed)
        for each in [a for a in active if (passed and a.child is None) or a.poll()]:
            active.remove(each)
            classes |= set(each.job.classes)
            results[each.job.label] = each.result
            _report_result(report, each.result, len(results), len(jobs))
        while not passed and len(active) < processes and (job := _next_job(waiting, active, classes)):
            waiting.remove(job)
            active.append(JobProcess(job, project, environment))
        time.sleep(0.05)
    return [results.get(job.label) or JobResult(job.label, code=128 + passed, message="not started") for job in jobs]


def _next_job(waiting: list[Job], active: list[JobProcess], classes: set[str]) -> Job | None:
    """The first job that needs no class prior which a running job is making."""
    making = {word for each in active for word in each.job.classes} - classes
    return next((job for job in waiting if not making & set(job.classes)), None)


def _environment(processes: int) -> dict[str, str]:
    """The environment of the jobs: several jobs share the processors, unless the user sets the number of threads."""
    share = max(1, (os.cpu_count() or 1) // processes)
    threads = {"OMP_NUM_THREADS": str(share)} if processes > 1 else {}
    return {
        **threads,
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])),
    }


def _report_result(report: Reporter, result: JobResult, number: int, total: int) -> None:
    report.note(
        f"{number}/{total} {result.name}: {result.state} in {result.seconds:.0f} s"
        + (f": {result.message}" if result.message else "")
    )


def exit_code(results: list[JobResult]) -> int:
    """The exit code of the worst job: a signal, then an internal error, then the largest."""
    return max((r.code for r in results), key=lambda code: (code >= 128, code == 1, code), default=0)
