"""Prompts to latents through diffusers' own pipeline."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from objtune_cli.models.stack import Stack


@torch.no_grad()
def sample(
    stack: Stack,
    prompt: str | Sequence[str],
    negative: str,
    seeds: list[int],
    steps: int,
    guidance: float,
    scheduler: str = "base",
    on_step: Callable[[int, int], None] = lambda done, total: None,
    below: float = 1.0,
    size: tuple[int, int] = (0, 0),
    conditions: Mapping[str, Tensor] = MappingProxyType({}),
) -> Tensor:
    """Draw one picture per seed.

    Args:
        prompt: Of all pictures, or one for each seed.
        below: Noise levels from which guidance acts, fraction of the whole: above them, where poses and places are
            decided, the prompt speaks alone and they stay as various as they were learned (arXiv:2404.07724).
        size: Height and width of the pictures, px, multiples of what the base divides them by; 0: the base's own.
        conditions: Prompts that are not simply encoded, to what the denoiser is told instead, (1, L, d).

    Returns:
        Scaled latents (N, C, h, w), float32, on the CPU. A picture's noise depends on its own
        seed alone, so that it is the same in any batch.
    """
    pipe = stack.pipeline(scheduler)
    height, width = (side or stack.size for side in size)
    shape = (stack.unet.config.in_channels, height // stack.factor, width // stack.factor)
    noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])
    prompts = [prompt] * len(seeds) if isinstance(prompt, str) else list(prompt)
    encoded = {text: conditions[text] if text in conditions else stack.encode([text]) for text in dict.fromkeys(prompts)}
    condition = torch.cat([encoded[text] for text in prompts])
    against = stack.encode([negative]).expand(len(seeds), -1, -1)

    free = 0  # steps before guidance
    if below < 1:
        pipe.scheduler.set_timesteps(steps, device=stack.device)
        free = int((pipe.scheduler.timesteps >= below * stack.levels).sum())

    def report(pipe: Any, index: int, _t: object, values: dict) -> dict:
        on_step(index + 1, steps)
        if index + 1 == free and guidance > 1:
            pipe._guidance_scale = guidance
            values = values | stack.family.guided(stack, condition, against, height, width)
        return values

    out = pipe(
        **stack.family.prompts(stack, condition, against),
        latents=noise.to(stack.device, stack.dtype),
        num_inference_steps=steps,
        guidance_scale=1.0 if free else guidance,
        height=height,
        width=width,
        output_type="latent",
        callback_on_step_end=report,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    )
    return out.images.float().cpu()


def to_uint8(pictures: Tensor) -> "Tensor":
    """Pictures (N, 3, H, W) in [-1, 1] to (N, H, W, 3) uint8."""
    return ((pictures + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()
