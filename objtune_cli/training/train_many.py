"""`objtune train` with several objects: one adapter each, trained together in one process.

Small base models on a CPU: one model and thread per processor, which share the objects. Else one model trains all.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from objtune_cli.config.sections import Embed, Prior, Train
from objtune_cli.errors import GateError, NonFiniteError, UsageError
from objtune_cli.store.checkpoints import Checkpoint
from objtune_cli.store.disk_reservation import DiskReservation
from objtune_cli.store.refs import Ref
from objtune_cli.training import class_prior_stage as prior_stage
from objtune_cli.training import hyperparameters, load_subjects, train, unfinished_runs
from objtune_cli.training.publish import build_self_evaluation, publish
from objtune_cli.training.run_loop import TrainingLoop, TrainingRun, checkpoint_key, describe_environment, run_key
from objtune_cli.training.train import TrainingPlan
from objtune_cli.workflow import class_words
from objtune_cli.workflow.context import StageContext, StageResult

if TYPE_CHECKING:
    from objtune_cli.models.base_model import BaseModel


def run(
    ctx: StageContext, sources: list[list[Ref]], config: Train, embedding: Embed, prior: Prior, *, preview: bool = True
) -> list[StageResult]:
    """One adapter for each group of masks, in that order; each is what a command of its own would make, up to rounding.

    Args:
        sources: For each adapter the masks that `stage.run` takes.

    Raises:
        UsageError: Two photos would give an object the same name. GateError: one or more diverged; the others are published.
        Stopped: A signal came; the state is saved.
    """
    outcomes = run_each(ctx, sources, config, embedding, prior, preview=preview)
    failed = [outcome for outcome in outcomes if isinstance(outcome, DivergedRun)]
    if failed:
        first = failed[0].error
        is_base = isinstance(first, NonFiniteError) and first.of_base
        what = f"not learned: {first.message}" if is_base else "diverged"
        names = ", ".join(each.name for each in failed)
        raise GateError(f"{names} {what}; the others are there", first.hint)
    return [outcome for outcome in outcomes if isinstance(outcome, StageResult)]


@dataclass(frozen=True, slots=True)
class DivergedRun:
    """An adapter that was not published: its name, and why."""

    name: str
    error: GateError


def run_each(
    ctx: StageContext,
    sources: list[list[Ref]],
    config: Train,
    embedding: Embed,
    prior: Prior,
    *,
    preview: bool = True,
    on_result: Callable[[int, StageResult], None] = lambda number, result: None,
) -> list[StageResult | DivergedRun]:
    """As `run`, with the runs that diverged in their places.

    Args:
        on_result: Called with the number of an adapter as soon as it is published, or found; then a signal may still come.
    """
    configs = [train.validate_config(ctx, config, len(train.group_photos(own))) for own in sources]
    if ctx.team():
        raise UsageError(
            "several photos are trained together only in a single process",
            "give each photo a command of its own under several processes",
        )
    ctx.report.hyperparameters(hyperparameters.describe(ctx, sources, configs[0], embedding, prior))
    plans = _make_plans(ctx, sources, configs, embedding, prior)
    names = [name for plan in plans for name in plan.record.objects]
    if len(set(names)) < len(names):
        raise UsageError("two photos would give an object the same name", "tell them apart with `--name`")
    outcomes = _train_missing(ctx, plans, configs, on_result)
    results = {i: outcome for i, outcome in outcomes.items() if isinstance(outcome, StageResult)}
    ctx.run_parallel([partial(train.with_preview, ctx, done, plans[i], preview=preview) for i, done in results.items()])
    return [outcomes[i] for i in range(len(plans))]


def _train_missing(
    ctx: StageContext, plans: list[TrainingPlan], configs: list[Train], on_result: Callable[[int, StageResult], None]
) -> dict[int, StageResult | DivergedRun]:
    """Train the plans that are not finished; the outcome of each plan by its number."""
    outcomes: dict[int, StageResult | DivergedRun] = {}
    for plan in plans:
        if ctx.force or ctx.store.find_identical(plan.record) is None:
            unfinished_runs.report_earlier_runs(ctx, plan.record)
    for i, plan in enumerate(plans):
        if done := ctx.find_existing(plan.record, computed=True):
            outcomes[i] = done
            on_result(i, done)
    if len(outcomes) == len(plans):
        return outcomes
    model = train.load_for_training(ctx, configs[0])
    keys = [run_key(plan, model) for plan in plans]
    checkpoint = _checkpoint(ctx, "beside/" + "/".join(keys))
    if len(plans) - len(outcomes) > 1 or checkpoint.exists():
        with contextlib.ExitStack() as stack:
            for key in keys:  # a process that trains one of them alone would do the same work
                stack.enter_context(_checkpoint(ctx, key).lock())
            stack.enter_context(checkpoint.lock())
            reservation = stack.enter_context(DiskReservation(ctx.project))
            runs = _build_runs(ctx, model, plans, configs, checkpoint)
            outcomes |= _train(ctx, runs, checkpoint, reservation, on_result)
            checkpoint.discard()
    del model  # the stages to come load their own
    for i, plan in enumerate(plans):
        if i not in outcomes:
            outcomes[i] = done = train.train_one(ctx, plan, configs[i])
            on_result(i, done)
    return outcomes


def _make_plans(
    ctx: StageContext, sources: list[list[Ref]], configs: list[Train], embedding: Embed, prior: Prior
) -> list[TrainingPlan]:
    """The plan of each adapter, after the stages before training; the prior of a class is computed once."""
    embeddings = ctx.run_parallel([partial(train.ensure_embeddings, ctx, own, embedding) for own in sources])
    words = sorted({word for records in embeddings for record in records for word in record.objects.values()})
    if any(config.prior_loss_weight for config in configs):
        ctx.run_parallel([partial(prior_stage.run, ctx, word, prior) for word in words])
    return [
        train.make_plan(ctx, [r.ref for r in records], config, embedding, prior)
        for records, config in zip(embeddings, configs, strict=True)
    ]


def _checkpoint(ctx: StageContext, key: str) -> Checkpoint:
    return Checkpoint(ctx.store, checkpoint_key(key))


def _build_runs(
    ctx: StageContext, model: "BaseModel", plans: list[TrainingPlan], configs: list[Train], checkpoint: Checkpoint
) -> list[TrainingRun]:
    """The runs of a checkpoint, or of all plans that are not finished, distributed over base models.

    Args:
        model: The first of the base models.
    """
    import torch

    from objtune_cli.runtime import cpu

    tensors = {k: torch.from_numpy(v) for k, v in (checkpoint.load() or {}).items()}
    if not tensors and checkpoint.exists():
        ctx.report.note(f"the saved state {checkpoint.name} is damaged: the runs start again")
    numbers = sorted({int(key.partition(".")[0]) for key in tensors})
    if not tensors:
        numbers = [i for i, plan in enumerate(plans) if not ctx.find_existing(plan.record, computed=True)]
        for i in numbers:
            unfinished_runs.report_restart(ctx, plans[i].record, checkpoint.key, describe_environment(model))
    ctx.report.note(f"encoding augmented views of the objects of {len(numbers)} photos")
    count = cpu.worker_count(len(plans)) if ctx.can_run_parallel() else 1
    models = [model, *(train.load_for_training(ctx, configs[0]) for _ in range(1, count))]
    parts = [{i: plans[i] for i in numbers if i % count == k} for k in range(count)]
    built = ctx.run_parallel(
        [partial(_build_on_model, ctx, own, part, configs) for own, part in zip(models, parts, strict=True)]
    )
    runs = sorted((run for part in built for run in part), key=lambda run: run.number)
    for run in runs if tensors else []:  # after all are built: teacher predictions need the others' initial weights
        prefix = f"{run.number}."
        run.restore({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    if tensors:
        ctx.report.note(f"resumes at step {max(run.trainer.step for run in runs)}")
    return runs


def _build_on_model(
    ctx: StageContext, model: "BaseModel", plans: dict[int, TrainingPlan], configs: list[Train]
) -> list[TrainingRun]:
    """Trainers that share a base model."""
    from objtune_cli.training.trainer import Trainer

    subjects = {i: load_subjects.load_subjects(ctx, plan.embeddings) for i, plan in plans.items()}
    every = [s for own in subjects.values() for s in own]
    judge = build_self_evaluation(ctx, model, every) if configs[0].self_evaluation and every else None
    runs = []
    for i, plan in plans.items():
        ctx.check_stopped()
        own = subjects[i]
        class_words.check_length(model, [s.class_word for s in own], sum(s.num_trainable for s in own))
        trainer = Trainer(model, own, train.load_priors(ctx, plan), configs[i], f"run{i}")
        runs.append(TrainingRun(i, plan, trainer, judge))
    return runs


def _train(
    ctx: StageContext,
    runs: list[TrainingRun],
    checkpoint: Checkpoint,
    reservation: DiskReservation,
    on_result: Callable[[int, StageResult], None],
) -> dict[int, StageResult | DivergedRun]:
    """Train runs until each has come to its own end, and publish each when it has.

    Raises:
        Stopped: A signal came; the checkpoint is saved.
    """
    loop = TrainingLoop(ctx, runs, checkpoint, reservation, shared=True)
    loop.reserve_disk(resumed=checkpoint.exists() and any(run.trainer.step for run in runs))
    outcomes: dict[int, StageResult | DivergedRun] = {}

    def publish_group(group: list[TrainingRun]) -> None:
        for run in group:
            ctx.report.note(f"{run.plan.record.name} has learned")
            try:
                existing = ctx.find_existing(run.plan.record, computed=True)  # an earlier process was killed after it
                outcomes[run.number] = result = existing or publish(ctx, run)
                on_result(run.number, result)
            except GateError as error:
                loop.failed.append((run, error))

    def publish_finished(finished_runs: list[TrainingRun]) -> None:
        """Models in parallel: each samples the images of one run at a time."""
        groups: dict[int, list[TrainingRun]] = {}
        for run in finished_runs:
            groups.setdefault(id(run.trainer.model), []).append(run)
        with reservation.lend(loop.checkpoint_bytes()):
            ctx.run_parallel([partial(publish_group, group) for group in groups.values()])

    for run, error in loop.run(publish_finished):
        ctx.report.note(f"{run.plan.record.name}: {error.message}")
        outcomes[run.number] = DivergedRun(run.plan.record.name, error)
    return outcomes
