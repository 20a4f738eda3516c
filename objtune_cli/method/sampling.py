"""Prompts to latents through diffusers' own pipeline."""

from collections.abc import Callable, Sequence

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
) -> Tensor:
    """Draw one picture per seed.

    Args:
        prompt: Of all pictures, or one for each seed.

    Returns:
        Scaled latents (N, C, h, w), float32, on the CPU. A picture's noise depends on its own
        seed alone, so that it is the same in any batch.
    """
    pipe = stack.pipeline(scheduler)
    side = stack.size // stack.factor
    shape = (stack.unet.config.in_channels, side, side)
    noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])
    prompts = [prompt] * len(seeds) if isinstance(prompt, str) else list(prompt)
    encoded = {text: stack.encode([text]) for text in dict.fromkeys(prompts)}
    condition = torch.cat([encoded[text] for text in prompts])
    against = stack.encode([negative]).expand(len(seeds), -1, -1)

    def report(_pipe: object, index: int, _t: object, values: dict) -> dict:
        on_step(index + 1, steps)
        return values

    out = pipe(
        prompt_embeds=condition,
        negative_prompt_embeds=against,
        latents=noise.to(stack.device, stack.dtype),
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=stack.size,
        width=stack.size,
        output_type="latent",
        callback_on_step_end=report,
    )
    return out.images.float().cpu()


def to_uint8(pictures: Tensor) -> "Tensor":
    """Pictures (N, 3, H, W) in [-1, 1] to (N, H, W, 3) uint8."""
    return ((pictures + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()
