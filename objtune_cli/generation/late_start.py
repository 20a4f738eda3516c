"""Start a sampler of diffusers in the middle of its schedule, as SDEdit needs it (arXiv:2108.01073), for some cells later than for others."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
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
    set_begin_index = getattr(sampler, "set_begin_index", lambda index: None)

    def set_shortened(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        sampler.every = sampler.timesteps
        sampler.timesteps = sampler.timesteps[start * sampler.order :]
        set_begin_index(start * sampler.order)

    def set_shifted_index(begin_index: int = 0) -> None:  # SDXL's pipeline sets 0, the first of its own timesteps
        set_begin_index(begin_index + start * sampler.order)

    @functools.wraps(step)  # the pipeline looks for `generator` in its signature
    def step_on_whole(*args: Any, **kwargs: Any) -> Any:
        sampler.timesteps = sampler.every
        return step(*args, **kwargs)

    sampler.set_timesteps, sampler.step = set_shortened, step_on_whole
    if hasattr(sampler, "set_begin_index"):
        sampler.set_begin_index = set_shifted_index


def add_noise(sampler: Any, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Noised latents (N, C, h, w) at timesteps t (N,); flow samplers call this method `scale_noise`."""
    noisy: Tensor = (
        sampler.add_noise(latents, noise, t)
        if hasattr(sampler, "add_noise")
        else sampler.scale_noise(latents, t, noise)
    )
    return noisy


@dataclass(frozen=True, slots=True)
class KeepCells:
    """Keeps the cells of a change map that are not sampled yet at the noised original.

    Attributes:
        latents: Of the original, scaled, (N, C, h, w). noise: Its noise, the same at every level.
        timesteps: Of the steps that are taken.
        change_map: See `sampling.resample`; None: nothing is kept.
    """

    sampler: Any
    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    change_map: Tensor | None

    def __call__(self, sampled: Tensor, done: int) -> Tensor:
        if self.change_map is None:
            return sampled
        original = self.latents
        if done < len(self.timesteps):
            t = self.timesteps[done : done + 1].expand(len(original))
            original = add_noise(self.sampler, original, self.noise, t)
        is_free = (self.change_map > 0) & (self.change_map >= 1 - done / len(self.timesteps))
        return torch.where(is_free.to(sampled.device), sampled, original.to(sampled))
