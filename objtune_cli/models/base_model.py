"""A frozen text-to-image base: tokenizers, text encoders, denoiser, autoencoder, scheduler.

Everything family-specific is asked of this object, which asks its family. Knows nothing about objects or training.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from objtune_cli.errors import DamagedError, IncompatibleError, MissingError, UsageError
from objtune_cli.models import families, finite_checks
from objtune_cli.models.families import component_loading, model_kind, schedulers, single_file
from objtune_cli.models.families import pipeline_folder as folders
from objtune_cli.models.prompts import class_word_spans, restore_placeholders, with_class_words
from objtune_cli.runtime import cpu, torchvision_compat
from objtune_cli.runtime.devices import pick_device as pick_device
from objtune_cli.runtime.load_lock import LOAD_LOCK

torchvision_compat.complete()  # before diffusers and transformers ask for torchvision

MIN_TOKENS = 3
"""Tokens of the shortest prompt: its start, one word and its end."""
UNREADABLE = (ValueError, RuntimeError, SafetensorError)
"""What the libraries raise for a file that is cut off or not theirs."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    autoencoder: Any
    scheduler: Any
    device: torch.device
    dtype: torch.dtype
    reopen: Callable[[], Any] | None = None
    _factor: int = 0
    family: families.Family = families.SD1
    tokenizer_2: Any = None
    text_encoder_2: Any = None
    tokenizer_3: Any = None
    text_encoder_3: Any = None
    heard: dict[str, Tensor] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    sampler: Any = None
    notes: list[str] = field(default_factory=list)
    team: Any = None
    asleep: bool = False
    reopen_float: Callable[[], Any] | None = None
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
        if self.autoencoder is None and self.reopen is not None:
            self.autoencoder = self.reopen()
        return self.autoencoder

    def rest(self) -> None:
        """Let the autoencoder leave memory until it is next asked for: between a photo's latents and the first picture nothing needs it.

        What reads no added words has heard all that is said until then, and waits on the processor.
        """
        if self.text_encoder_3 is not None:
            self.text_encoder_3.to("cpu")
        if self.reopen is not None and self.factor:  # the factor is remembered
            self.autoencoder = None

    @property
    def factor(self) -> int:
        """Picture pixels per latent cell, along one side."""
        if not self._factor:
            self._factor = int(2 ** (len(self.vae.config.block_out_channels) - 1))
        return self._factor

    @property
    def unit(self) -> int:
        """What the sides of pictures must be multiples of, px: what a cell of the denoiser's smallest maps covers."""
        return self.factor * self.family.cells(self.denoiser.config)

    @property
    def size(self) -> int:
        """Side of the pictures this base was trained on, px."""
        return model_kind.read_side(self.denoiser.config.sample_size, self.family.side) * self.factor

    @property
    def alpha_bar(self) -> Tensor:
        return self.scheduler.alphas_cumprod

    @property
    def prediction(self) -> str:
        return str(self.scheduler.config.get("prediction_type", self.family.prediction))

    @property
    def levels(self) -> int:
        """Noise levels, the last one the noisiest."""
        return int(self.scheduler.config.num_train_timesteps)

    def noised(self, z: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Latents with noise at levels t (B,), and what the denoiser is to say of them; each as z (B, C, h, w)."""
        return self.family.noised(self, z, eps, t)

    def token_ids(self, texts: list[str], tokenizer: Any = None) -> Tensor:
        """(B, L) token ids, padded to the text encoder's length; `tokenizer`: another one than the first."""
        tokenizer = tokenizer or self.tokenizer
        out = tokenizer(
            texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        return out.input_ids.to(self.device)

    def in_class_words(self, text: str) -> str:
        """A text, its names written as tokens, as an encoder reads it that knows none of them."""
        return with_class_words(restore_placeholders(text), self.classes)

    def class_word_at(self, text: str, name: str) -> list[tuple[int, int]]:
        """Where a name's class word stands in that, (first letter, last letter + 1) each."""
        return class_word_spans(text, name, self.classes)

    def encode(self, texts: list[str], first: int = 0) -> Tensor:
        """Prompts to the denoiser's condition, (B, rows, d): a row a token, and what else the family has to say; with `first` so many leading tokens' alone.

        Raises:
            NonFiniteError: It is not finite; not looked at where gradients are taken, whose loss is.
        """
        found = self.family.encode(self, texts, first)
        if not torch.is_grad_enabled():
            finite_checks.check_condition(self, texts, found)
        return found

    @torch.no_grad()
    def to_latent(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] to scaled latents (B, C, H / factor, W / factor), float32: the posterior's mean."""
        return self.posterior(pictures)[0]

    @torch.no_grad()
    def posterior(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
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
    def to_picture(self, latents: Tensor) -> Tensor:
        """Scaled latents to pictures (B, 3, H, W) in [-1, 1], float32."""
        scaled = latents / self.vae.config.scaling_factor + self._shift

        def decoded() -> Tensor:
            parts = [
                self.vae.decode(z.to(self.device, self.vae.dtype)).sample
                for z in scaled.split(vae_batch_size(*(self.factor * n for n in latents.shape[-2:])))
            ]
            return torch.cat(parts).float()

        return finite_checks.through_vae(self, "VAE decoder", scaled, decoded).clamp(-1, 1)  # infinity would be white

    def predict(self, z_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The denoiser's output for z_t (B, C, h, w), t (B,), condition (B, rows, d)."""
        if self.team is not None:
            return self.team.predict(partial(self.family.predict, self), z_t, t, condition)
        return self.family.predict(self, z_t, t, condition)

    def pipeline(self, scheduler: str = "base") -> Any:
        """The pipeline class of diffusers around these parts, with the named sampler; takes encoded prompts."""
        own = scheduler == "base" and self.sampler is not None
        sampler = (
            type(self.sampler).from_config(self.sampler.config)
            if own
            else self.family.scheduler_of(self.scheduler, scheduler)
        )
        pipe = self.family.open_pipeline(self, sampler)
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


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format of a name; auto: bf16 where a GPU has it, fp16 on other GPUs, else fp32."""
    if name != "auto":
        return PRECISIONS[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float16 if device.type == "mps" else torch.float32


def load(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    weights: Path | None = None,
    prediction: str = "",
    vae: Path | None = None,
) -> BaseModel:
    """Open a diffusers folder of any known family; local files and safetensors only.

    Args:
        weights: A single-file checkpoint; the folder then holds the family's configs. prediction: What the denoiser predicts, where that is known better
            than the base says it. vae: Folder or file of an autoencoder that takes the place of its own.

    Raises:
        MissingError: A part is missing. DamagedError: a part lacks weights, cannot be read, or its weights are not finite. IncompatibleError: it is
            another kind of model. NonFiniteError: its weights are not finite in this format.
    """
    with LOAD_LOCK:
        model = _loaded(folder, device, dtype, weights, prediction, vae)
        finite_checks.check_base(
            model,
            weights or folder,
            lambda: _loaded(folder, torch.device("cpu"), torch.float32, weights, prediction, vae),
        )
    return model


def _loaded(
    folder: Path, device: torch.device, dtype: torch.dtype, weights: Path | None, prediction: str, vae: Path | None
) -> BaseModel:
    silence_library_logging()
    if device.type == "cpu":
        cpu.tune_malloc()
    said = (
        single_file.describe(weights, prediction).schedule
        if weights
        else {"prediction_type": prediction}
        if prediction
        else {}
    )
    family = _family(folder)
    if not weights:
        folders.check(family, folder, vae)
    try:
        (tokenizer, text_encoder), *more = (
            single_file.open_words(family, weights, folder) if weights else family.open_words(folder)
        )
        tokenizer_2, text_encoder_2 = more[0] if more else (None, None)
        tokenizer_3, text_encoder_3 = (
            single_file.open_reader(family, weights, folder, dtype) if weights else family.open_reader(folder, dtype)
        )
        model = BaseModel(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            denoiser=single_file.open_part(family.denoiser, weights, folder)
            if weights
            else family.open_denoiser(folder),
            autoencoder=_autoencoder(folder, device, family.picture_dtype(dtype), weights, vae),
            scheduler=family.open_scheduler(folder, **said),
            sampler=family.open_sampler(folder, **said),
            device=device,
            dtype=dtype,
            reopen=partial(_autoencoder, folder, device, family.picture_dtype(dtype), weights, vae),
            reopen_float=partial(_autoencoder, folder, device, torch.float32, weights, vae),
            family=family,
            tokenizer_2=tokenizer_2,
            text_encoder_2=text_encoder_2,
            tokenizer_3=tokenizer_3,
            text_encoder_3=text_encoder_3,
            options=family.options(folder),
        )
    except OSError as error:
        first = component_loading.first_line(error)
        raise MissingError(f"a part of the base in {weights or folder} is missing: {first}", folders.AGAIN) from None
    except (*UNREADABLE, KeyError, TypeError) as error:
        first = component_loading.first_line(error)
        raise DamagedError(f"the base in {weights or folder} is damaged: {first}", folders.AGAIN) from None
    _check_words(model, weights or folder)
    model.notes += _notes(model, said, folder)
    model.denoiser.requires_grad_(False).eval().to(device, dtype)
    for module in model.text_encoders:
        module.requires_grad_(False).eval().to(device, torch.float32)  # small, and token gradients need the precision
    if text_encoder_3 is not None:
        text_encoder_3.requires_grad_(False).eval().to(device)
    if device.type == "cpu":
        model.denoiser.to(memory_format=torch.channels_last)
        cpu.set_threads_for(sum(p.numel() for p in model.denoiser.parameters()))
    return model


def _notes(model: BaseModel, said: Mapping[str, Any], folder: Path) -> list[str]:
    """What a user should know of how the base was opened: weights that nothing takes, and a sampler in place of its own."""
    notes = []
    parts = {
        model.family.denoiser: model.denoiser,
        "vae": model.autoencoder,
        "text_encoder": model.text_encoder,
        "text_encoder_2": model.text_encoder_2,
    }
    for part, network in parts.items():
        unused = getattr(network, "unused_weights", None) or []
        if unused:
            notes.append(
                f"{part} of the base holds {len(unused)} weights that its config has no place for and that are not used: {unused[0]}"
            )
    config = model.family.read_scheduler(folder, **said)
    why = schedulers.why_replaced(config)
    if why:
        called = schedulers.describe(config)[0]
        notes.append(f"{called} takes the place of the base's own sampler {config['_class_name']}: {why}")
    return notes


def _check_words(model: BaseModel, source: Path) -> None:
    """Refuse a tokenizer that is not its text encoder's: it names vectors that are not there, or hardly any, or leaves no room for a word.

    Raises:
        DamagedError: Names both sizes, or the limit.
    """
    for tokenizer, encoder in zip(model.tokenizers, model.text_encoders, strict=True):
        known, rows = len(tokenizer), int(encoder.config.vocab_size)
        if known > rows or known < rows // 2:
            raise DamagedError(
                f"the base in {source} is damaged: its tokenizer has {known} words, its text encoder {rows}",
                folders.AGAIN,
            )
        if tokenizer.pad_token is None:
            message = f"the base in {source} is damaged: its tokenizer has no padding token"
            raise DamagedError(message, folders.AGAIN)
        limit = tokenizer.model_max_length
        if not isinstance(limit, int | float) or not limit >= MIN_TOKENS:
            raise DamagedError(
                f"the base in {source} is damaged: its tokenizer says that a prompt has at most {limit!r} tokens",
                folders.AGAIN,
            )
        tokenizer.model_max_length = int(min(limit, encoder.config.max_position_embeddings))


def _family(folder: Path) -> families.Family:
    """The family that a folder says it is of.

    Raises:
        IncompatibleError: Of none that is known. MissingError, DamagedError: it does not say.
    """
    try:
        family = families.detect_family(folder)
    except OSError:
        raise MissingError(f"a part of the base in {folder} is missing: model_index.json", folders.AGAIN) from None
    except (ValueError, KeyError):
        raise DamagedError(f"the base in {folder} is damaged: model_index.json cannot be read", folders.AGAIN) from None
    if family is None:
        raise IncompatibleError(f"the base in {folder} is of no family that is known", "docs/bases.md says which are")
    return family


def _autoencoder(
    folder: Path, device: torch.device, dtype: torch.dtype, weights: Path | None = None, given: Path | None = None
) -> Any:
    """The base's autoencoder, or the one that was given for it, frozen."""
    from diffusers import AutoencoderKL

    vae: Any
    with LOAD_LOCK:
        if given is not None:
            vae = (
                single_file.open_part("vae", given, single_file.LAYOUTS / _family(folder).name)
                if given.is_file()
                else component_loading.open_part(AutoencoderKL, given.parent, given.name)
            )
        elif weights:
            vae = single_file.open_part("vae", weights, folder)
        else:
            vae = component_loading.open_part(AutoencoderKL, folder, "vae")
    vae.requires_grad_(False).eval().to(device, dtype)
    return vae.to(memory_format=torch.channels_last) if device.type == "cpu" else vae


def silence_library_logging() -> None:
    """No load reports and bars of the libraries among our lines."""
    import diffusers.utils.logging
    import transformers.utils.logging

    transformers.utils.logging.set_verbosity(logging.CRITICAL)  # what matters is an error of ours
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity(logging.CRITICAL)
    diffusers.utils.logging.disable_progress_bar()
