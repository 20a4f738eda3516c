"""`train --dry-run`: what a run will take, by taking steps of it on pictures of noise; nothing is written."""

import time
from dataclasses import replace
from typing import Any

from objtune_cli.config.sections import Embed, Prior, Train
from objtune_cli.training.train import fill_defaults
from objtune_cli.workflow.context import StageContext

WARMUP_STEPS, MEASURED_STEPS = 1, 2
"""Steps before and while it is measured."""


def run(ctx: StageContext, config: Train, embedding: Embed, objects: int = 1) -> dict[str, Any]:
    """Memory (MB) and time (s) of one step with these settings on this base and device, and what the whole comes to.

    Memory is the largest of weights, placements and steps; the pictures at the end of a run are not in it.
    """
    from objtune_cli.models import memory_savings
    from objtune_cli.runtime import memory
    from objtune_cli.training import noise_inputs
    from objtune_cli.training import trainer as training

    config = fill_defaults(config, ctx.base.training, objects)
    ctx.check_stopped()
    model = ctx.load_base_model(train=True)
    kind = model.device.type
    memory_savings.reduce_memory(
        model, checkpointing=config.gradient_checkpointing == "on", quantised=config.quantize_base
    )
    memory.reset_peak(kind)
    priors = (
        {"dog": noise_inputs.noise_prior(model, ctx.settings.resolve(Prior).num_predictions)}
        if config.prior_loss_weight
        else {}
    )
    trainer = training.Trainer(
        model,
        noise_inputs.noise_subjects(model, embedding.num_vectors, objects),
        priors,
        replace(
            config,
            ema_decay=0.0,
            early_stopping="off",
            num_augmentations=min(config.num_augmentations, 4),
            num_teacher_samples=4,
        ),
    )
    prepared = memory.peak_mb(kind)
    for _ in range(WARMUP_STEPS):
        trainer.train_step()
    memory.reset_peak(kind)
    start_time = time.monotonic()
    for i in range(MEASURED_STEPS):
        ctx.report.step("dry run", i + 1, MEASURED_STEPS)
        trainer.train_step()
    _synchronize(kind)
    step = (time.monotonic() - start_time) / MEASURED_STEPS
    return {
        "base": ctx.base.id, "device": str(model.device), "precision": str(model.dtype).removeprefix("torch."), "step_mb": round(memory.peak_mb(kind)),
        "preparing_mb": round(prepared), "room_mb": round(memory.available_mb(kind)), "step_seconds": round(step, 4), "steps": config.max_steps,
        "seconds": round(step * config.max_steps), "learned": sum(p.numel() for p in trainer.lora), "recomputed": bool(model.denoiser.is_gradient_checkpointing),
    }  # fmt: skip


def suggest_savings(estimate: dict[str, Any], config: Train) -> str:
    """Which settings take less, those that cost least first; empty where there is room."""
    need = max(estimate["step_mb"], estimate["preparing_mb"])
    if not estimate["room_mb"] or need < estimate["room_mb"]:
        return ""
    savings = {
        "--set train.gradient_checkpointing=on": config.gradient_checkpointing == "on" or estimate["recomputed"], "--set train.batch_size=1": config.batch_size == 1,
        "--precision bf16": estimate["precision"] != "float32", "--set train.quantize_base=4bit": config.quantize_base != "none",
        "--set train.optimizer=adamw8bit": config.optimizer == "adamw8bit",
    }  # fmt: skip
    return ", ".join(f"`{text}`" for text, set_already in savings.items() if not set_already)


def _synchronize(kind: str) -> None:
    """Wait for a GPU's queue."""
    if kind == "cuda":
        import torch

        torch.cuda.synchronize()
