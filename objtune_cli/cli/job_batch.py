"""The work on a batch of jobs in one process: every photo is segmented, all objects are trained side by side, then drawn.

Each job is parsed as the command lines that a user would type, so that it has their options, checks and errors.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from objtune_cli.cli import console, durations, failures
from objtune_cli.cli.app import COMMANDS
from objtune_cli.cli.commands.compose import compose
from objtune_cli.cli.commands.generate import generate
from objtune_cli.cli.commands.place import place
from objtune_cli.cli.option_groups import KEY
from objtune_cli.cli.options import GLOBAL, MODEL, Invocation
from objtune_cli.cli.photo_groups import parse_requests
from objtune_cli.cli.photo_options import parse_photos, segment_photos
from objtune_cli.cli.progress import ConsoleProgress
from objtune_cli.cli.runner import CommandResult, CommandRun, load_command
from objtune_cli.cli.signals import TIME_LIMIT, StopFlag
from objtune_cli.config.sections import Embed, Prior, Train
from objtune_cli.errors import ObjtuneError, Stopped, UsageError
from objtune_cli.workflow.job_results import DONE, FAILED, REUSED, STOPPED, UNFINISHED, JobResult
from objtune_cli.workflow.metric_loggers import MetricLoggers
from objtune_cli.workflow.reporting import CommandReporter

if TYPE_CHECKING:
    from objtune_cli.store.refs import Ref
    from objtune_cli.workflow.context import StageContext, StageResult

Emit = Callable[[JobResult], None]


@dataclass(slots=True)
class BatchJob:
    """A job of a batch on its way.

    Attributes:
        seconds: Of its own stages. refs, images: What its commands made so far. fresh: Whether any of it is new.
    """

    label: str
    commands: Sequence[Sequence[str]]
    masks: "list[Ref]" = field(default_factory=list)
    refs: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    seconds: float = 0.0
    fresh: bool = False

    def add(self, results: "Sequence[StageResult]") -> None:
        """Note what a command made."""
        self.refs += [str(each.ref) for each in results]
        self.images += [str(path) for each in results for path in each.images]
        self.fresh = self.fresh or not all(each.reused for each in results)


@dataclass(slots=True)
class Clock:
    """Seconds of a task by what was done."""

    seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @contextlib.contextmanager
    def measure(self, what: str) -> Iterator[None]:
        """Add the time of the body."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.monotonic() - start

    def read(self) -> dict[str, float]:
        """All seconds, `worker` for the whole task, to milliseconds."""
        return {
            key: round(value, 3) for key, value in {**self.seconds, "worker": time.monotonic() - self.started}.items()
        }


def run_task(task: Mapping[str, Any], stop: StopFlag, emit: Emit) -> dict[str, Any]:
    """Work on a task; the results of jobs go to `emit` as they end.

    Args:
        task: `project`; and `jobs`, each with `label` and `commands`, or `prior` with `settings`.

    Returns:
        The task's ending: `how`, `message`, `code` and `seconds`, see `job_scheduler.Ending`.
    """
    clock, how, error = Clock(), "done", None
    try:
        if "prior" in task:
            _make_prior(task, stop)
        else:
            _Batch(task, stop, emit, clock).run()
    except Exception as exception:
        error = failures.explain(exception)
        if failures.is_bug(error):
            console.print_traceback()
        console.print_error(error, "run", as_json=False)
        how = "memory" if failures.is_out_of_memory(exception) else "divide" if "prior" not in task else "done"
    code, message = (error.code, error.message) if error else (0, "")
    return {"how": how, "code": code, "message": message, "seconds": clock.read()}


DRAWINGS: dict[str, Callable[..., CommandResult]] = {"generate": generate, "compose": compose, "place": place}
"""The commands that a job may have behind its `train`."""


def _parse(project: str, stop: StopFlag, words: Sequence[str]) -> tuple[CommandRun, dict[str, Any]]:
    """Parse a command line; the run of its command, and the values of its own options."""
    name = words[0]
    command = load_command(name, *COMMANDS[name])
    try:
        parsed = command.make_context(name, list(words[1:]), obj=Invocation(command=name))
    except typer.TyperException as error:
        message = error.format_message() if hasattr(error, "format_message") else error.message
        raise UsageError(message.rstrip("."), f"`objtune {name} --help`") from None
    shared = {key: parsed.params.get(key) for key in (*GLOBAL, *MODEL)}
    values = {key: value for key, value in parsed.params.items() if key not in shared}
    report = CommandReporter(ConsoleProgress(), MetricLoggers())
    run = CommandRun(name, shared | {"project": project}, report.progress, report, stop, parsed.meta.get(KEY, []))  # type: ignore[arg-type]
    return run, values


def _make_prior(task: Mapping[str, Any], stop: StopFlag) -> None:
    """Make a class prior that several batches share, if their settings use it."""
    from objtune_cli.segmentation.from_hints import Target
    from objtune_cli.training import class_prior_stage
    from objtune_cli.workflow import class_words

    run, _ = _parse(task["project"], stop, ["train", *task["settings"], "--class", task["prior"], "--", "photo.png"])
    with run.resources:
        ctx = run.context()
        if ctx.settings.resolve(Train).prior_loss_weight:
            (target,) = class_words.use_known_spelling(ctx, [Target(task["prior"], "object")])
            class_prior_stage.run(ctx, target.class_word, ctx.settings.resolve(Prior))


class _Batch:
    """A batch of jobs in this process."""

    def __init__(self, task: Mapping[str, Any], stop: StopFlag, emit: Emit, clock: Clock) -> None:
        self.project, self.stop, self.clock, self._emit = task["project"], stop, clock, emit
        self.jobs = [BatchJob(job["label"], job["commands"]) for job in task["jobs"]]
        self.left = list(self.jobs)

    def run(self) -> None:
        """Do all commands of all jobs.

        Raises:
            Exception: An error that belongs to no known job; the jobs without a result are still to be done.
        """
        run, values = _parse(self.project, self.stop, self.jobs[0].commands[0])
        with run.resources:
            try:
                ctx = run.context()
                config = ctx.settings.resolve(Train, seed=values["seed"])
                limit = durations.parse_duration(values["max_time"], "--max-time") if values["max_time"] else math.inf
            except ObjtuneError as error:  # of settings and project, which all jobs share
                self._end_all(error)
                return
            self._segment(ctx)
            self.stop.until = self.clock.started + limit
            with self.clock.measure("train"):
                trained = self._train(ctx, config)
            self.stop.until = math.inf
        for job in trained:
            self._draw(job)

    def _segment(self, ctx: "StageContext") -> None:
        """Segment the photos of each job; a job whose photo is unusable ends here."""
        with self.clock.measure("segment"):
            errors = ctx.run_parallel([partial(self._segment_job, ctx, job) for job in self.jobs])
        for job, error in zip(self.jobs, errors, strict=True):
            if error is not None:
                self._end(job, error)

    def _segment_job(self, ctx: "StageContext", job: BatchJob) -> ObjtuneError | None:
        start = time.monotonic()
        try:
            run, values = _parse(self.project, self.stop, job.commands[0])
            photos = parse_photos(values["source"], hinted=True)
            (requests,) = parse_requests(photos, values, run.groups, ctx.report.note)
            job.masks = segment_photos(ctx, requests)
        except Exception as exception:
            if failures.is_out_of_memory(exception):
                raise
            return failures.explain(exception)
        finally:
            job.seconds += time.monotonic() - start
        return None

    def _train(self, ctx: "StageContext", config: Train) -> list[BatchJob]:
        """Train the adapters of the jobs that are left; the jobs that have one."""
        jobs = list(self.left)
        published: dict[int, StageResult | ObjtuneError] = {}
        try:
            outcomes = self._train_objects(ctx, jobs, config, published) if jobs else []
        except Stopped as stopped:
            if stopped.code != 128 + TIME_LIMIT:
                self._end_all(stopped)
                return []
            outcomes = [published.get(i, stopped) for i in range(len(jobs))]
        except ObjtuneError as error:
            if len(jobs) > 1 and error.code not in (2, 7, 8):
                raise  # it belongs to one of them
            self._end_all(error)
            return []
        trained = []
        for job, outcome in zip(jobs, outcomes, strict=True):
            if isinstance(outcome, ObjtuneError):
                self._end(job, outcome)
            else:
                job.add([outcome])
                trained.append(job)
        return trained

    def _train_objects(
        self,
        ctx: "StageContext",
        jobs: list[BatchJob],
        config: Train,
        published: "dict[int, StageResult | ObjtuneError]",
    ) -> "Sequence[StageResult | ObjtuneError]":
        """Train one object alone or several side by side, with the outcome of each; `published` is filled meanwhile."""
        from objtune_cli.training import train as stage
        from objtune_cli.training import train_many

        embedding, prior = ctx.settings.resolve(Embed), ctx.settings.resolve(Prior)
        if len(jobs) == 1:
            return [stage.run(ctx, jobs[0].masks, config, embedding, prior)]
        outcomes = train_many.run_each(
            ctx, [job.masks for job in jobs], config, embedding, prior, on_result=published.__setitem__
        )
        return [outcome.error if isinstance(outcome, train_many.DivergedRun) else outcome for outcome in outcomes]

    def _draw(self, job: BatchJob) -> None:
        """Draw the prompts of a job, and end it."""
        start = time.monotonic()
        try:
            with self.clock.measure("draw"):
                for words in job.commands[1:]:
                    run, values = _parse(self.project, self.stop, words)
                    with run.resources:
                        result = DRAWINGS[words[0]](run, **values)
                    job.add(result.results)
        except Exception as exception:
            if failures.is_out_of_memory(exception):
                raise
            error: ObjtuneError | None = failures.explain(exception)
        else:
            error = None
        job.seconds += time.monotonic() - start
        self._end(job, error)

    def _end_all(self, error: ObjtuneError) -> None:
        for job in list(self.left):
            self._end(job, error)

    def _end(self, job: BatchJob, error: ObjtuneError | None) -> None:
        """Report the result of a job."""
        self.left.remove(job)
        seconds = self.clock.read()
        shared = (seconds["worker"] - seconds.get("segment", 0.0) - seconds.get("draw", 0.0)) / len(self.jobs)
        result = JobResult(
            job.label, DONE if job.fresh else REUSED, 0, job.refs, job.images, round(job.seconds + shared, 1)
        )
        if error is not None:
            if failures.is_bug(error):
                console.print_traceback()
            console.print_error(error, job.label, as_json=False)
            result.message = error.message
            is_late = error.code == 128 + TIME_LIMIT
            result.state = UNFINISHED if is_late else STOPPED if error.code >= 128 else FAILED
            result.code = 0 if is_late else error.code
        self._emit(result)
