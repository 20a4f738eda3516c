"""A jobs file of 100,000 products: read, checked, planned, and run by workers that end at once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys, time
from pathlib import Path
from objtune_cli.store.store import Store
from objtune_cli.workflow import job_file, job_plan
from objtune_cli.workflow.job_progress import JobProgress
from objtune_cli.workflow.job_results import JobResult, RunFile, exit_code
from objtune_cli.workflow.job_scheduler import Ending, JobScheduler

class Workers:
    slots = 64
    def __init__(self): self.tasks = []
    def submit(self, task): self.tasks.append(task)
    def wait(self, seconds):
        tasks, self.tasks = self.tasks, []
        return [(t, Ending(results=tuple(JobResult(j.label, "done", refs=[f"adapter/{j.label}@1"]) for j in t.jobs), code=0)) for t in tasks]
    def stop(self, signum): pass

class Report:
    def note(self, text): pass
    def step(self, *args, **values): pass

def timed(work):
    start = time.process_time()
    found = work()
    return found, round(time.process_time() - start, 1)

jobs, read = timed(lambda: job_file.read_jobs(Path("jobs.toml")))
_, check = timed(lambda: job_file.check_prompts(jobs, Store.at(Path())))
plan, planned = timed(lambda: job_plan.make_plan(jobs, 8, 8))
progress = JobProgress(Report(), len(jobs), RunFile(Path("run.jsonl")))
results, ran = timed(lambda: JobScheduler(plan, Workers(), progress.add).run(lambda: 0))
memory = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) >> 10  # ru_maxrss has the parent's
print(json.dumps({"read": read, "check": check, "plan": planned, "run": ran, "MB": memory, "done": len(results), "code": exit_code(list(results.values()))}))
"""


@pytest.mark.faults
def test_a_hundred_thousand_jobs(project: Path, say) -> None:
    """Seconds of one core; nothing may grow with the square of the number of jobs."""
    with (project / "jobs.toml").open("w") as file:
        file.write('[defaults]\nbase = "toybox"\nset = ["train.rank=4"]\nclass = "dog"\n')
        for i in range(100_000):
            file.write(
                f'[[job]]\nphoto = "photos/p{i}.jpg"\nname = "p{i}"\nprompts = "a photo of <p{i}> on the beach"\n'
            )
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    say(f"T13 100,000 jobs, seconds of a core and memory: {found}")
    assert found["done"] == 100_000 and found["code"] == 0
    assert found["read"] + found["check"] + found["plan"] < 30 and found["run"] < 60 and found["MB"] < 500
    assert len((project / "run.jsonl").read_text().splitlines()) == 100_000
