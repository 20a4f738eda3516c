"""Compare ways to train the denoiser: each gets the same processor seconds from the same start."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from objtune_cli.toybox.recipe import denoiser, latent_cache, optimizers
from objtune_cli.toybox.recipe.dataset import ToyboxDataset
from objtune_cli.toybox.recipe.presets import Preset
from objtune_cli.toybox.recipe.train_loop import Plan, advance

Clock = Callable[[], float]
VARIANTS: dict[str, dict[str, object]] = {
    "adamw": {},
    "adamw, min-snr": {"denoiser_weighting": "min-snr"},
    "muon": {"denoiser_optimizer": "muon"},
}
"""Name to the fields of the preset that differ."""
IMAGES = 3_000
"""Training images of the comparison."""
VALIDATION_IMAGES = 256
WARMUP, DECAY = 20, 0.4
"""Steps in which the learning rate rises, and the last fraction of the time in which it falls."""


def run(
    work: Path, preset: Preset, data: ToyboxDataset, tokenizer, clip, vae, seconds: float, device: str = "cpu"
) -> dict[str, dict[str, float]]:
    """Validation measures of each variant after `seconds` of processor time; finished variants are read from the work folder."""
    file = work / "comparison.json"
    done: dict[str, dict[str, float]] = json.loads(file.read_bytes()) if file.exists() else {}
    bank = latent_cache.load_or_encode(work, data, vae, IMAGES)
    for name, fields in {"start": None, **VARIANTS}.items():
        if name in done:
            continue
        variant = replace(preset, **(fields or {}))  # type: ignore[arg-type]  # the fields' types differ
        unet = denoiser.build(variant).to(device)
        examples = denoiser.Examples(variant, data, bank, tokenizer, clip, device)
        losses = examples.losses(unet)
        steps = 0 if fields is None else train_for(unet, losses, variant, seconds, time.process_time)
        done[name] = {"steps": float(steps), **examples.validate(unet.eval(), VALIDATION_IMAGES)}
        file.write_text(json.dumps(done, indent=1) + "\n")
        print(f"compare: {name}: " + "  ".join(f"{k} {v:.4g}" for k, v in done[name].items()), flush=True)
    return done


def train_for(unet, losses, preset: Preset, seconds: float, clock: Clock) -> int:
    """Train for `seconds` of the clock with a rate that falls to 1 % at the end; the weights become the average ones."""
    plan = Plan(1, preset.denoiser_lr, ema=0.98, seed=preset.seed, optimizer=preset.denoiser_optimizer)
    params = [p for p in unet.parameters() if p.requires_grad]
    optimizer = optimizers.build(plan.optimizer, params, plan.lr, weight_decay=0.01)
    average = [p.detach().clone() for p in params]
    unet.train()
    start_time, step = clock(), 0
    while (spent := (clock() - start_time) / seconds) < 1:
        falling = 0.01 + 0.99 * min(1.0, (1 - spent) / DECAY)
        rate = preset.denoiser_lr * min(1.0, (step + 1) / WARMUP) * falling
        advance(plan, step, rate, losses, params, optimizer, average)
        step += 1
    with torch.no_grad():
        for p, mean in zip(params, average, strict=True):
            p.copy_(mean)
    return step
