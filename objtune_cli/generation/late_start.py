"""Start a sampler of diffusers in the middle of its schedule, as SDEdit needs it (arXiv:2108.01073)."""

import functools
from typing import Any

from torch import Tensor

from objtune_cli.models.base_model import BaseModel


def restartable_sampler(model: BaseModel, sampler: Any) -> Any:
    """The sampler, or a simpler one on the same noise levels for samplers that need the history of their first steps."""
    from diffusers import EulerDiscreteScheduler

    name = type(sampler).__name__
    if name == "PNDMScheduler":
        return model.family.make_sampler(model.scheduler, "ddim")
    return EulerDiscreteScheduler.from_config(sampler.config) if name == "LMSDiscreteScheduler" else sampler


def start_at_step(sampler: Any, start: int) -> None:
    """Make a sampler skip its first `start` steps.

    The loops of diffusers' pipelines read `timesteps` once, after they set them, and get the shortened list; `step` works on the whole list.
    """
    set_timesteps, step = sampler.set_timesteps, sampler.step

    def set_shortened(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        sampler.every = sampler.timesteps
        sampler.timesteps = sampler.timesteps[start * sampler.order :]
        if hasattr(sampler, "set_begin_index"):
            sampler.set_begin_index(start * sampler.order)

    @functools.wraps(step)  # the pipeline looks for `generator` in its signature
    def step_on_whole(*args: Any, **kwargs: Any) -> Any:
        sampler.timesteps = sampler.every
        return step(*args, **kwargs)

    sampler.set_timesteps, sampler.step = set_shortened, step_on_whole


def add_noise(sampler: Any, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Noised latents (N, C, h, w) at timesteps t (N,); flow samplers call this method `scale_noise`."""
    noisy: Tensor = (
        sampler.add_noise(latents, noise, t)
        if hasattr(sampler, "add_noise")
        else sampler.scale_noise(latents, t, noise)
    )
    return noisy
