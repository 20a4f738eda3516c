"""Loads a base model from a diffusers folder or a single-file checkpoint."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from objtune_cli.errors import DamagedError, IncompatibleError, MissingError
from objtune_cli.models import families, finite_checks
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.families import (
    component_loading,
    denoiser_file,
    model_kind,
    schedulers,
    single_file,
    single_file_loading,
)
from objtune_cli.models.families import pipeline_folder as folders
from objtune_cli.models.picture_inputs import InpaintingInputs, PictureInputs
from objtune_cli.runtime import cpu
from objtune_cli.runtime.load_lock import LOAD_LOCK

UNREADABLE = (ValueError, RuntimeError, SafetensorError)
"""Errors of the libraries for incomplete files and for other formats."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MIN_TOKENS = 3
"""Number of tokens of the shortest prompt: start, one word, end."""


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format of a name; "auto" is bf16 on GPUs that have it, fp16 on other GPUs, else fp32."""
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
    """Load a base model of any family, from local safetensors files only.

    Args:
        folder: A diffusers folder, or the configs of a single-file checkpoint.
        weights: The single-file checkpoint.
        prediction: Prediction type of the denoiser, in place of that in the config.
        vae: Folder or file of a VAE in place of the base's own.

    Raises:
        MissingError: A component is missing.
        DamagedError: A component is unreadable, lacks weights, or has weights that are not finite.
        IncompatibleError: Another kind of model. NonFiniteError: Weights are not finite in this number format.
    """
    with LOAD_LOCK:
        model = _load_components(folder, device, dtype, weights, prediction, vae)
        finite_checks.check_base(
            model,
            weights or folder,
            lambda: _load_components(folder, torch.device("cpu"), torch.float32, weights, prediction, vae),
        )
    return model


def _load_components(
    folder: Path, device: torch.device, dtype: torch.dtype, weights: Path | None, prediction: str, vae: Path | None
) -> BaseModel:
    """Load all components; arguments and errors are those of `load`."""
    silence_library_logging()
    if device.type == "cpu":
        cpu.tune_malloc()
    overrides: Mapping[str, Any] = {"prediction_type": prediction} if prediction else {}
    denoiser = denoiser_file.read(weights, families.FAMILIES) if weights else None
    file, weights = weights, None if denoiser else weights
    if weights:
        overrides = single_file.describe(weights, prediction).schedule
    family = _detect_family(folder)
    if not weights:
        folders.check_folder(family, folder, vae, has_denoiser=denoiser is None)
    try:
        model = _build_model(family, folder, device, dtype, weights, vae, overrides, denoiser)
    except OSError as error:
        first = component_loading.first_line(error)
        raise MissingError(f"a part of the base in {file or folder} is missing: {first}", folders.AGAIN) from None
    except (*UNREADABLE, KeyError, TypeError) as error:
        first = component_loading.first_line(error)
        raise DamagedError(f"the base in {file or folder} is damaged: {first}", folders.AGAIN) from None
    _check_tokenizers(model, file or folder)
    model.notes += _describe_loading(model, overrides, folder)
    _freeze(model)
    kind = model_kind.picture_input(model.denoiser.config.in_channels, model.latent_channels)
    if kind:
        model.picture_inputs = PictureInputs(model) if kind == "editing" else InpaintingInputs(model)
    return model


def _build_model(
    family: families.Family,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    weights: Path | None,
    vae: Path | None,
    overrides: Mapping[str, Any],
    denoiser: denoiser_file.DenoiserFile | None,
) -> BaseModel:
    if weights:
        (tokenizer, text_encoder), *more = single_file_loading.load_text_encoders(family, weights, folder)
        tokenizer_3, text_encoder_3 = single_file_loading.load_t5(family, weights, folder, dtype)
    else:
        (tokenizer, text_encoder), *more = family.load_text_encoders(folder)
        tokenizer_3, text_encoder_3 = family.load_t5(folder, dtype)
    tokenizer_2, text_encoder_2 = more[0] if more else (None, None)
    return BaseModel(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        denoiser=family.prepare_denoiser(
            single_file_loading.load_component(family.denoiser, weights, folder)
            if weights
            else denoiser_file.load(denoiser, folder)
            if denoiser
            else family.load_denoiser(folder)
        ),
        loaded_vae=_load_vae(folder, device, family.vae_dtype(dtype), weights, vae),
        scheduler=family.load_scheduler(folder, **overrides),
        sampler=family.load_sampler(folder, **overrides),
        device=device,
        dtype=dtype,
        reload_vae=partial(_load_vae, folder, device, family.vae_dtype(dtype), weights, vae),
        reload_vae_fp32=partial(_load_vae, folder, device, torch.float32, weights, vae),
        family=family,
        tokenizer_2=tokenizer_2,
        text_encoder_2=text_encoder_2,
        tokenizer_3=tokenizer_3,
        text_encoder_3=text_encoder_3,
        options=family.options(folder),
    )


def _freeze(model: BaseModel) -> None:
    """Freeze the networks and move them to the device."""
    model.denoiser.requires_grad_(False).eval().to(model.device, model.dtype)
    for module in model.text_encoders:
        module.requires_grad_(False).eval().to(model.device, model.family.text_encoder_dtype(model.dtype))
    if model.text_encoder_3 is not None:
        model.text_encoder_3.requires_grad_(False).eval().to(model.device)
    if model.device.type == "cpu":
        model.denoiser.to(memory_format=torch.channels_last)
        cpu.set_threads_for(sum(p.numel() for p in model.denoiser.parameters()))


def _describe_loading(model: BaseModel, overrides: Mapping[str, Any], folder: Path) -> list[str]:
    """Lines for the user: weights that are not used, and a sampler in place of the base's own."""
    notes = []
    parts = {
        model.family.denoiser: model.denoiser,
        "vae": model.loaded_vae,
        "text_encoder": model.text_encoder,
        "text_encoder_2": model.text_encoder_2,
    }
    for part, network in parts.items():
        unused = getattr(network, "unused_weights", None) or []
        if unused:
            notes.append(
                f"{part} of the base has {len(unused)} weights that its config does not describe, such as {unused[0]}; they are not used"
            )
    config = model.family.read_scheduler(folder, **overrides)
    why = schedulers.why_replaced(config)
    if why:
        called = schedulers.describe(config)[0]
        notes.append(f"{called} replaces the base's own sampler {config['_class_name']}: {why}")
    return notes


def _check_tokenizers(model: BaseModel, source: Path) -> None:
    """Refuse tokenizers that do not fit their text encoder, and set their maximum number of tokens.

    Raises:
        DamagedError: The vocabulary is larger than the token table, or less than half as large. Or there is no padding
            token, or no room for a word.
    """
    for tokenizer, encoder in zip(model.tokenizers, model.text_encoders, strict=True):
        words, rows = len(tokenizer), int(encoder.config.vocab_size)
        if words > rows or words < rows // 2:
            raise DamagedError(
                f"the base in {source} is damaged: its tokenizer has {words} words, its text encoder {rows}",
                folders.AGAIN,
            )
        if tokenizer.pad_token is None:
            message = f"the base in {source} is damaged: its tokenizer has no padding token"
            raise DamagedError(message, folders.AGAIN)
        limit = tokenizer.model_max_length
        if not isinstance(limit, int | float) or not limit >= MIN_TOKENS:
            raise DamagedError(
                f"the base in {source} is damaged: its tokenizer limits prompts to {limit!r} tokens",
                folders.AGAIN,
            )
        own = model.family.max_prompt_tokens or limit
        tokenizer.model_max_length = int(min(limit, encoder.config.max_position_embeddings, own))


def _detect_family(folder: Path) -> families.Family:
    """Detect the family of a folder.

    Raises:
        IncompatibleError: An unsupported family. MissingError, DamagedError: `model_index.json` is missing or unreadable.
    """
    try:
        family = families.detect_family(folder)
    except OSError:
        raise MissingError(f"a part of the base in {folder} is missing: model_index.json", folders.AGAIN) from None
    except (ValueError, KeyError):
        raise DamagedError(f"the base in {folder} is damaged: model_index.json cannot be read", folders.AGAIN) from None
    if family is None:
        raise IncompatibleError(
            f"the base in {folder} is of an unsupported family",
            "docs/reference/base-models.md lists the supported families",
        )
    return family


def _load_vae(
    folder: Path, device: torch.device, dtype: torch.dtype, weights: Path | None = None, override: Path | None = None
) -> Any:
    """Load the base's VAE, or the file or folder `override`, and freeze it."""
    vae: Any
    family = _detect_family(folder)
    with LOAD_LOCK:
        if override is not None:
            vae = (
                single_file_loading.load_component("vae", override, single_file.LAYOUTS / family.name)
                if override.is_file()
                else family.load_vae(override.parent, override.name)
            )
        elif weights:
            vae = single_file_loading.load_component("vae", weights, folder)
        else:
            vae = family.load_vae(folder, "vae")
    vae.requires_grad_(False).eval().to(device, dtype)
    return vae.to(memory_format=torch.channels_last) if device.type == "cpu" else vae


def silence_library_logging() -> None:
    """Turn off the load reports and progress bars of the libraries."""
    import diffusers.utils.logging
    import transformers.utils.logging

    transformers.utils.logging.set_verbosity(logging.CRITICAL)  # failures become errors of this package
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity(logging.CRITICAL)
    diffusers.utils.logging.disable_progress_bar()
