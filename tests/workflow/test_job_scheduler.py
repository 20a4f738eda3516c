"""What becomes of jobs whose worker is killed, has too little memory, or meets another process."""

import random
import signal
from collections import Counter

import pytest

from objtune_cli.workflow import job_scheduler
from objtune_cli.workflow.job_file import Job
from objtune_cli.workflow.job_plan import JobPlan, make_plan
from objtune_cli.workflow.job_results import JobResult
from objtune_cli.workflow.job_scheduler import Ending, JobScheduler


class FakeWorkers:
    """Workers that answer at once; `behave` gets the labels of a task and returns its ending."""

    def __init__(self, behave, slots=2):
        self.behave, self.slots = behave, slots
        self.tasks, self.log, self.signum = [], [], 0

    def submit(self, task):
        self.tasks.append(task)
        assert len(self.tasks) <= self.slots

    def wait(self, seconds):
        task = self.tasks.pop() if self.tasks else None
        if task is None:
            return []
        labels = [job.label for job in task.jobs] if task.jobs else f"prior {task.prior.class_word}"
        self.log.append(labels)
        return [(task, self.behave(labels))]

    def stop(self, signum):
        self.signum = signum


def job(name, *settings):
    return Job((name,), ("dog",), (("train",),), settings)


def done(labels):
    return Ending(results=tuple(JobResult(label, "done") for label in labels), code=0)


def run(behave, count=8, limit=8, stopped=lambda: 0, **options):
    workers = FakeWorkers(behave, **options)
    reported = []
    scheduler = JobScheduler(
        make_plan([job(f"o{i}") for i in range(count)], limit=limit),
        workers,
        lambda result, about: reported.append(result.name),
    )
    results = scheduler.run(stopped)
    assert sorted(reported) == sorted(results), "each job is reported once"
    return results, workers


def test_a_job_that_kills_its_worker_fails_alone():
    def behave(labels):
        if "o3" in labels:
            return Ending("died", message="SIGKILL", code=137)
        return done(labels)

    results, workers = run(behave)
    assert {name: r.state for name, r in results.items() if r.state != "done"} == {"o3": "failed"} and len(results) == 8
    assert (results["o3"].message, results["o3"].code) == ("ended its worker 3 times: SIGKILL", 137)
    assert [len(each) for each in workers.log if "o3" in each] == [8, 8, 8, 4, 4, 4, 2, 2, 2, 1, 1, 1]


def test_jobs_that_do_not_fit_together_are_done_in_halves_at_once():
    results, workers = run(
        lambda labels: Ending("memory", message="out of memory") if len(labels) > 4 else done(labels)
    )
    assert {r.state for r in results.values()} == {"done"} and sorted(map(len, workers.log)) == [4, 4, 8]
    results, _ = run(lambda labels: Ending("memory", message="out of memory"), count=2)
    assert {(r.state, r.code, r.message) for r in results.values()} == {("failed", 7, "out of memory")}


def test_an_error_of_one_unknown_job_is_found_by_halving():
    results, workers = run(
        lambda labels: Ending("divide", message="damaged", code=5) if "o6" in labels else done(labels)
    )
    assert {name: (r.code, r.message) for name, r in results.items() if r.code} == {"o6": (5, "damaged")}
    assert len(workers.log) == 7


def test_results_before_a_death_stay_and_finished_jobs_are_not_tried_again():
    def behave(labels):
        if "o0" in labels and len(labels) > 1:
            return Ending("died", results=tuple(JobResult(each, "done") for each in labels if each != "o0"), code=137)
        return done(labels)

    results, workers = run(behave)
    assert {r.state for r in results.values()} == {"done"} and [len(each) for each in workers.log] == [8, 1]


def test_a_lost_machine_counts_less_than_a_killed_worker():
    endings = iter([Ending("lost")] * 10)
    results, _ = run(lambda labels: next(endings, None) or done(labels))
    assert {r.state for r in results.values()} == {"done"}


def test_a_busy_job_waits_and_final_errors_stay(monkeypatch):
    monkeypatch.setattr(job_scheduler, "RETRY_SECONDS", 0.0)
    tries = Counter()

    def behave(labels):
        tries.update(labels)
        codes = {"o0": 8 if tries["o0"] < 3 else 0, "o1": 3, "o2": 9}
        return Ending(results=tuple(JobResult(each, "done", codes.get(each, 0)) for each in labels), code=0)

    results, _ = run(behave)
    assert {name: r.code for name, r in results.items() if r.code} == {"o1": 3, "o2": 9}
    assert tries["o0"] == 3 and all(n == 1 for name, n in tries.items() if name != "o0")


@pytest.mark.parametrize("code", [0, 9])
def test_batches_wait_for_the_prior_that_they_share_and_go_on_where_it_failed(code):
    results, workers = run(
        lambda labels: Ending(code=code) if labels == "prior dog" else done(labels), count=9, limit=3
    )
    assert workers.log[0] == "prior dog" and len(workers.log) == 4 and len(results) == 9


def test_a_signal_is_passed_on_and_nothing_new_starts():
    plan = JobPlan(batches=make_plan([job(f"o{i}") for i in range(6)], limit=2).batches)
    workers = FakeWorkers(lambda labels: Ending(results=tuple(JobResult(each, "stopped", 143) for each in labels)))
    results = JobScheduler(plan, workers, lambda *_: None).run(lambda: signal.SIGTERM if workers.tasks else 0)
    assert workers.signum == signal.SIGTERM and len(workers.log) == 2
    assert {(r.state, r.code) for r in results.values()} == {("stopped", 143)} and len(results) == 4


def test_a_thousand_jobs_and_many_deaths_lose_and_double_nothing():
    rng = random.Random(1)

    def behave(labels):
        if rng.random() < 0.1:
            return Ending(rng.choice(("died", "lost")), code=137)
        return done(labels)

    results, _ = run(behave, count=1000, limit=8, slots=4)
    assert len(results) == 1000 and {r.state for r in results.values()} == {"done"}
