"""Prompts to latents through diffusers' own pipeline."""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from objtune_cli.errors import NonFiniteError
from objtune_cli.generation.guidance import guided
from objtune_cli.models import finite_checks
from objtune_cli.models.adapter_state import disabled
from objtune_cli.models.base_model import BaseModel, set_steps
from objtune_cli.models.placeholders import check_objects_read
from objtune_cli.models.prompts import find_names
from objtune_cli.numerics.ddpm import seeded


@torch.no_grad()
def sample(
    model: BaseModel,
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
    scene: float = 0.0,
    own: float = 0.0,
    object_below: float = 1.0,
) -> Tensor:
    """Draw one picture per seed.

    Args:
        prompt: Of all pictures, or one for each seed.
        below: Noise levels from which guidance acts, fraction of the whole: above them, where poses and places are
            decided, the prompt speaks alone and they stay as various as they were learned (arXiv:2404.07724).
        size: Height and width of the pictures, px, multiples of what the base divides them by; 0: the base's own.
        conditions: Prompts that are not simply encoded, to what the denoiser is told instead, (1, L, d).
        scene: How much is added of what the frozen base says of the words around the objects (`generation.guidance`).
        own: How much is added of what it does not say of the objects.
        object_below: Noise level from which the objects are themselves, fraction of the whole. Above it, where it is decided how many things there are, where
            and in what pose, the frozen base draws their classes: it knows thousands of poses, an adapter has seen one (delayed subject
            conditioning, arXiv:2305.10431, with the frozen base in place of the adapter's).

    Returns:
        Scaled latents (N, C, h, w), float32, on the CPU. A picture's noise depends on its own
        seed alone, that of samplers which add noise at each step included, so that it is the same in any batch.

    Raises:
        UsageError: The sampler cannot take so many steps.
        NonFiniteError: A picture's latents are not finite; says which, and which part is at fault.
    """
    pipe = model.pipeline(scheduler)
    height, width = (side or model.size for side in size)
    shape = (model.denoiser.config.in_channels, height // model.factor, width // model.factor)
    generators = [seeded(seed) for seed in seeds]
    noise = _noise(generators, shape)
    calls = set_steps(pipe.scheduler, steps, model.device)
    texts = [prompt] * len(seeds) if isinstance(prompt, str) else list(prompt)
    for text in dict.fromkeys([*texts, negative]):
        check_objects_read(model, text)
    condition, against = _told(model, texts, negative, conditions)
    free, early = (
        _above(model, pipe, steps, level) for level in (below, object_below)
    )  # steps before guidance, and before the objects are themselves

    with guided(model, texts, scene, own, height, width), _classes(model, texts, early) as (plain, end):
        first = condition if plain is None else plain

        def report(pipe: Any, index: int, _t: object, values: dict) -> dict:
            done = index + 1
            on_step(done, calls)
            if done == early:
                end()
            if done == free and guidance > 1:
                pipe._guidance_scale = guidance
            if done in (free, early):
                now = condition if done >= early else first
                rows = torch.cat([against, now]) if guidance > 1 and done >= free else now
                values = values | model.family.retold(model, rows, height, width)
            return values

        out = pipe(
            **model.family.prompts(model, first, against),
            latents=noise.to(model.device, model.dtype),
            generator=generators,  # some samplers add noise at each step: a picture's own goes on
            num_inference_steps=steps,
            guidance_scale=1.0 if free else guidance,
            height=height,
            width=width,
            output_type="latent",
            callback_on_step_end=report,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        )
    return _checked(model, out.images.float().cpu(), texts, negative, seeds, guidance)


@torch.no_grad()
def again(
    model: BaseModel,
    latents: Tensor,
    prompt: str,
    negative: str,
    seeds: list[int],
    strength: float,
    steps: int,
    guidance: float,
    scheduler: str = "base",
    on_step: Callable[[int, int], None] = lambda done, total: None,
    own: float = 0.0,
) -> Tensor:
    """Pictures made noisy up to a middle level, and drawn again from there (SDEdit, arXiv:2108.01073).

    Args:
        latents: Scaled, (N, C, h, w), one a seed. strength: share of the `steps` that are taken, in (0, 1]; one at least. own: as in `sample`.

    Returns:
        Scaled latents, float32, on the CPU.

    Raises:
        NonFiniteError: As `sample`.
    """
    pipe = model.pipeline(scheduler)
    sampler = pipe.scheduler = copy.deepcopy(_begins_anywhere(model, pipe.scheduler))
    start = min(round(steps * (1 - strength)), steps - 1)
    _from_step(sampler, start)
    taken = set_steps(sampler, steps)
    generators = [seeded(seed) for seed in seeds]
    noisy = _mixed(sampler, latents, _noise(generators, latents.shape[1:]), sampler.timesteps[:1].expand(len(seeds)))
    condition, against = _told(model, [prompt] * len(seeds), negative, {})
    height, width = (side * model.factor for side in latents.shape[-2:])

    def report(pipe: Any, index: int, _t: object, values: dict) -> dict:
        on_step(index + 1, taken)
        return values

    with guided(model, [prompt] * len(seeds), 0.0, own, height, width):
        out = pipe(
            **model.family.prompts(model, condition, against),
            latents=(noisy / float(getattr(sampler, "init_noise_sigma", 1))).to(
                model.device, model.dtype
            ),  # which the pipeline multiplies by
            generator=generators,
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=height,
            width=width,
            output_type="latent",
            callback_on_step_end=report,
        )
    return _checked(model, out.images.float().cpu(), [prompt] * len(seeds), negative, seeds, guidance)


def _checked(
    model: BaseModel, latents: Tensor, texts: Sequence[str], negative: str, seeds: Sequence[int], guidance: float
) -> Tensor:
    """Latents (N, C, h, w), if they are those of pictures.

    Raises:
        NonFiniteError: They are not. The denoiser is asked once more, without adapters, to tell it from them.
    """
    if finite_checks.are_latents(latents):
        return latents
    bad = [i for i, picture in enumerate(latents) if not finite_checks.are_latents(picture)]
    first = texts[bad[0]]

    def compute_alone() -> Tensor:
        rows = torch.cat([model.encode([model.in_class_words(text)]) for text in (negative, first)])
        noise = _noise([seeded(seeds[bad[0]])], latents.shape[1:]).expand(2, -1, -1, -1)
        levels = (model.levels - 1, model.levels // 2, model.levels // 4)
        return torch.cat([model.predict(noise.to(model.device), torch.full((2,), t), rows).float() for t in levels])

    several = "s" if len(bad) > 1 else ""
    which = f" (picture{several} {', '.join(str(i + 1) for i in bad)} of {len(latents)}, seed{several} {', '.join(str(seeds[i]) for i in bad)})"
    what = "latents beyond any range" if finite_checks.is_finite(latents) else "NaN or infinite values"
    if guidance > HIGH_GUIDANCE:
        raise NonFiniteError(
            f"a guidance of {guidance:g} gives {what}{which}", "lower `--guidance`; 1 to 15 is usual", of_base=False
        )
    part = finite_checks.name_part(
        model, "denoiser", find_names([first, negative]), compute_alone, finite_checks.are_latents
    )
    raise finite_checks.describe_failure(part, model.dtype, which, what)


HIGH_GUIDANCE = 50
"""Guidance beyond which latents that are none are laid to it: no picture needs so much."""


@contextlib.contextmanager
def _classes(model: BaseModel, texts: Sequence[str], steps: int) -> Iterator[tuple[Tensor | None, Callable[[], None]]]:
    """Inside, no LoRA acts until the second of these is called; the first: prompts in class words as the denoiser is told them. With no steps so, nothing is changed."""
    with contextlib.ExitStack() as sleep:
        plain = None
        if steps:
            sleep.enter_context(disabled(model))
            said = [model.in_class_words(text) for text in texts]
            encoded = {text: model.encode([text]) for text in dict.fromkeys(said)}
            plain = torch.cat([encoded[text] for text in said])
        yield plain, sleep.close


def _above(model: BaseModel, pipe: Any, steps: int, level: float) -> int:
    """Steps at noise levels of at least `level`, fraction of the whole; 0 from 1 on."""
    if level >= 1:
        return 0
    set_steps(pipe.scheduler, steps, model.device)
    above = int((pipe.scheduler.timesteps >= level * model.levels).sum())
    return (
        -(-above // pipe.scheduler.order) * pipe.scheduler.order
    )  # no change in the middle of a step of several calls


def _from_step(sampler: Any, start: int) -> None:
    """Make a sampler begin later: the loops of diffusers' pipelines read its times once, after they set them; its own steps count from the whole."""
    set_timesteps, step = sampler.set_timesteps, sampler.step

    def shortened(*args: Any, **named: Any) -> None:
        set_timesteps(*args, **named)
        sampler.every = sampler.timesteps
        sampler.timesteps = sampler.timesteps[start * sampler.order :]
        if hasattr(sampler, "set_begin_index"):
            sampler.set_begin_index(start * sampler.order)

    @functools.wraps(step)  # the pipeline looks at its arguments, for the generator
    def counted(*args: Any, **named: Any) -> Any:
        sampler.timesteps = sampler.every
        return step(*args, **named)

    sampler.set_timesteps, sampler.step = shortened, counted


def _mixed(sampler: Any, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Latents with the noise of a level, as the sampler has it; a flow's has a name of its own for it."""
    return (
        sampler.add_noise(latents, noise, t)
        if hasattr(sampler, "add_noise")
        else sampler.scale_noise(latents, t, noise)
    )


def _begins_anywhere(model: BaseModel, sampler: Any) -> Any:
    """The sampler, or where it needs its first steps' history to begin with, the simplest one on the same noise levels."""
    from diffusers import EulerDiscreteScheduler

    name = type(sampler).__name__
    if name == "PNDMScheduler":
        return model.family.scheduler_of(model.scheduler, "ddim")
    return EulerDiscreteScheduler.from_config(sampler.config) if name == "LMSDiscreteScheduler" else sampler


def _noise(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """A picture's noise depends on its own generator alone: (N, C, h, w)."""
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])


def _told(
    model: BaseModel, prompts: Sequence[str], negative: str, conditions: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """What the denoiser is told for each picture, and what guidance goes away from, (N, L, d) each."""
    encoded = {
        text: conditions[text] if text in conditions else model.encode([text]) for text in dict.fromkeys(prompts)
    }
    for text in set(encoded) & set(conditions):
        finite_checks.check_condition(model, [text], encoded[text])
    return torch.cat([encoded[text] for text in prompts]), model.encode([negative]).expand(len(prompts), -1, -1)


def to_uint8(pictures: Tensor) -> "Tensor":
    """Pictures (N, 3, H, W) in [-1, 1] to (N, H, W, 3) uint8."""
    return ((pictures + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()
