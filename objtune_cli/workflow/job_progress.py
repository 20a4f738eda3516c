"""What a run of jobs reports: one line of progress, each failure, and at the end what an object took."""

import time
from typing import Any

from objtune_cli.workflow.job_plan import JobPlan
from objtune_cli.workflow.job_results import REUSED, JobResult, RunFile
from objtune_cli.workflow.reporting import Reporter

NOTED_JOBS = 20
"""A run of more jobs notes those alone that failed."""


class JobProgress:
    """Counts the jobs that ended, and reports them."""

    def __init__(self, report: Reporter, total: int, file: RunFile) -> None:
        self.report, self.total, self.file = report, total, file
        self.started = time.monotonic()
        self.done = self.failed = self.reused = 0
        self.seconds = 0.0

    def announce(self, plan: JobPlan) -> None:
        """Report the plan, before anything starts."""
        largest = max((len(batch.jobs) for batch in plan.batches), default=0)
        if len(plan.batches) > 1:
            self.report.note(f"{self.total} jobs in {len(plan.batches)} batches of at most {largest}")
        elif largest > 1:
            self.report.note(f"{largest} jobs side by side, in one batch")
        if plan.priors:
            words = ", ".join(dict.fromkeys(prior.class_word for prior in plan.priors))
            self.report.note(f"class priors first, which several batches share: {words}")
        if self.total:
            self.report.step("jobs", 0, self.total)

    def add(self, result: JobResult, about: dict[str, Any]) -> None:
        """Report a job that ended; `about`: what is known of its batch."""
        self.done += 1
        self.failed += bool(result.code)
        self.reused += result.state == REUSED
        self.seconds += result.seconds
        self.file.write(result, about)
        if result.code or self.total <= NOTED_JOBS:
            self.report.note(
                f"{self.done}/{self.total} {result.name}: {result.state} in {result.seconds:.0f} s"
                + (f": {result.message}" if result.message else "")
            )
        self.report.step("jobs", self.done, self.total, failed=self.failed, objects_per_hour=self.objects_per_hour())

    def objects_per_hour(self) -> int:
        """Jobs that ended without an error, per hour of this run."""
        return round((self.done - self.failed) * 3600 / max(1e-3, time.monotonic() - self.started))

    def summarise(self, prior_seconds: float) -> None:
        """Report what the run took."""
        num_trained = self.done - self.failed - self.reused
        if num_trained < 2:
            return
        shared = f", and {prior_seconds:.0f} s for class priors that batches share" if prior_seconds else ""
        self.report.note(
            f"{num_trained} jobs done, {self.reused} reused, {self.failed} failed in {time.monotonic() - self.started:.0f} s: "
            f"{self.objects_per_hour()} an hour; {self.seconds / max(1, self.done):.1f} s of a worker for each{shared}"
        )
