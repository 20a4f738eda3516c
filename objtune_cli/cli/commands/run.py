"""`objtune run`: many photos from one file."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from objtune_cli.cli import console, report_file, streams
from objtune_cli.cli.runner import CommandResult, CommandRun

if TYPE_CHECKING:
    from objtune_cli.store.project import Project
    from objtune_cli.workflow.job_file import Job
    from objtune_cli.workflow.job_plan import JobPlan, Shard
    from objtune_cli.workflow.job_progress import JobProgress
    from objtune_cli.workflow.job_results import JobResult
    from objtune_cli.workflow.job_scheduler import Workers

SHOWN_JOBS = 20
"""A terminal shows the jobs of a longer file only where they failed."""
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        "-j",
        min=1,
        max=64,
        metavar="N",
        help="Number of worker processes, each with a batch of jobs at a time; default: one for each GPU, else one.",
        show_default=False,
    ),
]
Together = Annotated[
    int | None,
    typer.Option(
        "--together",
        min=1,
        max=64,
        metavar="N",
        help="Largest number of jobs that a worker trains together.",
        show_default="auto",
    ),
]
ShardOption = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Run only part I of N, I from 1 to N, for array jobs."),
]
On = Annotated[
    Literal["local", "ray"],
    typer.Option("--on", help="Where batches run: worker processes here, or the Ray cluster of RAY_ADDRESS."),
]
Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Write a page about the jobs, as `objtune report` does.",
        show_default="report.html in the project, with the extra `report`",
    ),
]
NoReport = Annotated[bool, typer.Option("--no-report", help="Write no page.")]


def run_(
    run: CommandRun,
    file: Annotated[Path, typer.Argument(help="A TOML file of [[job]] tables: photo, class, name, prompts, …")],
    jobs: Jobs = None,
    together: Together = None,
    shard: ShardOption = None,
    on: On = "local",
    report: Report = None,
    no_report: NoReport = False,
) -> CommandResult:
    from objtune_cli.config.sections import Generate
    from objtune_cli.workflow import job_file as reader
    from objtune_cli.workflow import job_plan, job_results
    from objtune_cli.workflow.job_progress import JobProgress

    part = job_plan.parse_shard(shard) if shard else None
    listed = reader.read_jobs(file, run.report.note)
    project = run.project(create=True)
    page = report_file.choose_after_run(project, report, is_wanted=not no_report and part is None)
    reader.check_prompts(listed, project.store, run.settings(project).resolve(Generate).prompt_syntax)
    machine = Machine(jobs or 1, on_ray=True) if on == "ray" else _find_machine(run, project, listed, jobs)
    plan = job_plan.make_plan(listed, machine.slots, together or machine.batch_limit(part is not None), part)
    if machine.on_ray:
        _connect(run, project, listed, jobs)
    labels = {job.label for batch in plan.batches for job in batch.jobs}
    progress = JobProgress(run.report, len(labels), job_results.RunFile(project.local_folder / _run_file(part)))
    progress.announce(plan)
    results = _work(run, project, plan, machine, progress)
    part_results = [results[job.label] for job in listed if job.label in labels]
    code = job_results.exit_code(part_results)
    if not run.options["json"]:
        _print_jobs(part_results)
    if code:
        failed = sum(bool(result.code) for result in part_results)
        run.report.note(f"{failed} of {len(part_results)} jobs failed; the same command runs only the rest")
    files = []
    if page is not None and not run.stop.stop_signal():
        files = report_file.write_after_run(run, project, page, file.name, part_results)
    images = [Path(path) for result in part_results for path in result.images]
    extra = {"jobs": [asdict(r) for r in part_results], "files": [str(path) for path in files]}
    return CommandResult(printed="nothing", images=images, extra=extra, code=code)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where batches run: how many at a time, and the GPUs of this machine that they take in turn; or a Ray cluster."""

    slots: int
    gpus: tuple[str, ...] = ()
    on_ray: bool = False

    def batch_limit(self, is_shard: bool) -> int:
        """The most jobs in a batch, without `--together`."""
        from objtune_cli.workflow import job_plan

        is_varied = is_shard or self.on_ray  # the same batches whatever machines there are
        return job_plan.batch_limit(os.cpu_count() or 1, self.slots, has_gpu=bool(self.gpus), is_shard=is_varied)

    def open_workers(self, project: "Project") -> "AbstractContextManager[Workers]":
        """Start the workers."""
        if self.on_ray:
            from objtune_cli.cli import ray_workers

            return nullcontext(ray_workers.RayWorkers(project.location))
        from objtune_cli.workflow import job_pool

        return job_pool.local_workers(project, self.slots, self.gpus)


def _connect(run: CommandRun, project: "Project", jobs: "Sequence[Job]", count: int | None) -> None:
    """Connect to Ray, and check its machines before anything is sent there."""
    from objtune_cli.cli import ray_workers
    from objtune_cli.config.sections import Common

    ray_workers.connect(count)
    run.resources.callback(ray_workers.disconnect)
    ray_workers.check_cluster(project.location, jobs, run.settings(project).resolve(Common).base)


def _find_machine(run: CommandRun, project: "Project", jobs: "Sequence[Job]", slots: int | None) -> Machine:
    """The GPUs of this machine for workers, unless the jobs name a device."""
    from objtune_cli.config.sections import Common
    from objtune_cli.workflow import job_pool

    default = run.settings(project).resolve(Common).device
    devices = {next((w[9:] for w in job.settings if w.startswith("--device=")), default) for job in jobs}
    gpus = tuple(job_pool.find_gpus()) if devices <= {"auto", "cuda"} else ()
    return Machine(slots or max(1, len(gpus)), gpus)


def _work(
    run: CommandRun, project: "Project", plan: "JobPlan", machine: Machine, progress: "JobProgress"
) -> "dict[str, JobResult]":
    """Run a plan; the result of each of its jobs, also of those that did not start, by label."""
    from objtune_cli.store.disk_errors import translate_os_errors
    from objtune_cli.workflow.job_results import JobResult
    from objtune_cli.workflow.job_scheduler import JobScheduler

    run.stop.install()
    with translate_os_errors(project.local_folder), machine.open_workers(project) as workers:
        scheduler = JobScheduler(plan, workers, progress.add)
        results = scheduler.run(run.stop.stop_signal)
    progress.summarise(scheduler.prior_seconds)
    code = 128 + run.stop.stop_signal()
    missing = (job.label for batch in plan.batches for job in batch.jobs if job.label not in results)
    return results | {label: JobResult(label, code=code, message="not started") for label in missing}


def _run_file(part: "Shard | None") -> str:
    """The name of the file with a line for each object; shards have a file each."""
    return f"run.{part.number}-of-{part.count}.jsonl" if part else "run.jsonl"


def _print_jobs(results: "Sequence[JobResult]") -> None:
    """One line a job; on a terminal the failures alone if there are many jobs."""
    is_long = len(results) > SHOWN_JOBS and streams.result_stream().isatty()
    rows = [
        (r.name, r.state, r.code, f"{r.seconds:.0f}", " ".join(r.refs), r.message)
        for r in results
        if r.code or not is_long
    ]
    if rows:
        console.print_table(("job", "state", "code", "seconds", "made", "message"), rows)
