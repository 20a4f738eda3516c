"""`train`: embeddings of one photo's objects to one adapter; runs the missing stages itself."""

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from objtune_cli.config.sections import MAX_RATE, Embed, Prior, Train, identifying
from objtune_cli.embedding import stage as embed
from objtune_cli.errors import InputError, NonFiniteError, Stopped, UsageError
from objtune_cli.models import registry
from objtune_cli.store import artifacts
from objtune_cli.store.artifacts import Record
from objtune_cli.store.checkpoints import Checkpoint
from objtune_cli.store.disk_reservation import EXTRA_BYTES, DiskReservation
from objtune_cli.store.kinds.adapter import EMBEDDING_ROLE, PRIOR_ROLE, AdapterArtifact
from objtune_cli.store.kinds.prior import PriorArtifact
from objtune_cli.store.refs import Ref
from objtune_cli.training import class_prior_stage as prior_stage
from objtune_cli.training import load_subjects as subjects
from objtune_cli.training import preview as preview_stage
from objtune_cli.training import unfinished_runs
from objtune_cli.workflow import class_words
from objtune_cli.workflow.context import StageContext, StageResult

if TYPE_CHECKING:
    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.runtime.distributed import ProcessGroup
    from objtune_cli.training.self_evaluation import SelfEvaluation
    from objtune_cli.training.subjects import Subject
    from objtune_cli.training.trainer import Trainer

SAVE_EVERY = 30.0
"""Seconds between saved states; a signal saves at once."""


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """One adapter to be: its record, the embeddings that it starts from, the priors of its classes."""

    record: Record
    starts: list[Record]
    priors: dict[str, Ref]


def run(
    ctx: StageContext, sources: list[Ref], config: Train, embedding: Embed, prior: Prior, *, preview: bool = True
) -> StageResult:
    """Train one adapter for all objects that `sources` (masks or embeddings) name.

    Raises:
        UsageError: Objects of different photos. GateError: training diverged.
        Stopped: A signal came; the state is saved.
    """
    config = validate_config(ctx, config, len(sources))
    work = plan(ctx, sources, config, embedding, prior)
    done = ctx.find_existing(work.record, computed=True)
    if done is None and is_main_process(ctx.team()):
        unfinished_runs.report_earlier_runs(ctx, work.record)
    return with_preview(ctx, done or train_one(ctx, work, config), work, preview=preview)


def validate_config(ctx: StageContext, config: Train, objects: int = 1) -> Train:
    """The settings with what suits the base and the number of objects.

    Raises:
        UsageError: There would be steps in which nothing learns, or a rate is too large for an optimizer.
    """
    config = fill_defaults(config, ctx.base.training, objects)
    alone, first = config.modules == "none", config.token_first
    if (config.token == "fixed" and (alone or first)) or (alone and 0 < first < config.steps):
        raise UsageError(
            "there would be steps in which nothing learns", "set train.modules, train.token or train.token_first"
        )
    for name in ("lr", "token_lr"):
        if getattr(config, name) > MAX_RATE:
            raise UsageError(
                f"train.{name} is {getattr(config, name):g}", f"from 0 to {MAX_RATE:g}; 0 is what suits the base"
            )
    if ctx.team() and config.attention_weight:
        raise UsageError(
            "attention maps are of all rows, and each process has its own",
            "train in one process, or set train.attention_weight=0 and train.joint_attention=0",
        )
    return config


def plan(ctx: StageContext, sources: list[Ref], config: Train, embedding: Embed, prior: Prior) -> TrainingPlan:
    """What is to be made of the sources, the stages before it done."""
    given = [artifacts.read_record(ctx.root, ref) for ref in sources]
    for record in given:
        ctx.check_base(record)
    if len({name for record in given for name in record.objects}) < len(given):
        raise UsageError("an object is named twice", "give each embedding once")
    words = sorted({word for record in given for word in record.objects.values()}) if config.class_weight else []
    missing = [word for word in words if not prior_stage.exists(ctx, word, prior)]
    records: list[Record] = []
    work: list[Callable[[], Any]] = [
        lambda: records.extend(ensure_embeddings(ctx, sources, embedding)),
        lambda: _priors(ctx, missing, prior),
    ]
    ctx.run_parallel(work if missing else work[:1])
    made = _priors(ctx, words, prior)
    named = {name: word for record in records for name, word in record.objects.items()}
    inputs = {f"{EMBEDDING_ROLE}{r.name}": ctx.input_record(r.ref) for r in records}
    for ref in made.values():
        role = f"{PRIOR_ROLE}{ref.name}"  # two classes may have one name: Café and cafe
        inputs[f"{role}.{len(inputs)}" if role in inputs else role] = ctx.input_record(ref)
    name = "-".join(named)[:64].rstrip("-.")
    return TrainingPlan(Record("adapter", name, named, inputs, identifying(config), ctx.base.record()), records, made)


def _priors(ctx: StageContext, words: list[str], prior: Prior) -> dict[str, Ref]:
    """The priors of classes, by class word."""
    with ctx.main_process_first():
        return {word: prior_stage.run(ctx, word, prior).ref for word in words}


def ensure_embeddings(ctx: StageContext, sources: list[Ref], embedding: Embed) -> list[Record]:
    """The embeddings of masks and embeddings of one photo.

    Raises:
        IncompatibleError: One was made on another base.
    """
    with ctx.main_process_first():
        refs = [embed.run(ctx.without_force(), s, embedding).ref if s.kind == "mask" else s for s in sources]
    records = [artifacts.read_record(ctx.root, ref) for ref in refs]
    for record in records:
        ctx.check_base(record)
    return records


def with_preview(ctx: StageContext, done: StageResult, work: TrainingPlan, *, preview: bool) -> StageResult:
    """The result with its sheet of samples, if one is wanted."""
    if preview and not done.images and is_main_process(ctx.team()):
        try:
            done.images = [preview_stage.draw(ctx, artifacts.read_record(ctx.root, done.ref), work.starts)]
        except InputError as error:  # its sentences are longer than those of training
            ctx.report.note(f"no preview: {error.message}")
        except NonFiniteError as failed:  # the adapter is there, and its weights are finite
            ctx.report.note(f"no preview: {failed.message}; {failed.hint}")
    return done


def fill_defaults(config: Train, own: Mapping[str, Any], objects: int = 1) -> Train:
    """What is left to the base (0 and "auto") filled in from what suits it; several objects of one photo learn where their words look, and each has one's steps (ours)."""
    given = {name: getattr(config, name) for name in registry.DEFAULT_TRAINING}
    filled = {
        name: {**registry.DEFAULT_TRAINING, **own}[name] if value in (0, "auto") else value
        for name, value in given.items()
    }
    if not config.steps:
        filled["steps"] *= objects
    filled["attention_weight"] = config.attention_weight or (config.joint_attention if objects > 1 else 0.0)
    filled["joint_attention"] = 0.0
    filled["singles"] = config.singles if objects > 1 else 0.0
    stop = config.stop if config.stop != "auto" else "end" if config.steps else "good"
    return replace(config, stop=stop, **filled)


def train_one(ctx: StageContext, work: TrainingPlan, config: Train) -> StageResult:
    """One adapter by a run of its own."""
    from objtune_cli.training import trainer as training

    learning = subjects.load_subjects(ctx, work.starts)
    model = load_for_training(ctx, config)
    class_words.check_length(model, [s.class_word for s in learning], sum(s.num_trainable for s in learning))
    state = Checkpoint(ctx.project, checkpoint_key(run_key(work, model)))
    team = model.team
    with contextlib.ExitStack() as held:
        if is_main_process(team):
            held.enter_context(state.lock())
        room = held.enter_context(DiskReservation(ctx.project))
        done = ctx.find_existing(work.record, computed=True)  # another process may have finished it since we looked
        if done:
            return done
        if is_main_process(team) and not state.file.exists():
            unfinished_runs.report_restart(ctx, work.record, state.key, describe_environment(model))
        ctx.report.note("drawing placements of the object")
        judge = (
            build_self_evaluation(ctx, model, learning) if config.scores == "shown" and is_main_process(team) else None
        )
        if judge is not None and config.idle == "leaves":
            judge.towers.rest()
        trainer = training.Trainer(model, learning, load_priors(ctx, work), config)
        kept = state.load()
        if kept is None and state.file.exists():
            ctx.report.note(f"the saved state {state.file} is damaged: the run begins anew")
        if kept is not None:
            import torch

            trainer.restore({k: torch.from_numpy(v) for k, v in kept.items()})
            ctx.report.note(f"goes on at step {trainer.step} of {trainer.total}")
        if is_main_process(team):  # what is written, the first process writes
            room.reserve(_checkpoint_bytes(trainer) * (2 if kept is None else 1))
        _loop(ctx, work, trainer, state, room)
        if team is not None and not team.leads:
            team.together()
            return StageResult(ctx.find(work.record, computed=True) or work.record.ref, True)
        room.release()
        done = publish(ctx, work, trainer, judge)
        state.discard()
        if team is not None:
            team.together()
    return done


def is_main_process(team: "ProcessGroup | None") -> bool:
    """Whether this process is the one, or the first of several."""
    return team is None or team.leads


def load_for_training(ctx: StageContext, config: Train) -> "BaseModel":
    """The base, ready to be trained in as little memory as the settings ask for."""
    from objtune_cli.models import memory_savings

    model = ctx.load_base_model(train=True)
    memory_savings.reduce_memory(model, checkpointing=config.checkpointing == "on", quantised=config.quantised)
    return model


def run_key(work: TrainingPlan, model: "BaseModel") -> str:
    """What steps depend on, to the bit: a state of another key is no state of this run."""
    return f"{work.record.identity()}/{describe_environment(model)}"


def describe_environment(model: "BaseModel") -> str:
    """Device, number formats, threads and version of torch: what last digits of sums depend on."""
    import torch

    formats = f"{model.device.type}/{model.dtype}/{next(model.denoiser.parameters()).dtype}"
    return f"{formats}/{torch.get_num_threads()}/{torch.__version__}"


def checkpoint_key(text: str) -> str:
    """A run's key as its state has it."""
    return hashlib.sha256(text.encode()).hexdigest()


def load_priors(ctx: StageContext, work: TrainingPlan) -> dict[str, PriorArtifact]:
    """The classes' priors as torch tensors, by class word."""
    import torch

    return {
        word: PriorArtifact.from_tensors(artifacts.load(ctx.root, ref)[1]).map(
            lambda array: torch.from_numpy(array.copy())
        )
        for word, ref in work.priors.items()
    }


def publish(ctx: StageContext, work: TrainingPlan, trainer: "Trainer", judge: "SelfEvaluation | None") -> StageResult:
    """The adapter of a trainer that has taken its steps.

    Raises:
        GateError: A weight is not finite.
    """
    import torch

    from objtune_cli.lora import layers
    from objtune_cli.models import placeholders

    vectors = {name: placeholders.split_encoders(rows, trainer.model.widths) for name, rows in trainer.tokens().items()}
    tensors = AdapterArtifact(vectors, layers.state_dict(trainer.model, trainer.name)).to_tensors()
    metrics = {k: round(v, 6) for k, v in trainer.mean.items()} | {"steps": trainer.step}
    if not all(bool(torch.isfinite(v).all()) for v in tensors.values()):
        raise trainer.describe_failure("a weight is not finite")
    if judge is not None:
        layers.set_active(trainer.model, [trainer.name] if trainer.lora else [])
        metrics |= _self_evaluate(ctx, trainer, judge)
    ref = artifacts.publish(ctx.root, replace(work.record, metrics=metrics, tools=ctx.tools(trainer.model)), tensors)
    return StageResult(ref, False, [], metrics)


def build_self_evaluation(ctx: StageContext, model: "BaseModel", subjects: list["Subject"]) -> "SelfEvaluation | None":
    """Who looks at the run's own pictures; nobody where the base has no image tower."""
    from objtune_cli.generation.settings import SamplingSettings
    from objtune_cli.models import clip
    from objtune_cli.training.self_evaluation import SelfEvaluation

    if ctx.base.image_tower is None:
        return None
    return SelfEvaluation(
        model,
        clip.load(ctx.base.image_tower, model),
        subjects,
        SamplingSettings(**ctx.base.sampling_kwargs()),
        lambda done, total: ctx.check_stopped(),
        ctx.base.object_below(),  # without prompt guidance, which would cost two more rows per image
    )


WARN_COPY, WARN_DRIFT, WARN_IDENTITY, WARN_PROMPT = 0.4, 0.25, 0.4, 0.7
"""Scores from which a person should know: copy and drift above, identity and prompt below."""


def _self_evaluate(ctx: StageContext, trainer: "Trainer", judge: "SelfEvaluation") -> dict[str, float]:
    """The scores, said in words too, with what to change where one is bad; none where a picture is not finite."""
    names = list(trainer.learned)
    among = f"{' '.join(names)}: " if trainer.name != "default" else ""  # others stand beside it

    def note(text: str) -> None:
        ctx.report.note(among + text)

    try:
        found = {
            k: round(v, 4) for k, v in (judge.scores(trainer.said(), names) | {"drift": judge.drift(names)}).items()
        }
    except InputError as error:  # the object learned in shorter sentences than those that it is measured in
        note(f"no scores: {error.message}")
        return {}
    except NonFiniteError as failed:  # what was learned is finite, and may draw in another format
        note(f"no scores: {failed.message}; {failed.hint}")
        return {}
    if not all(math.isfinite(v) for v in found.values()):
        note("no scores: they are not finite")
        return {}
    note(
        "  ".join(f"{name} {found[name]:.2f}" for name in ("identity", "prompt", "drift", "copy"))
        + f"  ({trainer.step} steps)"
    )
    if found["copy"] > WARN_COPY:
        note(
            "the pictures copy the photo: fewer steps (`--steps`), a lower rate (`--set train.lr=…`), or a tighter mask"
        )
    if found["drift"] > WARN_DRIFT:
        note("the class itself came to look like the object: hold it more, `--set train.class_weight=6`")
    if found["identity"] < WARN_IDENTITY:
        note("the object is not well learned: more steps (`--steps`), or a larger and sharper photo of it")
    if found["prompt"] < WARN_PROMPT:
        note(
            "scenes are not followed as the class alone follows them: fewer steps, or `--set train.background_weight=2`"
        )
    return found


def _checkpoint_bytes(trainer: "Trainer") -> int:
    """Bytes of the largest file that is yet to be written: a state, which is three times the adapter. While one is replaced there are two."""
    return trainer.size() + EXTRA_BYTES


def _loop(ctx: StageContext, work: TrainingPlan, trainer: "Trainer", state: Checkpoint, room: DiskReservation) -> None:
    """Take the remaining steps, saving from time to time and when a signal comes."""
    from objtune_cli.training import trainer as training

    saved, team = time.monotonic(), trainer.model.team

    def on_step(step: int) -> None:
        nonlocal saved
        loss = sum(trainer.weights[name] * value for name, value in trainer.mean.items())
        ctx.report.step("train", step, trainer.total, loss=loss, **trainer.mean)
        signum = team.most(ctx.stopped()) if team is not None else ctx.stopped()
        due = (
            signum or trainer.finished or time.monotonic() - saved > SAVE_EVERY
        )  # what comes after the last step may be stopped too
        if is_main_process(team) and due:
            with room.lend(_checkpoint_bytes(trainer)):
                state.about = unfinished_runs.checkpoint_header(
                    [(work.record, trainer)], describe_environment(trainer.model)
                )
                state.save(trainer.state())
            saved = time.monotonic()
        if signum:
            raise Stopped(
                signum, f"stopped at step {step} of {trainer.total}, state saved", "the same command goes on from there"
            )

    training.run(trainer, on_step)
