"""Opens a base model from a diffusers folder or a single-file checkpoint."""

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
from objtune_cli.models.families import component_loading, schedulers, single_file, single_file_loading
from objtune_cli.models.families import pipeline_folder as folders
from objtune_cli.runtime import cpu
from objtune_cli.runtime.load_lock import LOAD_LOCK

UNREADABLE = (ValueError, RuntimeError, SafetensorError)
"""What the libraries raise for a file that is cut off or not theirs."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MIN_TOKENS = 3
"""Tokens of the shortest prompt: its start, one word and its end."""


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
            single_file_loading.load_text_encoders(family, weights, folder)
            if weights
            else family.load_text_encoders(folder)
        )
        tokenizer_2, text_encoder_2 = more[0] if more else (None, None)
        tokenizer_3, text_encoder_3 = (
            single_file_loading.load_t5(family, weights, folder, dtype) if weights else family.load_t5(folder, dtype)
        )
        model = BaseModel(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            denoiser=single_file_loading.load_component(family.denoiser, weights, folder)
            if weights
            else family.load_denoiser(folder),
            loaded_vae=_autoencoder(folder, device, family.vae_dtype(dtype), weights, vae),
            scheduler=family.load_scheduler(folder, **said),
            sampler=family.load_sampler(folder, **said),
            device=device,
            dtype=dtype,
            reload_vae=partial(_autoencoder, folder, device, family.vae_dtype(dtype), weights, vae),
            reload_vae_fp32=partial(_autoencoder, folder, device, torch.float32, weights, vae),
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
        "vae": model.loaded_vae,
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
        raise IncompatibleError(
            f"the base in {folder} is of no family that is known",
            "docs/reference/base-models.md lists the supported families",
        )
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
                single_file_loading.load_component("vae", given, single_file.LAYOUTS / _family(folder).name)
                if given.is_file()
                else component_loading.load_component(AutoencoderKL, given.parent, given.name)
            )
        elif weights:
            vae = single_file_loading.load_component("vae", weights, folder)
        else:
            vae = component_loading.load_component(AutoencoderKL, folder, "vae")
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
