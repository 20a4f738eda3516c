"""`objtune train`: one adapter from the photos of one object, or from the objects of one photo; runs the missing stages before it."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from objtune_cli.config.sections import MAX_RATE, Embed, Prior, Train, identifying
from objtune_cli.embedding import init_embedding as embed
from objtune_cli.errors import IncompatibleError, InputError, NonFiniteError, UsageError
from objtune_cli.models import registry
from objtune_cli.store.artifacts import Record
from objtune_cli.store.checkpoints import Checkpoint
from objtune_cli.store.disk_reservation import DiskReservation
from objtune_cli.store.kinds.adapter import EMBEDDING_ROLE, PRIOR_ROLE
from objtune_cli.store.kinds.prior import PriorArtifact
from objtune_cli.store.refs import Ref
from objtune_cli.training import class_prior_stage as prior_stage
from objtune_cli.training import hyperparameters, load_subjects, unfinished_runs
from objtune_cli.training import preview as preview_stage
from objtune_cli.training.publish import build_self_evaluation, publish
from objtune_cli.training.run_loop import (
    TrainingLoop,
    TrainingRun,
    checkpoint_key,
    describe_environment,
    is_main_process,
    run_key,
)
from objtune_cli.workflow import class_words
from objtune_cli.workflow.context import StageContext, StageResult

if TYPE_CHECKING:
    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.training.subjects import Subject


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """One adapter to train: its record, the embeddings it starts from, and the class priors by class word."""

    record: Record
    embeddings: list[Record]
    priors: dict[str, Ref]


def run(
    ctx: StageContext, sources: list[Ref], config: Train, embedding: Embed, prior: Prior, *, preview: bool = True
) -> StageResult:
    """Train one adapter for all objects that `sources` (masks or embeddings) name; masks of one name are photos of one object.

    Raises:
        UsageError: Several objects of different photos. GateError: training diverged.
        Stopped: A signal came; the state is saved.
    """
    config = validate_config(ctx, config, len(group_photos(sources)))
    ctx.report.hyperparameters(hyperparameters.describe(ctx, [sources], config, embedding, prior))
    plan = make_plan(ctx, sources, config, embedding, prior)
    result = ctx.find_existing(plan.record, computed=True)
    if result is None and is_main_process(ctx.team()):
        unfinished_runs.report_earlier_runs(ctx, plan.record)
    return with_preview(ctx, result or train_one(ctx, plan, config), plan, preview=preview)


def require_trainable_base(ctx: StageContext) -> None:
    """Refuse a base that was distilled to few steps, unless `--force` is set.

    Raises:
        IncompatibleError: Names the base to train on.
    """
    if ctx.base.distilled_from and not ctx.force:
        raise IncompatibleError(
            f"the base {ctx.base.id} is distilled to few steps, and training undoes that: images lose detail or turn grey",
            f"train on the base it came from, `--base {ctx.base.distilled_from}`, and draw here; `--force` trains here",
        )


def validate_config(ctx: StageContext, config: Train, objects: int = 1) -> Train:
    """The settings with defaults for the base and the number of objects.

    Raises:
        UsageError: Nothing would learn in some steps, a learning rate is too large, or a term needs a single process.
    """
    require_trainable_base(ctx)
    config = fill_defaults(config, ctx.base.training, objects)
    no_layers, token_steps = config.target_modules == "none", config.embedding_only_steps
    if (not config.train_embedding and (no_layers or token_steps)) or (
        no_layers and 0 < token_steps < config.max_steps
    ):
        raise UsageError(
            "there would be steps in which nothing learns",
            "set train.target_modules, train.train_embedding or train.embedding_only_steps",
        )
    for name in ("learning_rate", "embedding_lr"):
        if getattr(config, name) > MAX_RATE:
            raise UsageError(f"train.{name} is {getattr(config, name):g}", f"from 0 to {MAX_RATE:g}, or auto")
    if ctx.team() and config.attention_loss_weight:
        raise UsageError(
            "attention maps are of all rows, and each process has its own",
            "train in one process, or set train.attention_loss_weight=0 and train.multi_object_attention_loss_weight=0",
        )
    return config


def make_plan(ctx: StageContext, sources: list[Ref], config: Train, embedding: Embed, prior: Prior) -> TrainingPlan:
    """Run the missing stages before training, and describe the adapter that the sources make."""
    groups = group_photos(sources)
    records = [ctx.store.read_record(group[0]) for group in groups]
    for record in records:
        ctx.check_base(record)
    if len({name for record in records for name in record.objects}) < len(records):
        raise UsageError("an object is named twice", "give each embedding once")
    if len(groups) > 1 and any(len(group) > 1 for group in groups):
        raise UsageError(
            "several objects of several photos are not trained together",
            "train each object by a command of its own; `objtune compose` combines them",
        )
    words = sorted({word for record in records for word in record.objects.values()}) if config.prior_loss_weight else []
    missing = [word for word in words if not prior_stage.exists(ctx, word, prior)]
    embeddings: list[Record] = []
    stages: list[Callable[[], Any]] = [
        lambda: embeddings.extend(ensure_embeddings(ctx, sources, embedding)),
        lambda: _ensure_priors(ctx, missing, prior),
    ]
    ctx.run_parallel(stages if missing else stages[:1])
    priors = _ensure_priors(ctx, words, prior)
    objects = {name: word for record in embeddings for name, word in record.objects.items()}
    inputs = {f"{EMBEDDING_ROLE}{r.name}": ctx.input_record(r.ref) for r in embeddings}
    for ref in priors.values():
        role = f"{PRIOR_ROLE}{ref.name}"  # two classes may have one name: Café and cafe
        inputs[f"{role}.{len(inputs)}" if role in inputs else role] = ctx.input_record(ref)
    record = Record(
        "adapter", class_words.name_adapter(objects), objects, inputs, identifying(config), ctx.base.record()
    )
    return TrainingPlan(record, embeddings, priors)


def group_photos(sources: list[Ref]) -> list[list[Ref]]:
    """The sources by object, in the order of their first: masks of one name are photos of one object, an embedding stands alone."""
    groups: dict[object, list[Ref]] = {}
    for number, ref in enumerate(sources):
        groups.setdefault(ref.name if ref.kind == "mask" else number, []).append(ref)
    return list(groups.values())


def _ensure_priors(ctx: StageContext, words: list[str], prior: Prior) -> dict[str, Ref]:
    """Compute or reuse the priors of classes; by class word."""
    with ctx.main_process_first():
        return {word: prior_stage.run(ctx, word, prior).ref for word in words}


def ensure_embeddings(ctx: StageContext, sources: list[Ref], embedding: Embed) -> list[Record]:
    """The embeddings of the sources; those of masks are computed if missing.

    Raises:
        IncompatibleError: An embedding is of another base.
    """
    with ctx.main_process_first():
        refs = [
            embed.run(ctx.without_force(), group, embedding).ref if group[0].kind == "mask" else group[0]
            for group in group_photos(sources)
        ]
    records = [ctx.store.read_record(ref) for ref in refs]
    for record in records:
        ctx.check_base(record)
    return records


def with_preview(ctx: StageContext, result: StageResult, plan: TrainingPlan, *, preview: bool) -> StageResult:
    """Add the preview grid to a result, if it is wanted and missing."""
    if preview and not any(path.name == preview_stage.FILE for path in result.images) and is_main_process(ctx.team()):
        try:
            image = preview_stage.draw(ctx, ctx.store.read_record(result.ref), plan.embeddings)
            result.images = [image, *result.images]
        except InputError as error:  # its prompts are longer than those of training
            ctx.report.note(f"no preview: {error.message}")
        except NonFiniteError as error:  # the adapter is stored, and its weights are finite
            ctx.report.note(f"no preview: {error.message}; {error.hint}")
    return result


def fill_defaults(config: Train, own: Mapping[str, Any], objects: int = 1) -> Train:
    """Replace 0 and "auto" by values for a base and a number of objects.

    Several objects of one photo get the attention term, and the steps of one object each (ours).

    Args:
        own: Training settings of the base.
    """
    defaults = {**registry.DEFAULT_TRAINING, **own}
    filled = {name: getattr(config, name) for name in registry.DEFAULT_TRAINING}
    filled = {name: defaults[name] if _is_auto(value) else value for name, value in filled.items()}
    if not config.max_steps:
        filled["max_steps"] *= objects
    filled["attention_loss_weight"] = config.attention_loss_weight or (
        config.multi_object_attention_loss_weight if objects > 1 else 0.0
    )
    filled["multi_object_attention_loss_weight"] = 0.0
    filled["single_object_prob"] = config.single_object_prob if objects > 1 else 0.0
    stop = config.early_stopping if config.early_stopping != "auto" else "off" if config.max_steps else "plateau"
    return replace(config, early_stopping=stop, **filled)


def _is_auto(value: Any) -> bool:
    """Whether a setting is left to the base."""
    return value is None or value == "auto" or (value == 0 and value is not False)


def train_one(ctx: StageContext, plan: TrainingPlan, config: Train) -> StageResult:
    """Train one adapter in a run of its own, or in several processes that share each batch."""
    subjects = load_subjects.load_subjects(ctx, plan.embeddings)
    model = load_for_training(ctx, config)
    class_words.check_length(model, [s.class_word for s in subjects], sum(s.num_trainable for s in subjects))
    checkpoint = Checkpoint(ctx.store, checkpoint_key(run_key(plan, model)))
    group = model.process_group
    is_main = is_main_process(group)
    with contextlib.ExitStack() as stack:
        if is_main:
            stack.enter_context(checkpoint.lock())
        reservation = stack.enter_context(DiskReservation(ctx.project))
        result = ctx.find_existing(plan.record, computed=True)  # another process may have finished it in the meantime
        if result:
            return result
        if is_main and not checkpoint.exists():
            unfinished_runs.report_restart(ctx, plan.record, checkpoint.key, describe_environment(model))
        run = _build_run(ctx, plan, config, model, subjects)
        loop = TrainingLoop(ctx, [run], checkpoint, reservation, shared=False)
        is_resumed = _restore(ctx, run, checkpoint)
        if is_main:
            loop.reserve_disk(resumed=is_resumed)
        for _, error in loop.run(lambda finished_runs: None):
            raise error
        if not is_main:
            group.barrier()
            return StageResult(ctx.find(plan.record, computed=True) or plan.record.ref, True)
        reservation.release()
        result = publish(ctx, run)
        checkpoint.discard()
        if group is not None:
            group.barrier()
    return result


def _build_run(
    ctx: StageContext, plan: TrainingPlan, config: Train, model: "BaseModel", subjects: "list[Subject]"
) -> TrainingRun:
    """The trainer of a plan, and in the main process its self-evaluation; the photo is augmented and encoded here."""
    from objtune_cli.training.trainer import Trainer

    ctx.report.note("encoding augmented views of the object")
    is_main = is_main_process(model.process_group)
    judge = build_self_evaluation(ctx, model, subjects) if config.self_evaluation and is_main else None
    if judge is not None and config.offload_vae:
        judge.towers.offload()
    return TrainingRun(0, plan, Trainer(model, subjects, load_priors(ctx, plan), config), judge)


def _restore(ctx: StageContext, run: TrainingRun, checkpoint: Checkpoint) -> bool:
    """Continue from a checkpoint if there is a sound one."""
    import torch

    tensors = checkpoint.load()
    if tensors is None:
        if checkpoint.exists():
            ctx.report.note(f"the saved state {checkpoint.name} is damaged: the run starts again")
        return False
    run.restore({k: torch.from_numpy(v) for k, v in tensors.items()})
    ctx.report.note(f"resumes at step {run.trainer.step} of {run.trainer.total}")
    return True


def load_for_training(ctx: StageContext, config: Train) -> "BaseModel":
    """Load the base model for training, with the memory savings of the settings."""
    from objtune_cli.models import memory_savings

    model = ctx.load_base_model(train=True)
    memory_savings.reduce_memory(
        model, checkpointing=config.gradient_checkpointing == "on", quantised=config.quantize_base
    )
    return model


def load_priors(ctx: StageContext, plan: TrainingPlan) -> dict[str, PriorArtifact]:
    """The class priors as torch tensors, by class word."""
    import torch

    stored = {word: PriorArtifact.from_tensors(ctx.store.read(ref)[1]) for word, ref in plan.priors.items()}
    return {word: prior.map(lambda array: torch.from_numpy(array.copy())) for word, prior in stored.items()}
