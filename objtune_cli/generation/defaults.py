"""The settings of sampling that the user leaves to a LoRA of few steps, or to the base."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from objtune_cli.config.sections import Generate
from objtune_cli.generation import extra_loras, image_size
from objtune_cli.generation.extra_loras import ExtraLora
from objtune_cli.generation.fast_loras import FastLora
from objtune_cli.workflow.context import StageContext


def fill_defaults(ctx: StageContext, config: Generate, loras: Sequence[ExtraLora] = ()) -> Generate:
    """The settings with the values of a LoRA of few steps, or of the base, where the user left them open.

    Args:
        loras: LoRAs that act on every image.
    """
    fast = extra_loras.find_fast_lora(ctx, loras)
    config = _fill_fast(ctx, config, fast) if fast else config
    base_sampling = ctx.base.sampling
    return replace(
        image_size.fit_size(ctx, config),
        num_inference_steps=config.num_inference_steps or int(base_sampling["num_inference_steps"]),
        guidance_scale=config.guidance_scale if config.guidance_scale >= 0 else float(base_sampling["guidance_scale"]),
        guidance_interval_high=config.guidance_interval_high
        if config.guidance_interval_high >= 0
        else float(base_sampling.get("guidance_interval_high", 1)),
        prompt_guidance_scale=ctx.base.prompt_guidance_scale(config.prompt_guidance_scale),
        subject_conditioning_start=ctx.base.subject_conditioning_start(config.subject_conditioning_start),
    )


def _fill_fast(ctx: StageContext, config: Generate, fast: FastLora) -> Generate:
    """The settings with those of a LoRA of few steps, which one note lists."""
    values: dict[str, Any] = {}
    listed = []
    if config.scheduler == "auto":
        values["scheduler"] = fast.scheduler
        listed.append(f"--scheduler {fast.scheduler}")
    if not config.num_inference_steps:
        values["num_inference_steps"] = fast.num_inference_steps
        listed.append(f"--steps {fast.num_inference_steps}")
    if config.guidance_scale < 0:
        values["guidance_scale"] = fast.guidance_scale
        listed.append(f"--guidance {fast.guidance_scale:g}")
    if listed:
        ctx.report.note(f"few-step LoRA ({fast.title}): {' '.join(listed)}")
    if config.prompt_guidance_scale < 0:
        values["prompt_guidance_scale"] = 0.0  # guidance is distilled into the LoRA
    return replace(config, **values)


def note_guidance(ctx: StageContext, config: Generate) -> None:
    """Warn the user if the negative prompt has no effect."""
    if config.negative_prompt.strip() and config.guidance_scale <= 1:
        ctx.report.note(
            f"the negative prompt has no effect at a guidance of {config.guidance_scale:g}; it acts above 1"
        )
    elif config.negative_prompt.strip() and config.guidance_interval_high <= 0:
        ctx.report.note(
            "the negative prompt has no effect, because `generate.guidance_interval_high` lets guidance act at no step"
        )
