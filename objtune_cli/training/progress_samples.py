"""Samples while a run trains: always the same prompts and the same noise, so that only the weights differ."""

from typing import TYPE_CHECKING, Any

from objtune_cli.config.sections import Train
from objtune_cli.errors import InputError, NonFiniteError
from objtune_cli.models.prompts import SCENES
from objtune_cli.workflow.context import StageContext

if TYPE_CHECKING:
    import numpy as np

    from objtune_cli.training.run_loop import TrainingRun

STRIP = "samples.png"
"""The strip of samples beside an adapter."""
NUM_PROMPTS = 2
"""Prompts of each sample, the first of `SCENES`."""
NUM_STEPS = 8
"""Sampling steps of each sample."""
FIRST_SEED = 900
AUTO_SAMPLES, STEPS_PER_SAMPLE = 6, 60
"""Samples of a run at most, and training steps for each: a sample takes as long as three steps, and 3 / 60 is 5 %."""
MAX_SIDE = 256
"""Longer side of a kept image, px."""
GAP, LABEL = 6, 18


def sampling_interval(config: Train, total: int) -> int:
    """Steps between two samples; 0: none.

    Args:
        total: Steps of the run.
    """
    if config.sample_every >= 0:
        return config.sample_every
    count = min(AUTO_SAMPLES, total // STEPS_PER_SAMPLE)
    return total // count if count else 0


def is_due(run: "TrainingRun") -> bool:
    """Whether a run samples after the step that it has just taken."""
    trainer = run.trainer
    interval = sampling_interval(trainer.config, trainer.config.max_steps)
    return bool(interval) and (trainer.step % interval == 0 or trainer.finished)


def prompts_of(names: list[str]) -> list[str]:
    """The prompts of the samples of some objects, with placeholders."""
    objects = " and ".join(f"<{name}>" for name in names)
    return [f"a photo of {objects} {scene}" for scene in SCENES[:NUM_PROMPTS]]


def draw(ctx: StageContext, run: "TrainingRun") -> None:
    """Sample with the weights of a run as they are, and record and report the images.

    A prompt that is too long, or an image that is not finite, is noted: the run itself goes on.
    """
    import numpy as np
    import torch

    from objtune_cli.generation import sampling
    from objtune_cli.generation.settings import SamplingSettings
    from objtune_cli.lora import layers

    trainer = run.trainer
    model, names = trainer.model, list(run.plan.record.objects)
    layers.set_active(model, [trainer.name] if trainer.lora else [])
    settings: Any = ctx.base.sampling_kwargs()
    settings |= {"num_inference_steps": NUM_STEPS, "subject_conditioning_start": ctx.base.subject_conditioning_start()}
    try:
        with torch.no_grad():
            prompts = [trainer.tokens.sync().expand(prompt) for prompt in prompts_of(names)]
            seeds = [FIRST_SEED + i for i in range(len(prompts))]
            latents = sampling.sample(model, prompts, seeds, SamplingSettings(**settings))
            images = model.decode_latents(latents)
            scores = {} if run.judge is None else run.judge.score_images(images, names)
    except (InputError, NonFiniteError) as error:
        ctx.report.note(f"no samples at step {trainer.step}: {error.message}")
        return
    finally:
        if trainer.config.offload_vae:
            model.offload_vae()
    rgb = sampling.to_uint8(images.cpu()).numpy()
    run.history.samples[trainer.step] = np.stack([_shrink(picture) for picture in rgb])
    run.history.scores[trainer.step] = {name: round(value, 4) for name, value in scores.items()}
    shown = {f"{run.log_prefix}{name}": value for name, value in run.history.scores[trainer.step].items()}
    ctx.report.step("samples", trainer.step, trainer.total, **shown)
    ctx.report.image("samples", trainer.step, run.plan.record.name, draw_strip(run.history.samples, {}))


def draw_strip(samples: "dict[int, np.ndarray]", scores: dict[int, dict[str, float]]) -> "np.ndarray":
    """Draw samples as a strip (H, W, 3) uint8: a column for each step, a row for each prompt.

    Args:
        samples: Images (N, H, W, 3) uint8 by step. scores: By step; identity stands beside the step.
    """
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    columns = [samples[step] for step in sorted(samples)]
    rows, height, width = columns[0].shape[:3]
    scale = max(1, 128 // height)
    height, width = height * scale, width * scale
    size = (len(columns) * (width + GAP) + GAP, rows * (height + GAP) + GAP + LABEL)
    canvas = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for i, step in enumerate(sorted(samples)):
        x = GAP + i * (width + GAP)
        identity = scores.get(step, {}).get("identity")
        label = f"step {step}" + ("" if identity is None else f"   identity {identity:.2f}")
        pen.text((x, 3), label, fill="black", font=font)
        for j, picture in enumerate(samples[step]):
            enlarged = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
            canvas.paste(enlarged, (x, LABEL + GAP + j * (height + GAP)))
    return np.asarray(canvas)


def _shrink(picture: "np.ndarray") -> "np.ndarray":
    """A picture (H, W, 3) uint8 of at most `MAX_SIDE`."""
    import cv2

    height, width = picture.shape[:2]
    scale = min(1.0, MAX_SIDE / max(height, width))
    if scale == 1:
        return picture
    return cv2.resize(picture, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
