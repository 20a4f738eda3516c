"""`objtune bench memory`: GPU memory of `train`, counted on any machine as bytes of live tensors.

Architectures with random weights in the precision of a GPU take steps of our trainer on noise. Not counted: the GPU's
context, workspace inside kernels, free blocks. Also counted: augmented views of the photo, which on a machine with a GPU
stay in main memory.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from objtune_cli.bench.methods import METHODS
from objtune_cli.config.sections import Bench, Embed, Prior, Train
from objtune_cli.errors import UsageError
from objtune_cli.evaluation import statistics
from objtune_cli.models import random_weights, registry
from objtune_cli.models.prompts import SCENES
from objtune_cli.training import train
from objtune_cli.workflow.context import StageContext

if TYPE_CHECKING:
    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.runtime.tensor_memory import LiveTensorCounter
    from objtune_cli.training.trainer import Trainer

MB = 2**20
BASELINE = "dreambooth-lora"
OBJECTS = 2
"""Objects of one photo, so that there are combinations; the batch size is that of one object."""
VIEWS = 2
FORMS = {
    "step": (False, 0.0),
    "step_attention": (False, Train().multi_object_attention_loss_weight),
    "step_checkpointed": (True, 0.0),
    "step_checkpointed_attention": (True, Train().multi_object_attention_loss_weight),
}
"""Forms of a step: whether gradient checkpointing is on, and the weight of the attention loss."""


def run(ctx: StageContext, config: Bench) -> list[dict[str, Any]]:
    """Rows of each model, MB, one value each.

    Measures: `denoiser_mb`, `text_encoders_mb` (text encoders), `vae_mb` (VAE): weights. `prepare_mb`: encoding views and teacher predictions.
    `idle_mb`: between two steps. `step_mb`, `step_checkpointed_mb`: peak of a step with its optimizer, without and with gradient checkpointing;
    `_attention`: with the attention loss. `sampling_mb`: sampling four images with guidance, with the trainer in memory. `gpu_mb`: on a GPU, the
    peak that its allocator reports. Then `idle_mb` and `step_mb` of DreamBooth-LoRA with one photo and one class image per step, and the ratio
    of ours to it.
    """
    rows: list[dict[str, Any]] = []
    for name in random_weights.parse_names(config.memory_models):
        ctx.check_stopped()
        label, measures = _measure_model(ctx, name, config)
        baseline = _measure_baseline(ctx, name, config.resolution)
        ctx.report.note(f"{label}: a step of {BASELINE}: {baseline['step_mb']:.0f} MB")
        rows += statistics.table_rows(label, [measures]) + statistics.table_rows(f"{label}: {BASELINE}", [baseline])
        if "step_mb" in measures:
            rows += statistics.table_rows(f"{label}: ratio", [{"step_mb": measures["step_mb"] / baseline["step_mb"]}])
    return rows


def _measure_model(ctx: StageContext, name: str, config: Bench) -> tuple[str, dict[str, float]]:
    """The label and the measures of one model."""
    from objtune_cli.runtime import memory
    from objtune_cli.runtime.tensor_memory import LiveTensorCounter, module_tensors

    model = _load_model(ctx, name, config.resolution)
    label = f"{name} at {model.resolution} px"
    note = ctx.report.note
    note(f"{label}: {str(model.dtype).removeprefix('torch.')}, on {model.device}")
    live = LiveTensorCounter(multiply=model.device.type != "cpu" or not config.skip_matmuls)
    encoders = (*model.text_encoders, model.text_encoder_3)
    measures = {f"{part}_mb": live.add(module_tensors(*modules)) / MB for part, modules in
             {"denoiser": (model.denoiser,), "text_encoders": encoders, "vae": (model.vae,)}.items()}  # fmt: skip
    memory.reset_peak(model.device.type)
    with live:
        trainer = _build_trainer(ctx, model, name)
        measures["prepare_mb"] = live.peak / MB
        note(f"{label}: prepared, {live.peak / MB:.0f} MB")
        measures |= _steps(ctx, live, trainer, label)
        measures["sampling_mb"] = _measure_sampling(live, model) / MB
    note(f"{label}: drawn, {measures['sampling_mb']:.0f} MB; attention by {', '.join(sorted(live.attention))}")
    if model.device.type == "cuda":
        measures["gpu_mb"] = memory.peak_mb("cuda")
    return label, measures


def _measure_baseline(ctx: StageContext, name: str, side: int) -> dict[str, float]:
    """Memory of a step of DreamBooth-LoRA as in diffusers' script: both images in one forward pass, the whole model in memory."""
    from objtune_cli.runtime.tensor_memory import LiveTensorCounter, module_tensors
    from objtune_cli.training import noise_inputs
    from objtune_cli.training import trainer as training

    method = METHODS[BASELINE]
    model = _load_model(ctx, name, side)
    live = LiveTensorCounter(multiply=model.device.type != "cpu")
    live.add(module_tensors(model.denoiser, *model.text_encoders, model.text_encoder_3, model.vae))
    with live:
        config = train.fill_defaults(
            replace(Train(), **method.train), {**registry.DEFAULT_TRAINING, **model.family.training}
        )
        objects = noise_inputs.noise_subjects(model, replace(Embed(), **method.embed).num_vectors, 1)
        trainer = training.Trainer(model, objects, {"dog": noise_inputs.noise_prior(model, 1)}, config)
        trainer.train_step()
        resting = live.live_bytes / MB
        live.reset_peak()
        trainer.train_step()
    return {"idle_mb": resting, "step_mb": live.peak / MB}


def _load_model(ctx: StageContext, name: str, side: int) -> "BaseModel":
    """Load a model, with random weights or the base, in bf16 unless `--precision` says otherwise."""
    import torch

    from objtune_cli.models import loading
    from objtune_cli.runtime import devices, memory

    device = devices.pick_device(ctx.common.device)
    dtype = torch.bfloat16 if ctx.common.precision == "auto" else loading.PRECISIONS[ctx.common.precision]
    memory.empty_cache(device.type)
    if side % 64:
        raise UsageError(f"bench.resolution is {side}", "a multiple of 64")
    if name != "base":
        return random_weights.random_base_model(name, device, dtype, side)
    return loading.load(ctx.base.folder, device, dtype, ctx.base.weights, ctx.base.prediction)


def _build_trainer(ctx: StageContext, model: "BaseModel", name: str) -> "Trainer":
    """A trainer on objects in noise, with the settings of this layout.

    Teacher predictions are computed once, and stored as many times as in a run.
    """
    from objtune_cli.training import noise_inputs
    from objtune_cli.training import trainer as training

    own = ctx.base.training if name == "base" else {**registry.DEFAULT_TRAINING, **model.family.training}
    full = train.fill_defaults(ctx.settings.resolve(Train), own, OBJECTS)
    priors = (
        {"dog": noise_inputs.noise_prior(model, ctx.settings.resolve(Prior).num_predictions)}
        if full.prior_loss_weight
        else {}
    )
    config = replace(
        full,
        num_teacher_samples=1,
        num_augmentations=min(full.num_augmentations, VIEWS),
        early_stopping="off",
        ema_decay=0.0,
        prior_loss_interval=1,
        gradient_checkpointing="off",
    )  # each step has a class pass
    trainer = training.Trainer(
        model, noise_inputs.noise_subjects(model, ctx.settings.resolve(Embed).num_vectors, OBJECTS), priors, config
    )
    subsets = trainer.teacher.predictions
    repeats = -(-full.num_teacher_samples // len(subsets))
    for batch in (batch for templates in subsets for batch in templates.values()):
        for name in ("indices", "z_t", "t", "target", "prediction"):
            value = getattr(batch, name)
            setattr(batch, name, value.repeat(repeats, *[1] * (value.ndim - 1)))
    return trainer


def _steps(ctx: StageContext, live: "LiveTensorCounter", trainer: "Trainer", label: str) -> dict[str, float]:
    """The peak of one step of each form, after a first step that creates the optimizer's moments."""
    import torch

    measures: dict[str, float] = {}
    trainer.model.denoiser.enable_gradient_checkpointing()
    trainer.train_step()
    measures["idle_mb"] = live.live_bytes / MB
    for form, (is_checkpointed, weight) in FORMS.items():
        ctx.check_stopped()
        (
            trainer.model.denoiser.enable_gradient_checkpointing
            if is_checkpointed
            else trainer.model.denoiser.disable_gradient_checkpointing
        )()
        trainer.reconfigure(replace(trainer.config, attention_loss_weight=weight))
        live.reset_peak()
        try:
            trainer.train_step()
        except torch.OutOfMemoryError:
            ctx.report.note(f"{label}: a step, {form.replace('_', ', ')}, does not fit")
            continue
        measures[f"{form}_mb"] = live.peak / MB
        ctx.report.note(f"{label}: a step, {form.replace('_', ', ')}: {live.peak / MB:.0f} MB")
    return measures


def _measure_sampling(live: "LiveTensorCounter", model: "BaseModel") -> int:
    """Peak bytes of sampling and decoding images; one sampling step stands for all."""
    from objtune_cli.generation import sampling
    from objtune_cli.generation.settings import SamplingSettings

    live.reset_peak()
    prompts = [f"a photo of a dog {scene}" for scene in SCENES]
    model.decode_latents(sampling.sample(model, prompts, list(range(len(prompts))), SamplingSettings(1, 5.0)))
    return live.peak
