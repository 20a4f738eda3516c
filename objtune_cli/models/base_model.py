"""A frozen text-to-image base: tokenizers, text encoders, denoiser, autoencoder, scheduler.

Everything family-specific is asked of this object, which asks its family. Knows nothing about objects or training.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from objtune_cli.errors import UsageError
from objtune_cli.models import families, finite_checks
from objtune_cli.models.conditioning import Conditioning
from objtune_cli.models.families import component_loading, model_kind, schedulers
from objtune_cli.models.prompts import class_word_spans, restore_placeholders, with_class_words
from objtune_cli.runtime import torchvision_compat

torchvision_compat.complete()  # before diffusers and transformers ask for torchvision


VAE_PIXELS_PER_BATCH = 8 * 128 * 128
"""Pixels that the autoencoder takes in one go: at 512 px one picture already needs a gigabyte."""


def vae_batch_size(height: int, width: int) -> int:
    """Pictures of a size that the autoencoder takes in one go."""
    return max(1, VAE_PIXELS_PER_BATCH // (height * width))


@dataclass(slots=True)
class BaseModel:
    """A loaded base; all parameters frozen, all modules in eval mode.

    Attributes:
        unet: The denoiser, a U-Net or a transformer. autoencoder: None while it rests; `vae` is how to ask for it. reopen: brings it again.
        tokenizer_2, text_encoder_2: Of families with two towers. tokenizer_3, text_encoder_3: what reads no added words (T5), or None.
        heard: What that said, by text. classes: class word of each added name. options: what the base's folder says for its family.
        sampler: The base's own, where it is not `scheduler`. notes: What the user should know of how it was opened, one line each.
        team: The processes that share the rows of a prediction (`parallel.Team`), or None. asleep: no LoRA acts (`adapter.asleep`).
        reopen_float: Opens the VAE in float32, for when it overflows in half precision. note: says one line to the user.
    """

    tokenizer: Any
    text_encoder: Any
    denoiser: Any
    loaded_vae: Any
    scheduler: Any
    device: torch.device
    dtype: torch.dtype
    reload_vae: Callable[[], Any] | None = None
    _vae_scale_factor: int = 0
    family: families.Family = families.SD1
    tokenizer_2: Any = None
    text_encoder_2: Any = None
    tokenizer_3: Any = None
    text_encoder_3: Any = None
    t5_cache: dict[str, Tensor] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    sampler: Any = None
    notes: list[str] = field(default_factory=list)
    process_group: Any = None
    adapters_disabled: bool = False
    reload_vae_fp32: Callable[[], Any] | None = None
    note: Callable[[str], None] = lambda text: None

    @property
    def tokenizers(self) -> list[Any]:
        """One a text encoder."""
        return [t for t in (self.tokenizer, self.tokenizer_2) if t is not None]

    @property
    def text_encoders(self) -> list[Any]:
        """In the order in which their vectors stand side by side."""
        return [e for e in (self.text_encoder, self.text_encoder_2) if e is not None]

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of a token's vector in each text encoder."""
        return tuple(int(e.config.hidden_size) for e in self.text_encoders)

    @property
    def vae(self) -> Any:
        """The autoencoder, opened again if it rests."""
        if self.loaded_vae is None and self.reload_vae is not None:
            self.loaded_vae = self.reload_vae()
        return self.loaded_vae

    def offload_vae(self) -> None:
        """Let the autoencoder leave memory until it is next asked for: between a photo's latents and the first picture nothing needs it.

        What reads no added words has heard all that is said until then, and waits on the processor.
        """
        if self.text_encoder_3 is not None:
            self.text_encoder_3.to("cpu")
        if self.reload_vae is not None and self.vae_scale_factor:  # the factor is remembered
            self.loaded_vae = None

    @property
    def vae_scale_factor(self) -> int:
        """Picture pixels per latent cell, along one side."""
        if not self._vae_scale_factor:
            self._vae_scale_factor = int(2 ** (len(self.vae.config.block_out_channels) - 1))
        return self._vae_scale_factor

    @property
    def size_multiple(self) -> int:
        """What the sides of pictures must be multiples of, px: what a cell of the denoiser's smallest maps covers."""
        return self.vae_scale_factor * self.family.latent_multiple(self.denoiser.config)

    @property
    def resolution(self) -> int:
        """Side of the pictures this base was trained on, px."""
        return (
            model_kind.read_side(self.denoiser.config.sample_size, self.family.default_latent_size)
            * self.vae_scale_factor
        )

    @property
    def alpha_bar(self) -> Tensor:
        alphas_cumprod: Tensor = self.scheduler.alphas_cumprod
        return alphas_cumprod

    @property
    def prediction(self) -> str:
        return str(self.scheduler.config.get("prediction_type", self.family.prediction))

    @property
    def num_train_timesteps(self) -> int:
        """Noise levels, the last one the noisiest."""
        return int(self.scheduler.config.num_train_timesteps)

    def add_noise_and_target(self, z: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Latents with noise at levels t (B,), and what the denoiser is to say of them; each as z (B, C, h, w)."""
        return self.family.add_noise_and_target(self, z, eps, t)

    def token_ids(self, texts: list[str], tokenizer: Any = None) -> Tensor:
        """(B, L) token ids, padded to the text encoder's length; `tokenizer`: another one than the first."""
        tokenizer = tokenizer or self.tokenizer
        out = tokenizer(
            texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        ids: Tensor = out.input_ids.to(self.device)
        return ids

    def with_class_words(self, text: str) -> str:
        """A text, its names written as tokens, as an encoder reads it that knows none of them."""
        return with_class_words(restore_placeholders(text), self.classes)

    def class_word_spans(self, text: str, name: str) -> list[tuple[int, int]]:
        """Where a name's class word stands in that, (first letter, last letter + 1) each."""
        return class_word_spans(text, name, self.classes)

    def encode_prompt(self, texts: list[str], max_tokens: int = 0) -> Conditioning:
        """Encode prompts for the denoiser.

        Args:
            max_tokens: Encode only so many leading tokens, without pooled vectors; 0: all tokens.

        Raises:
            NonFiniteError: The result is not finite. While gradients are recorded the loss is checked instead.
        """
        condition = self.family.encode_prompt(self, texts, max_tokens)
        if not torch.is_grad_enabled():
            finite_checks.check_condition(self, texts, condition)
        return condition

    def unpack_conditioning(self, packed: Tensor) -> Conditioning:
        """The conditioning of a class prior artifact, see `Conditioning.pack`."""
        return Conditioning.unpack(packed, self.family.pooled_size(self))

    @torch.no_grad()
    def encode_image(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] to scaled latents (B, C, H / factor, W / factor), float32: the posterior's mean."""
        return self.encode_image_distribution(pictures)[0]

    @torch.no_grad()
    def encode_image_distribution(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the autoencoder's latents of pictures, each scaled and shaped as `to_latent` says."""

        def encoded() -> Tensor:
            found = [
                self.vae.encode(p.to(self.device, self.vae.dtype)).latent_dist
                for p in pictures.split(vae_batch_size(*pictures.shape[-2:]))
            ]
            return torch.stack([torch.cat([d.mean for d in found]).float(), torch.cat([d.std for d in found]).float()])

        mean, std = finite_checks.through_vae(self, "VAE encoder", pictures, encoded)
        scale = self.vae.config.scaling_factor
        return (mean - self._shift) * scale, std * scale

    @property
    def _shift(self) -> float:
        """What latents are moved by before they are scaled; 0 where the autoencoder's config says nothing."""
        return float(self.vae.config.get("shift_factor") or 0)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents to pictures (B, 3, H, W) in [-1, 1], float32."""
        scaled = latents / self.vae.config.scaling_factor + self._shift

        def decoded() -> Tensor:
            parts = [
                self.vae.decode(z.to(self.device, self.vae.dtype)).sample
                for z in scaled.split(vae_batch_size(*(self.vae_scale_factor * n for n in latents.shape[-2:])))
            ]
            return torch.cat(parts).float()

        return finite_checks.through_vae(self, "VAE decoder", scaled, decoded).clamp(-1, 1)  # infinity would be white

    def predict(self, z_t: Tensor, t: Tensor, condition: Conditioning) -> Tensor:
        """The denoiser's output (B, C, h, w) for z_t (B, C, h, w), timesteps t (B,) and the conditioning of B prompts."""
        if self.process_group is not None:
            prediction: Tensor = self.process_group.predict(partial(self.family.predict, self), z_t, t, condition)
            return prediction
        return self.family.predict(self, z_t, t, condition)

    def pipeline(self, scheduler: str = "auto") -> Any:
        """The pipeline class of diffusers around these parts, with the named sampler; takes encoded prompts."""
        own = scheduler == "auto" and self.sampler is not None
        sampler = (
            type(self.sampler).from_config(self.sampler.config)
            if own
            else self.family.make_sampler(self.scheduler, scheduler)
        )
        pipe = self.family.build_pipeline(self, sampler)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def set_steps(sampler: Any, steps: int, device: Any = None) -> int:
    """Set a sampler's times; how often it calls the denoiser.

    Raises:
        UsageError: It cannot take so many steps.
    """
    name = schedulers.SAMPLERS.get(type(sampler).__name__, type(sampler).__name__)
    reason, levels = "", len(getattr(sampler, "alphas_cumprod", ()))
    try:
        sampler.set_timesteps(steps, device=device)
    except (ValueError, IndexError, ZeroDivisionError, TypeError, OverflowError) as error:
        reason = component_loading.first_line(error)
    else:  # some add an offset to the last of all times, and take noise from beyond the schedule's end
        if levels and not sampler.timesteps.is_floating_point() and int(sampler.timesteps.max()) >= levels:
            reason = f"it would begin at timestep {int(sampler.timesteps.max())}, and the base's noise has {levels}"
    if reason:
        hint = "give another number with `--steps`, or another `--scheduler`"
        raise UsageError(f"the sampler {name} cannot take {steps} steps: {reason}", hint)
    return len(sampler.timesteps)
