"""Bases of the families' own layouts and sizes with random weights, opened as `train` opens them: nothing is downloaded, nothing written."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from objtune_cli.errors import UsageError
from objtune_cli.models import (
    base_model,  # repairs torchvision before the libraries below ask for it
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
"""SD 3 is medium's, without T5."""
FACTOR = 8
"""Picture pixels per latent cell, along one side, of all of them."""


def parse_names(names: str) -> list[str]:
    """The layouts of a list with commas; "base" is the base at hand.

    Raises:
        UsageError: One of them is not known.
    """
    found = [name.strip() for name in names.split(",")]
    wrong = [name for name in found if name not in LAYOUTS and name != "base"]
    if wrong:
        raise UsageError(f"bench.memory_models names {', '.join(wrong)}", f"one or more of {', '.join(LAYOUTS)}, base")
    return found


def random_base_model(
    name: str, device: torch.device, dtype: torch.dtype, side: int = 0, denoiser: torch.dtype | None = None
) -> base_model.BaseModel:
    """A layout's parts: denoiser and autoencoder in `dtype`, text encoders in float32, CLIP's own words; `side`: of its pictures, px, 0: its own.

    `denoiser`: its number format where it is another.

    Source: the configs of the models' folders, as the package keeps them for one-file checkpoints.
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
    """A layout in the number formats and the memory layout in which `train` opens a base.

    Args:
        side: Of its pictures, px; 0: the layout's own on a GPU, `fitting` on a processor.
    """
    device = devices.pick_device(device_name)
    dtype = loading.pick_dtype(precision_name, device)
    if device.type != "cpu":
        return random_base_model(name, device, dtype, side)
    tune_malloc()
    half = precision_name == "auto" and precision.processor_has_bf16()
    made = random_base_model(
        name, device, dtype, side or fitting, torch.bfloat16 if half else dtype
    )  # never whole in float32: that alone would be the peak
    made.denoiser.to(memory_format=torch.channels_last)
    if half:
        precision.use_bf16_matmuls(made.denoiser)
    return made


def _config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    return found


def _encoder(folder: Path) -> Any:
    said = _config(folder)
    kind: Any = CLIPTextModel if said["architectures"] == ["CLIPTextModel"] else CLIPTextModelWithProjection
    return kind(CLIPTextConfig(**said))


def _random(build: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> Any:
    """A frozen module made in its number format: never whole in another."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return build().requires_grad_(False).eval().to(dtype)
    finally:
        torch.set_default_dtype(before)
