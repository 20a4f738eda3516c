"""The class prior: what the frozen base draws and predicts for a class, computed once and kept.

Training compares against these predictions (L_CC) instead of running the frozen base again.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from objtune_cli.config import Prior
from objtune_cli.method.prototype import PROMPT, with_article
from objtune_cli.models.stack import Stack
from objtune_cli.numerics.noise import add_noise, step_generator, timesteps

SAMPLING_STEPS = 15
FOCUS, SHARE = (0.4, 0.98), 0.6
"""Noise levels at which the class is held: higher than those that learn the object, for there a class word becomes a shape."""


def compute(
    stack: Stack, class_word: str, config: Prior, guidance: float, on_step: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Tensor]:
    """Class samples and the frozen base's predictions for fixed (z_t, t).

    Returns:
        "latents" (N, C, h, w): the samples; "z_t", "pred" (M, C, h, w) and "t" (M,) int64.
    """
    prompt = PROMPT.format(with_article(class_word))
    latents = _samples(stack, prompt, config, guidance, on_step)
    g = step_generator(config.seed, 0)
    rows = torch.arange(config.entries) % len(latents)
    t = timesteps(config.entries, len(stack.alpha_bar), g, FOCUS, SHARE)
    noise = torch.randn((config.entries, *latents.shape[1:]), generator=g)
    z_t = add_noise(latents[rows], noise, stack.alpha_bar.cpu(), t)
    preds = []
    with torch.no_grad():
        condition = stack.encode([prompt])
        for z, s in zip(z_t.split(8), t.split(8), strict=True):
            preds.append(stack.predict(z.to(stack.device), s, condition.expand(len(z), -1, -1)).float().cpu())
    return {"latents": latents, "z_t": z_t, "t": t, "pred": torch.cat(preds)}


def _samples(stack: Stack, prompt: str, config: Prior, guidance: float, on_step: Callable[[int, int], None]) -> Tensor:
    from objtune_cli.method.sampling import sample

    done = []
    for start in range(0, config.samples, 4):
        seeds = list(range(config.seed + start, config.seed + min(start + 4, config.samples)))
        done.append(sample(stack, prompt, "", seeds, SAMPLING_STEPS, guidance))
        on_step(start + len(seeds), config.samples)
    return torch.cat(done)
