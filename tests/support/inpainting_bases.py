"""Inpainting checkpoints from tiny text-to-image bases: a denoiser with further inputs, as Stable Diffusion's have them."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def widen(base: Path, folder: Path, channels: int = 9, pipeline: str = "Inpaint") -> Path:
    """A copy of a base whose denoiser takes more channels; the weights of the new ones are random.

    Args:
        pipeline: What its pipeline's class has before `Pipeline`.
    """
    shutil.copytree(base, folder)
    config, index = folder / "unet/config.json", folder / "model_index.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": channels}))
    described = json.loads(index.read_text())
    described["_class_name"] = described["_class_name"].replace("Pipeline", f"{pipeline}Pipeline")
    index.write_text(json.dumps(described))
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    first = weights["conv_in.weight"]
    more = torch.randn(len(first), channels - first.shape[1], 3, 3, generator=torch.Generator().manual_seed(4)) / 8
    save_file(weights | {"conv_in.weight": torch.cat([first, more], 1)}, file, {"format": "pt"})
    return folder
