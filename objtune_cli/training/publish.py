"""The end of a training run: its adapter is scored by self-evaluation and published."""

import json
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from objtune_cli.errors import InputError, NonFiniteError
from objtune_cli.images import png
from objtune_cli.store.kinds.adapter import AdapterArtifact
from objtune_cli.store.refs import Ref
from objtune_cli.training import history, progress_samples
from objtune_cli.training.run_loop import TrainingRun
from objtune_cli.workflow.context import StageContext, StageResult

if TYPE_CHECKING:
    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.training.self_evaluation import SelfEvaluation
    from objtune_cli.training.subjects import Subject

WARN_COPY, WARN_DRIFT, WARN_IDENTITY, WARN_PROMPT = 0.4, 0.25, 0.4, 0.7
"""Scores that the user is warned of: copy and drift above, identity and prompt below."""


def publish(ctx: StageContext, run: TrainingRun) -> StageResult:
    """Publish the adapter of a run that has taken its steps.

    Raises:
        GateError: A weight is not finite.
    """
    import torch

    from objtune_cli.lora import layers
    from objtune_cli.models import placeholders

    trainer = run.trainer
    vectors = {
        name: placeholders.split_encoders(own, trainer.model.widths)
        for name, own in trainer.tokens.as_tensors().items()
    }
    tensors = AdapterArtifact(vectors, layers.state_dict(trainer.model, trainer.name)).to_tensors()
    metrics = {k: round(v, 6) for k, v in trainer.running_losses.items()} | {"steps": trainer.step}
    if not all(bool(torch.isfinite(v).all()) for v in tensors.values()):
        raise trainer.describe_failure("a weight is not finite")
    if run.judge is not None:
        layers.set_active(trainer.model, [trainer.name] if trainer.lora else [])
        start_time = time.monotonic()
        metrics |= _self_evaluate(ctx, run, run.judge)
        run.history.record_seconds("scores", time.monotonic() - start_time)
    ref = ctx.publish(replace(run.plan.record, metrics=metrics, tools=ctx.tools(trainer.model)), tensors)
    _write_history(ctx, run, ref)
    _report_seconds(ctx, run)
    return StageResult(ref, False, [], metrics)


def _write_history(ctx: StageContext, run: TrainingRun, ref: Ref) -> None:
    """Write curves and samples beside the adapter."""
    prompts = progress_samples.prompts_of(list(run.plan.record.objects))
    document = json.dumps(run.history.document(prompts), allow_nan=False)
    ctx.store.write(f"{ref.images_key}{history.FILE}", document.encode())
    if run.history.samples:
        strip = progress_samples.draw_strip(run.history.samples, run.history.scores)
        ctx.store.write_image(ref, progress_samples.STRIP, png.encode_png(strip))


def _report_seconds(ctx: StageContext, run: TrainingRun) -> None:
    """Report where the time of a run went."""
    seconds = run.history.seconds
    ctx.report.step(
        "seconds", run.trainer.step, run.trainer.total, **{f"{run.log_prefix}{k}": v for k, v in seconds.items()}
    )
    spent = ", ".join(f"{activity} {value:.1f} s" for activity, value in seconds.items())
    if spent:
        ctx.report.note(f"{run.log_prefix.replace('/', ': ')}time: {spent}")


def build_self_evaluation(ctx: StageContext, model: "BaseModel", subjects: list["Subject"]) -> "SelfEvaluation | None":
    """The self-evaluation of runs on a model; None if the base has no CLIP image encoder."""
    from objtune_cli.generation.settings import SamplingSettings
    from objtune_cli.models import clip
    from objtune_cli.training.self_evaluation import SelfEvaluation

    if ctx.base.clip_path is None:
        return None
    return SelfEvaluation(
        model,
        clip.load(ctx.base.clip_path, model),
        subjects,
        SamplingSettings(**ctx.base.sampling_kwargs()),
        lambda done, total: ctx.check_stopped(),
        ctx.base.subject_conditioning_start(),  # without prompt guidance, which would cost two more samples per image
    )


def _self_evaluate(ctx: StageContext, run: TrainingRun, judge: "SelfEvaluation") -> dict[str, float]:
    """The scores of the run's own images, with advice in words where one is bad; empty if an image is not finite."""
    trainer = run.trainer
    names = list(trainer.tokens.trainable)
    prefix = f"{' '.join(names)}: " if trainer.shares_model else ""

    def note(text: str) -> None:
        ctx.report.note(prefix + text)

    try:
        scores = {
            k: round(v, 4)
            for k, v in (judge.scores(trainer.tokens.sync(), names) | {"drift": judge.drift(names)}).items()
        }
    except InputError as error:  # the prompts of the scores are longer than those of training
        note(f"no scores: {error.message}")
        return {}
    except NonFiniteError as failed:  # the adapter is finite, and may work in another precision
        note(f"no scores: {failed.message}; {failed.hint}")
        return {}
    if not all(math.isfinite(v) for v in scores.values()):
        note("no scores: they are not finite")
        return {}
    logged = {f"{run.log_prefix}{name}": value for name, value in scores.items()}
    ctx.report.step("scores", trainer.step, trainer.total, **logged)
    note(
        "  ".join(f"{name} {scores[name]:.2f}" for name in ("identity", "prompt", "drift", "copy"))
        + f"  ({trainer.step} steps)"
    )
    if scores["copy"] > WARN_COPY:
        note(
            "the pictures copy the photo: fewer steps (`--steps`), a lower rate (`--set train.learning_rate=…`), or a tighter mask"
        )
    if scores["drift"] > WARN_DRIFT:
        note("the class came to look like the object: raise the class weight, `--set train.prior_loss_weight=6`")
    if scores["identity"] < WARN_IDENTITY:
        note("the object is not well learned: more steps (`--steps`), or a larger and sharper photo of it")
    if scores["prompt"] < WARN_PROMPT:
        note(
            "images follow their scenes less than images of the class do: fewer steps, or `--set train.background_loss_weight=2`"
        )
    return scores
