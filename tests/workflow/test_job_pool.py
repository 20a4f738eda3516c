"""Worker processes of `run`, with a small program in the place of the worker: killed ones, GPUs, signals, a starter that dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from objtune_cli.store.project import Project
from objtune_cli.workflow import job_pool, job_scheduler
from objtune_cli.workflow.job_file import Job
from objtune_cli.workflow.job_plan import make_plan
from objtune_cli.workflow.job_scheduler import JobScheduler

FAKE = """
import json, os, signal, sys
for line in sys.stdin:
    task = json.loads(line)
    for job in task.get("jobs", ()):
        name = job["label"]
        if name == "dies": os.kill(os.getpid(), 9)
        if name == "waits":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            open("waiting", "w").close()
            signal.sigtimedwait([signal.SIGTERM], 30)
            print(json.dumps({"name": name, "state": "stopped", "code": 143}), flush=True)
            continue
        code = 3 if name == "wrong" else 8 if name == "busy" and not os.path.exists("tried") else 0
        if name == "busy": open("tried", "w").close()
        print(json.dumps({"name": name, "state": "done", "code": code, "images": [os.environ.get("CUDA_VISIBLE_DEVICES", ""), str(os.getpid())]}), flush=True)
    print(json.dumps({"how": "done", "code": 0, "message": "", "seconds": {"worker": 1.0}}), flush=True)
"""


@pytest.fixture
def fake(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (project / "fake_worker.py").write_text(FAKE)
    monkeypatch.setattr(job_pool, "WORKER_MODULE", "fake_worker")
    monkeypatch.setattr(job_scheduler, "RETRY_SECONDS", 0.01)
    monkeypatch.setenv("PYTHONPATH", str(project))
    return project


def run(project, names, slots=1, gpus=(), limit=1, stopped=lambda: 0):
    plan = make_plan([Job((n,), ("dog",), (("train",),)) for n in names], slots, limit)
    with job_pool.local_workers(Project(project), slots, gpus) as workers:
        return JobScheduler(plan, workers, lambda *_: None).run(stopped)


def test_a_busy_job_is_tried_again_and_one_that_kills_its_worker_ends_alone(fake):
    results = run(fake, ["busy", "dies", "other"], limit=3)
    assert {name: (r.state, r.code) for name, r in results.items()} == {
        "busy": ("done", 0), "dies": ("failed", 137), "other": ("done", 0),
    }  # fmt: skip
    assert results["dies"].message == "ended its worker 3 times: SIGKILL"


def test_the_log_of_a_failed_job_names_that_of_its_batch(fake):
    (batch,) = make_plan([Job((n,), (), ()) for n in ("wrong", "b")]).batches
    assert [job.label for job in batch.jobs] == ["b", "wrong"]
    assert run(fake, ["wrong", "b"], limit=2)["wrong"].code == 3
    assert f"The log of its batch is {fake / '.objtune/log/b.txt'}" in (fake / ".objtune/log/wrong.txt").read_text()


def test_each_worker_has_a_gpu_of_its_own_and_stays_for_its_next_batch(fake):
    results = run(fake, [f"o{i}" for i in range(12)], slots=2, gpus=("3", "5"))
    workers = {tuple(result.images) for result in results.values()}
    assert {gpu for gpu, _ in workers} <= {"3", "5"} and len(workers) <= 2
    assert len({gpu for gpu, _ in workers}) == len(workers)


def test_a_signal_is_passed_on(fake):
    results = run(fake, ["waits", "other"], stopped=lambda: signal.SIGTERM if Path("waiting").exists() else 0)
    assert (results["waits"].state, results["waits"].code) == ("stopped", 143)


@pytest.mark.parametrize(("visible", "gpus"), [("2,7", ["2", "7"]), ("", []), ("-1", []), ("GPU-8a", ["GPU-8a"])])
def test_the_gpus_that_this_process_may_use(visible, gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert job_pool.find_gpus() == gpus


def test_several_workers_share_the_processors(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [job_pool.worker_environment(n).get("OMP_NUM_THREADS") for n in (1, 2, 16)] == [None, "4", "1"]
    assert "OMP_NUM_THREADS" not in job_pool.worker_environment(2, "0")


def test_a_worker_ends_where_its_starter_was_killed(project):
    """The real worker, which has nothing to do yet."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", job_pool.WORKER_MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=job_pool.worker_environment(1),
    ) as child:
        assert child.stdin is not None
        child.stdin.close()
        start = time.monotonic()
        assert child.wait(timeout=60) == 0 and time.monotonic() - start < 60
