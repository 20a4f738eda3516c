"""Sample latents from prompts with diffusers' own pipelines."""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from objtune_cli.errors import NonFiniteError
from objtune_cli.generation import late_start, prompt_phases
from objtune_cli.generation.guidance import extra_guidance
from objtune_cli.generation.prompt_phases import PhaseConditions
from objtune_cli.generation.settings import SamplingSettings
from objtune_cli.models import finite_checks, memory_savings
from objtune_cli.models.adapter_state import disabled
from objtune_cli.models.base_model import BaseModel, set_steps
from objtune_cli.models.conditioning import Conditioning
from objtune_cli.models.families import samplers
from objtune_cli.models.placeholders import check_objects_read
from objtune_cli.models.prompts import find_names
from objtune_cli.numerics.ddpm import seeded


@torch.no_grad()
def sample(
    model: BaseModel,
    prompt: str | Sequence[str],
    seeds: list[int],
    settings: SamplingSettings,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    conditions: Mapping[str, Conditioning] = MappingProxyType({}),
) -> Tensor:
    """Sample one image per seed.

    Args:
        prompt: One for all images, or one for each seed.
        settings: `negative_prompt` has its placeholders written as tokens, as `prompt` has.
        on_step: Called after every call of the denoiser with the number of calls so far and in all.
        conditions: Prompt to conditioning of one sample, in place of encoding the prompt.

    Returns:
        Scaled latents (N, C, h, w), float32, on the CPU. An image's noise depends on its own
        seed alone, even with samplers that add noise at each step, so that the image is the same in any batch.

    Raises:
        UsageError: The sampler cannot take so many steps.
        NonFiniteError: An image's latents are not finite; names the images and the part at fault.
    """
    steps, guidance = settings.num_inference_steps, settings.guidance_scale
    height, width = settings.height or model.resolution, settings.width or model.resolution
    shape = (model.latent_channels, height // model.vae_scale_factor, width // model.vae_scale_factor)
    pipe = model.pipeline(settings.scheduler, shape[1] * shape[2])
    generators = [seeded(seed) for seed in seeds]
    noise = _sample_noise(generators, shape)
    calls = set_steps(pipe.scheduler, steps, model.device)
    _seed_each_step(pipe.scheduler, generators)
    texts = [prompt] * len(seeds) if isinstance(prompt, str) else list(prompt)
    phases = prompt_phases.plan_phases(model, texts, settings, steps, pipe.scheduler.order)
    for text in dict.fromkeys(text for phase in phases for text in (*phase.texts, phase.negative)):
        check_objects_read(model, text)
    starts = (settings.guidance_interval_high, settings.subject_conditioning_start)
    guidance_start, subject_start = (_count_steps_above(model, pipe, steps, level) for level in starts)
    encoded = prompt_phases.encode_phases(model, phases, conditions, with_class_words=subject_start > 0)

    with (
        extra_guidance(
            model,
            [each.texts for each in phases],
            settings.prompt_guidance_scale,
            settings.autoguidance_scale,
            height,
            width,
        ) as select_guidance,
        _objects_later(model, subject_start) as enable_objects,
    ):
        callback = _StepCallback(
            model, encoded, guidance, guidance_start, subject_start, (height, width), enable_objects, select_guidance,
            lambda done: on_step(done, calls),
        )  # fmt: skip
        latents = _run_pipeline(
            model, pipe, encoded.first[0], encoded.negative[0], noise, generators, steps, 1.0 if guidance_start else guidance,
            (height, width), callback,
        )  # fmt: skip
    return _require_images(model, latents, phases[0].texts, seeds, settings)


def _run_pipeline(
    model: BaseModel,
    pipe: Any,
    condition: Conditioning,
    negative: Conditioning,
    latents: Tensor,
    generators: list[torch.Generator],
    steps: int,
    guidance_scale: float,
    size: tuple[int, int],
    callback: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]],
) -> Tensor:
    """Run a pipeline of diffusers, and return its latents in float32 on the CPU.

    Args:
        condition, negative: Conditioning of the prompts and of the negative prompts, N samples each.
        latents: Initial latents (N, C, h, w).
        generators: One per image, because some samplers add noise at each step.
        size: Height and width of the images, px.
        callback: The pipeline's step callback.
    """
    memory_savings.offload_language_model(model)
    out = pipe(
        **model.family.pipeline_kwargs(condition, negative),
        latents=latents.to(model.device, model.dtype),
        generator=generators,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        height=size[0],
        width=size[1],
        output_type="latent",
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    )
    sampled: Tensor = out.images.float().cpu()
    return sampled


@dataclass(frozen=True, slots=True)
class _StepCallback:
    """The pipeline's step callback: starts guidance and the objects after their numbers of steps.

    Attributes:
        conditions: Of each phase.
        guidance_start, subject_start: Steps before guidance and before the objects act; 0: from the start.
        size: Height and width of the images, px.
        enable_objects: Enables the LoRAs. select_guidance: Called with the phase that begins. report: Called with the number of steps so far.
        keep: Latents and the number of steps so far to the latents that the next step gets.
    """

    model: BaseModel
    conditions: PhaseConditions
    guidance: float
    guidance_start: int
    subject_start: int
    size: tuple[int, int]
    enable_objects: Callable[[], None]
    select_guidance: Callable[[int], None]
    report: Callable[[int], None]
    keep: Callable[[Tensor, int], Tensor] = lambda latents, done: latents

    def __call__(self, pipe: Any, index: int, _t: object, values: dict[str, Any]) -> dict[str, Any]:
        done = index + 1
        self.report(done)
        values = values | {"latents": self.keep(values["latents"], done)}
        if done == self.subject_start:
            self.enable_objects()
        if done == self.guidance_start and self.guidance > 1:
            pipe._guidance_scale = self.guidance
        if done not in (self.guidance_start, self.subject_start, *self.conditions.starts):
            return values
        phase = self.conditions.find(done)
        self.select_guidance(phase)
        batch = (self.conditions.condition if done >= self.subject_start else self.conditions.first)[phase]
        if self.guidance > 1 and done >= self.guidance_start:
            batch = Conditioning.concat([self.conditions.negative[phase], batch])
        return values | self.model.family.callback_kwargs(self.model, batch, *self.size)


@torch.no_grad()
def resample(
    model: BaseModel,
    latents: Tensor,
    prompt: str,
    seeds: list[int],
    strength: float,
    settings: SamplingSettings,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    change_map: Tensor | None = None,
) -> Tensor:
    """Add noise to images up to a middle level and sample them again from there (SDEdit, arXiv:2108.01073).

    Args:
        latents: Scaled, (N, C, h, w), one per seed.
        strength: Fraction of the steps that are taken, in (0, 1]; at least one step is.
        settings: As for `sample`; the size is that of `latents`.
        change_map: Fraction of the taken steps in which each latent cell is sampled, (h, w) in [0, 1]; before them, and always at 0, the cell is that of
            `latents` (differential diffusion, arXiv:2306.00950). None: every cell in all steps.

    Returns:
        Scaled latents, float32, on the CPU.

    Raises:
        NonFiniteError: As `sample`.
    """
    pipe = model.pipeline(settings.scheduler, latents.shape[-2] * latents.shape[-1])
    steps = settings.num_inference_steps
    sampler = pipe.scheduler = copy.deepcopy(late_start.restartable_sampler(model, pipe.scheduler))
    late_start.start_at_step(sampler, min(round(steps * (1 - strength)), steps - 1))
    calls = set_steps(sampler, steps)
    generators = [seeded(seed) for seed in seeds]
    noise = _sample_noise(generators, latents.shape[1:])
    _seed_each_step(sampler, generators)
    noisy = late_start.add_noise(sampler, latents, noise, sampler.timesteps[:1].expand(len(seeds)))
    texts = [prompt] * len(seeds)
    phases = prompt_phases.plan_phases(model, texts, settings, -(-calls // sampler.order), sampler.order)
    size = (latents.shape[-2] * model.vae_scale_factor, latents.shape[-1] * model.vae_scale_factor)
    initial = noisy / float(getattr(sampler, "init_noise_sigma", 1))  # the pipeline multiplies by it
    starts = (settings.guidance_interval_high, settings.subject_conditioning_start)
    guidance_start, subject_start = (_count_steps_above(model, pipe, steps, level) for level in starts)
    keep = late_start.KeepCells(sampler, latents, noise, sampler.timesteps.clone(), change_map)
    guidance = settings.guidance_scale
    encoded = prompt_phases.encode_phases(model, phases, {}, with_class_words=subject_start > 0)

    with (
        extra_guidance(
            model, [each.texts for each in phases], settings.prompt_guidance_scale, settings.autoguidance_scale, *size
        ) as select_guidance,
        _objects_later(model, subject_start) as enable_objects,
    ):
        callback = _StepCallback(
            model, encoded, guidance, guidance_start, subject_start, size, enable_objects, select_guidance,
            lambda done: on_step(done, calls), keep,
        )  # fmt: skip
        sampled = _run_pipeline(
            model, pipe, encoded.first[0], encoded.negative[0], initial, generators, steps, 1.0 if guidance_start else guidance,
            size, callback,
        )  # fmt: skip
    return _require_images(model, sampled, phases[0].texts, seeds, settings)


def _require_images(
    model: BaseModel, latents: Tensor, texts: Sequence[str], seeds: Sequence[int], settings: SamplingSettings
) -> Tensor:
    """Latents (N, C, h, w), if they can be those of images.

    Raises:
        NonFiniteError: They cannot. The denoiser is called once more, without adapters, to find out whether it or an adapter is at fault.
    """
    if finite_checks.are_latents(latents):
        return latents
    bad = [i for i, image in enumerate(latents) if not finite_checks.are_latents(image)]
    first, negative, guidance = texts[bad[0]], settings.negative_prompt, settings.guidance_scale

    def predict_without_adapters() -> Tensor:
        encoded = [model.encode_prompt([model.with_class_words(text)]) for text in (negative, first)]
        conditions = Conditioning.concat(model.match_lengths(encoded))
        noise = _sample_noise([seeded(seeds[bad[0]])], latents.shape[1:]).expand(2, -1, -1, -1)
        timesteps = (model.num_train_timesteps - 1, model.num_train_timesteps // 2, model.num_train_timesteps // 4)
        return torch.cat(
            [model.predict(noise.to(model.device), torch.full((2,), t), conditions).float() for t in timesteps]
        )

    several = "s" if len(bad) > 1 else ""
    which = f" (picture{several} {', '.join(str(i + 1) for i in bad)} of {len(latents)}, seed{several} {', '.join(str(seeds[i]) for i in bad)})"
    what = "latents beyond any range" if finite_checks.is_finite(latents) else "NaN or infinite values"
    if guidance > HIGH_GUIDANCE:
        raise NonFiniteError(
            f"a guidance of {guidance:g} gives {what}{which}", "lower `--guidance`; 1 to 15 is usual", of_base=False
        )
    part = finite_checks.name_part(
        model, "denoiser", find_names([first, negative]), predict_without_adapters, finite_checks.are_latents
    )
    raise finite_checks.describe_failure(part, model.dtype, which, what)


HIGH_GUIDANCE = 50
"""Guidance scale above which unusable latents are attributed to it: no image needs so much."""


@contextlib.contextmanager
def _objects_later(model: BaseModel, steps: int) -> Iterator[Callable[[], None]]:
    """Disable all LoRAs for the first `steps` steps; yields the function that enables them again."""
    with contextlib.ExitStack() as until_closed:
        if steps:
            until_closed.enter_context(disabled(model))
        yield until_closed.close


def _count_steps_above(model: BaseModel, pipe: Any, steps: int, level: float) -> int:
    """Number of denoiser calls at noise levels of at least `level`, fraction of the schedule; 0 for levels of 1 or more."""
    if level >= 1:
        return 0
    set_steps(pipe.scheduler, steps, model.device)
    above = int((pipe.scheduler.timesteps >= level * model.num_train_timesteps).sum())
    steps_above: int = (
        -(-above // pipe.scheduler.order) * pipe.scheduler.order
    )  # whole steps: a sampler may call several times in one
    return steps_above


def _seed_each_step(sampler: Any, generators: Sequence[torch.Generator]) -> None:
    """Let a sampler of flows that adds noise at each step take it from the images' own generators."""
    if samplers.draws_noise(sampler) and sampler.config.get("use_flow_sigmas", True):
        sampler.step = functools.partial(sampler.step, generator=list(generators))


def _sample_noise(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Normal noise (N, C, h, w), each image's from its own generator."""
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])


def to_uint8(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) in [-1, 1] to (N, H, W, 3) uint8 in [0, 255], on the CPU."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()
