"""Base models with random weights in the real sizes of each family, for memory measurements without downloads."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from objtune_cli.errors import UsageError
from objtune_cli.models import (
    base_model,  # repairs torchvision before the libraries below import it
    loading,
    precision,
)
from objtune_cli.models.families import SD1, SD2, SD3, SDXL, Family, bundled_tokenizers, single_file
from objtune_cli.runtime import devices
from objtune_cli.runtime.cpu import tune_malloc

# isort: split
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

LAYOUTS: dict[str, Family] = {"sd15": SD1, "sd21": SD2, "sdxl": SDXL, "sd3": SD3}
"""Families by the name of their layout; SD 3 is the medium model without T5."""
FACTOR = 8
"""Image pixels per latent cell, along one side, in all layouts."""


def parse_names(names: str) -> list[str]:
    """Split a comma-separated list of layouts; "base" is the selected base.

    Raises:
        UsageError: A layout is unknown.
    """
    layouts = [name.strip() for name in names.split(",")]
    wrong = [name for name in layouts if name not in LAYOUTS and name != "base"]
    if wrong:
        raise UsageError(
            f"bench.memory_models has the unknown {', '.join(wrong)}", f"use one or more of {', '.join(LAYOUTS)}, base"
        )
    return layouts


def random_base_model(
    name: str, device: torch.device, dtype: torch.dtype, side: int = 0, denoiser: torch.dtype | None = None
) -> base_model.BaseModel:
    """Build a base model with random weights: text encoders in float32, the other networks in `dtype`.

    The configs are those in `families/layouts`.

    Args:
        side: Side of the images, px; 0 for that of the layout. denoiser: Number format of the denoiser if not `dtype`.
    """
    loading.silence_library_logging()
    family = LAYOUTS[name]
    folder = single_file.LAYOUTS / family.name
    shape = _config(folder / family.denoiser) | ({"sample_size": side // FACTOR} if side else {})
    network: Any = UNet2DConditionModel if family.denoiser == "unet" else SD3Transformer2DModel
    encoders = [_random(partial(_encoder, folder / part), device, torch.float32) for part in family.encoders]
    words = [bundled_tokenizers.clip_tokenizer(pad) for pad in bundled_tokenizers.pad_tokens(family)]
    reopen = partial(
        _random, partial(AutoencoderKL.from_config, _config(folder / "vae")), device, family.vae_dtype(dtype)
    )
    return base_model.BaseModel(
        tokenizer=words[0],
        text_encoder=encoders[0],
        denoiser=_random(partial(network.from_config, shape), device, denoiser or dtype),
        loaded_vae=reopen(),
        scheduler=family.load_scheduler(folder),
        device=device,
        dtype=dtype,
        reload_vae=reopen,
        family=family,
        tokenizer_2=words[1] if len(encoders) > 1 else None,
        text_encoder_2=encoders[1] if len(encoders) > 1 else None,
        options=family.options(folder),
    )


def load_random(name: str, device_name: str, precision_name: str, side: int, fitting: int) -> base_model.BaseModel:
    """Build a layout in the number formats and the memory layout in which `train` loads a base.

    Args:
        side: Side of the images, px; 0 for that of the layout on a GPU, and `fitting` on a CPU.
    """
    device = devices.pick_device(device_name)
    dtype = loading.pick_dtype(precision_name, device)
    if device.type != "cpu":
        return random_base_model(name, device, dtype, side)
    tune_malloc()
    half = precision_name == "auto" and precision.processor_has_bf16()
    model = random_base_model(
        name, device, dtype, side or fitting, torch.bfloat16 if half else dtype
    )  # never complete in float32, which would be the peak
    model.denoiser.to(memory_format=torch.channels_last)
    if half:
        precision.use_bf16_matmuls(model.denoiser)
    return model


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    return config


def _encoder(folder: Path) -> Any:
    config = _config(folder)
    kind: Any = CLIPTextModel if config["architectures"] == ["CLIPTextModel"] else CLIPTextModelWithProjection
    return kind(CLIPTextConfig(**config))


def _random(build: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> Any:
    """Build a frozen module directly in its number format."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return build().requires_grad_(False).eval().to(dtype)
    finally:
        torch.set_default_dtype(before)
