"""A loaded text-to-image base model: tokenizers, text encoders, denoiser, VAE and scheduler.

Its methods delegate what differs between families to `BaseModel.family`. It knows nothing about objects or training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from objtune_cli.errors import UsageError
from objtune_cli.models import families, finite_checks, prompt_encoding
from objtune_cli.models.adapter_state import FoldedWeights
from objtune_cli.models.conditioning import Conditioning
from objtune_cli.models.families import component_loading, schedulers
from objtune_cli.models.picture_inputs import PictureInputs
from objtune_cli.models.prompt_syntax import PLAIN, name_class_words, plain_text
from objtune_cli.models.prompts import class_word_spans, restore_placeholders
from objtune_cli.runtime import torchvision_compat

torchvision_compat.complete()  # before diffusers and transformers ask for torchvision


VAE_PIXELS_PER_BATCH = 8 * 128 * 128
"""Maximum number of pixels per call of the VAE; one image of 512 px needs a gigabyte."""


def vae_batch_size(height: int, width: int) -> int:
    """Number of images of a size, px, per call of the VAE."""
    return max(1, VAE_PIXELS_PER_BATCH // (height * width))


@dataclass(slots=True)
class BaseModel:
    """A loaded base model; all parameters are frozen, all modules in eval mode.

    Attributes:
        denoiser: A U-Net or a transformer.
        loaded_vae: The VAE, or None while it is offloaded; `vae` loads it again with `reload_vae`.
        reload_vae_fp32: Loads the VAE in float32, in case it overflows in half precision.
        tokenizer_2, text_encoder_2: Of families with two CLIP text encoders. tokenizer_3, text_encoder_3: T5, or None.
        t5_cache: T5 states by text. classes: Class word of each placeholder's name. options: From `Family.options`.
        sampler: The base's own sampler if it differs from `scheduler`.
        notes: Lines about loading that the user should read. note: Reports one line to the user.
        process_group: The processes that share each batch (`runtime.distributed`), or None.
        prompt_syntax: How prompts are read, see `prompt_syntax`; training and evaluation read them as plain text.
        picture_inputs: The further inputs of an inpainting or editing model's denoiser; None for a text-to-image model.
        references: Latents of pictures that the denoiser sees beside the prompt, (1, C, h, w) each; only of families that take them.
        adapters_disabled: Whether LoRAs are disabled (`adapter_state.disabled`).
        folded_weights: The denoiser's weights with LoRAs folded into them, and without; None if no LoRA is folded.
    """

    tokenizer: Any
    text_encoder: Any
    denoiser: Any
    loaded_vae: Any
    scheduler: Any
    device: torch.device
    dtype: torch.dtype
    reload_vae: Callable[[], Any] | None = None
    _vae_config: Mapping[str, Any] | None = None
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
    picture_inputs: PictureInputs | None = None
    references: tuple[Tensor, ...] = ()
    adapters_disabled: bool = False
    folded_weights: FoldedWeights | None = None
    prompt_syntax: str = PLAIN
    reload_vae_fp32: Callable[[], Any] | None = None
    note: Callable[[str], None] = lambda text: None

    @property
    def tokenizers(self) -> list[Any]:
        """The tokenizer of each CLIP text encoder."""
        return [t for t in (self.tokenizer, self.tokenizer_2) if t is not None]

    @property
    def text_encoders(self) -> list[Any]:
        """The CLIP text encoders, in the order in which token vectors are concatenated."""
        return [e for e in (self.text_encoder, self.text_encoder_2) if e is not None]

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of a token's vector in each text encoder."""
        return tuple(int(e.config.hidden_size) for e in self.text_encoders)

    @property
    def vae(self) -> Any:
        """The VAE, loaded again if it was offloaded."""
        if self.loaded_vae is None and self.reload_vae is not None:
            self.loaded_vae = self.reload_vae()
        return self.loaded_vae

    def offload_vae(self) -> None:
        """Free the VAE until `vae` is next read, and move T5, whose states are cached, to the CPU."""
        if self.text_encoder_3 is not None:
            self.text_encoder_3.to("cpu")
        if self.reload_vae is not None and self.vae_config:  # reading the config stores it
            self.loaded_vae = None

    @property
    def vae_config(self) -> Mapping[str, Any]:
        """The VAE's config, also while the VAE is offloaded."""
        if self._vae_config is None:
            self._vae_config = dict(self.vae.config)
        return self._vae_config

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell, along one side."""
        return self.family.cell_size(self.vae_config)

    @property
    def latent_channels(self) -> int:
        """Number of channels of the latents."""
        return self.family.latent_channels(self.denoiser.config)

    @property
    def size_multiple(self) -> int:
        """Number of pixels that the sides of images must be multiples of."""
        return self.vae_scale_factor * self.family.latent_multiple(self.denoiser.config)

    @property
    def resolution(self) -> int:
        """Side of the images that this base was trained on, px."""
        return self.family.training_side(self.denoiser.config, self.vae_config) * self.vae_scale_factor

    @property
    def alpha_bar(self) -> Tensor:
        alphas_cumprod: Tensor = self.scheduler.alphas_cumprod
        return alphas_cumprod

    @property
    def prediction(self) -> str:
        return str(self.scheduler.config.get("prediction_type", self.family.prediction))

    @property
    def num_train_timesteps(self) -> int:
        """Number of training timesteps; the last one is the noisiest."""
        return int(self.scheduler.config.num_train_timesteps)

    def add_noise_and_target(self, z: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Noised latents z_t and the regression target, each (B, C, h, w), for latents z, noise eps and timesteps t (B,)."""
        return self.family.add_noise_and_target(self, z, eps, t)

    def token_ids(self, texts: list[str], tokenizer: Any = None) -> Tensor:
        """Token ids (B, L), padded to the text encoder's length; `tokenizer` defaults to the first.

        For a single prompt with weights or of several chunks: (1, K L), all chunks one after the other.
        """
        tokenizer = tokenizer or self.tokenizer
        if any(prompt_encoding.needs_chunks(self, text) for text in texts):
            (text,) = texts  # prompts of different lengths are no single tensor
            return prompt_encoding.token_ids(self, text, tokenizer)
        out = tokenizer(
            [self.family.prompt_text(self, text) for text in texts],
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        ids: Tensor = out.input_ids.to(self.device)
        return ids

    def with_class_words(self, text: str) -> str:
        """A text with class words in place of its placeholder tokens."""
        return name_class_words(restore_placeholders(text), self.classes, self.prompt_syntax)

    def class_word_spans(self, text: str, name: str) -> list[tuple[int, int]]:
        """Character ranges [start, end) of a name's class word in the plain text of `with_class_words(text)`."""
        return class_word_spans(plain_text(text, self.prompt_syntax), name, self.classes)

    def encode_prompt(self, texts: list[str], max_tokens: int = 0) -> Conditioning:
        """Encode prompts for the denoiser.

        Args:
            max_tokens: Encode only so many leading tokens, without pooled vectors; 0: all tokens.

        Raises:
            NonFiniteError: The result is not finite. While gradients are recorded the loss is checked instead.
        """
        condition = self._encode_chunks(texts) if not max_tokens else None
        if condition is None:
            condition = self.family.encode_prompt(self, texts, max_tokens)
        if not torch.is_grad_enabled():
            finite_checks.check_condition(self, texts, condition)
        return condition

    def _encode_chunks(self, texts: list[str]) -> Conditioning | None:
        """Encode prompts of which some have weights or several chunks; None if none has."""
        chunked = [prompt_encoding.needs_chunks(self, text) for text in texts]
        if not any(chunked):
            return None
        parts = [
            prompt_encoding.encode(self, text) if needs else self.family.encode_prompt(self, [text])
            for text, needs in zip(texts, chunked, strict=True)
        ]
        return Conditioning.concat(self.match_lengths(parts))

    def match_lengths(self, conditions: Sequence[Conditioning]) -> list[Conditioning]:
        """Give conditions of prompts of different lengths the same number of rows, so that they fit into one batch."""
        return self.family.match_lengths(self, conditions)

    def unpack_conditioning(self, packed: Tensor) -> Conditioning:
        """The conditioning of a class prior artifact, see `Conditioning.pack`."""
        return Conditioning.unpack(packed, self.family.pooled_size(self))

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in [-1, 1] as scaled latents (B, C, H / factor, W / factor), float32: the posterior mean."""
        return self.encode_image_distribution(images)[0]

    @torch.no_grad()
    def encode_image_distribution(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the VAE's posterior, each scaled and shaped as by `encode_image`."""

        def encode() -> Tensor:
            posteriors = [
                self.vae.encode(p.to(self.device, self.vae.dtype)).latent_dist
                for p in images.split(vae_batch_size(*images.shape[-2:]))
            ]
            return torch.stack(
                [torch.cat([d.mean for d in posteriors]).float(), torch.cat([d.std for d in posteriors]).float()]
            )

        mean, std = finite_checks.through_vae(self, "VAE encoder", images, encode)
        return self.family.normalise_latents(self.vae, mean, std)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode scaled latents to images (B, 3, H, W) in [-1, 1], float32."""
        scaled = self.family.denormalise_latents(self.vae, latents)
        size = vae_batch_size(*(self.vae_scale_factor * n for n in latents.shape[-2:]))

        def decode() -> Tensor:
            parts = [self.vae.decode(z.to(self.device, self.vae.dtype)).sample for z in scaled.split(size)]
            return torch.cat(parts).float()

        return finite_checks.through_vae(self, "VAE decoder", scaled, decode).clamp(-1, 1)  # infinity would be white

    def predict(self, z_t: Tensor, t: Tensor, condition: Conditioning) -> Tensor:
        """The denoiser's output (B, C, h, w) for z_t (B, C, h, w), timesteps t (B,) and the conditioning of B prompts."""
        if self.process_group is not None:
            prediction: Tensor = self.process_group.predict(partial(self.family.predict, self), z_t, t, condition)
            return prediction
        return self.family.predict(self, z_t, t, condition)

    def pipeline(self, scheduler: str = "auto", cells: int = 0) -> Any:
        """Build the pipeline with the named sampler; it takes encoded prompts.

        Args:
            cells: Number of latent cells of an image, on which some samplers' noise levels depend; 0 for the base's own size.
        """
        cells = cells or (self.resolution // self.vae_scale_factor) ** 2
        own = scheduler == "auto" and self.sampler is not None
        sampler = (
            type(self.sampler).from_config(self.sampler.config)
            if own
            else self.family.make_sampler(self.scheduler, scheduler, cells)
        )
        pipe = self.family.build_pipeline(self, sampler)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def set_steps(sampler: Any, steps: int, device: Any = None) -> int:
    """Set a sampler's timesteps.

    Returns:
        The number of denoiser calls.

    Raises:
        UsageError: The sampler cannot take so many steps.
    """
    name = schedulers.SAMPLERS.get(type(sampler).__name__, type(sampler).__name__)
    reason, levels = "", len(getattr(sampler, "alphas_cumprod", ()))
    try:
        sampler.set_timesteps(steps, device=device)
    except (ValueError, IndexError, ZeroDivisionError, TypeError, OverflowError) as error:
        reason = component_loading.first_line(error)
    else:  # an offset may lead beyond the end of the noise schedule
        if levels and not sampler.timesteps.is_floating_point() and int(sampler.timesteps.max()) >= levels:
            reason = f"it would begin at timestep {int(sampler.timesteps.max())}, and the base's noise has {levels}"
    if reason:
        hint = "give another number with `--steps`, or another `--scheduler`"
        raise UsageError(f"the sampler {name} cannot take {steps} steps: {reason}", hint)
    return len(sampler.timesteps)
