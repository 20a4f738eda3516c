"""Train the VAE: images to latents of 16x16 cells and back."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objtune_cli.toybox.recipe.dataset import HELD_BACK, ToyboxDataset
from objtune_cli.toybox.recipe.presets import Preset
from objtune_cli.toybox.recipe.train_loop import Plan, fit
from objtune_cli.toybox.recipe.warm_start import load_start

GRID = 16
"""Side of the masks."""


def build(preset: Preset):
    """An untrained `AutoencoderKL` of the preset's size."""
    from diffusers import AutoencoderKL

    levels = len(preset.vae_channels)
    torch.manual_seed(preset.seed)
    network: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=preset.vae_channels,
        layers_per_block=1,
        latent_channels=preset.latent_channels,
        norm_num_groups=8,
        sample_size=preset.size,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    return load_start(network, preset.start, "vae").to(memory_format=torch.channels_last)


def to_tensor(pictures: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float in [-1, 1], channels last."""
    x = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2)
    return (x.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def _detail(x: Tensor) -> Tensor:
    """The difference between x and its half-size copy: its edges."""
    return x - F.interpolate(F.avg_pool2d(x, 2), scale_factor=2)


def train(work: Path, preset: Preset, data: ToyboxDataset, device: str = "cpu"):
    """Train on half-size crops, the last fifth of the steps on whole images; sets the scaling factor."""
    vae = build(preset)
    whole_from = int(0.8 * preset.vae_steps)

    def losses(step: int, g: torch.Generator) -> dict[str, Tensor]:
        x = to_tensor(_sample_pictures(preset, data, g, whole=step >= whole_from)).to(device)
        posterior = vae.encode(x).latent_dist
        latent = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=g).to(device)
        divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return _reconstruction_losses(vae.decode(latent).sample - x) | {"kl": preset.vae_kl * divergence}

    plan = Plan(preset.vae_steps, preset.vae_lr, ema=0.995, decay=preset.vae_decay, seed=preset.seed)
    fit("vae", vae, losses, plan, work, device=device)
    return _evaluate(vae, data)


def train_decoder(work: Path, preset: Preset, data: ToyboxDataset, vae, device: str = "cpu"):
    """Train the decoder alone for `decoder_steps` more steps; the latents, and what was trained on them, stay valid."""
    if not preset.decoder_steps and not (work / "decoder.safetensors").exists():
        return vae
    part = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})
    whole_from = int(0.8 * preset.decoder_steps)

    def losses(step: int, g: torch.Generator) -> dict[str, Tensor]:
        x = to_tensor(_sample_pictures(preset, data, g, whole=step >= whole_from)).to(device)
        with torch.no_grad():
            latent = vae.encode(x).latent_dist.mean
        return _reconstruction_losses(vae.decode(latent).sample - x)

    plan = Plan(preset.decoder_steps, preset.vae_lr, ema=0.995, decay=preset.vae_decay, seed=preset.seed)
    vae.to(device)
    fit("decoder", part, losses, plan, work, device=device)
    return _evaluate(vae.to("cpu").eval(), data)


def _sample_pictures(preset: Preset, data: ToyboxDataset, g: torch.Generator, *, whole: bool) -> np.ndarray:
    """A batch of images, or of crops of half their side; of `vae_crops` random crops, the one with most of an object."""
    usable, crop = len(data.pictures) - HELD_BACK, preset.size // 2
    rows = torch.randint(usable, (preset.vae_batch // (3 if whole else 1),), generator=g).tolist()
    if whole:
        return np.asarray(data.pictures[sorted(rows)])
    corners = torch.randint(crop + 1, (len(rows), preset.vae_crops, 2), generator=g).tolist()
    crops = []
    for row, choices in zip(rows, corners, strict=True):
        cells = [(i * GRID // preset.size, j * GRID // preset.size) for i, j in choices]
        cover = [int(data.masks[row, i : i + GRID // 2, j : j + GRID // 2].sum(dtype=int)) for i, j in cells]
        i, j = choices[int(np.argmax(cover))]
        crops.append(data.pictures[row, i : i + crop, j : j + crop])
    return np.stack(crops)


def _reconstruction_losses(error: Tensor) -> dict[str, Tensor]:
    """Losses of the difference between a decoded image and the original."""
    return {
        "l1": error.abs().mean() + F.avg_pool2d(error, 4).abs().mean(),
        "mse": 2 * error.square().mean(),
        "edge": 0.5 * _detail(error).abs().mean(),
    }


@torch.no_grad()
def reconstruct(vae, x: Tensor) -> tuple[Tensor, Tensor]:
    """Latents of images (B, 3, H, W), and the images decoded from them, in [-1, 1]."""
    z = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(32)])
    return z, torch.cat([vae.decode(part).sample for part in z.split(32)]).clamp(-1, 1)


def measure(x: Tensor, y: Tensor, cover: Tensor) -> dict[str, float]:
    """Errors of reconstructions `y` of images `x`, both (B, 3, H, W) in [-1, 1]; `cover` (B, 1, H, W) in [0, 1] shows objects.

    `psnr` and `object_psnr` in dB, `l1` in [0, 1], `sharpness`: mean absolute detail over that of `x`.
    """
    error = (y - x) / 2
    square = error.square().mean(1, keepdim=True)
    return {
        "psnr": float(-10 * torch.log10(square.mean())),
        "object_psnr": float(-10 * torch.log10((square * cover).sum() / cover.sum())),
        "l1": float(error.abs().mean()),
        "sharpness": float(_detail(y).abs().mean() / _detail(x).abs().mean()),
    }


def _evaluate(vae, data: ToyboxDataset):
    """Set the scaling factor to 1 / std of the latents; print the measures of validation images."""
    x = to_tensor(data.pictures[-256:])
    cover = F.interpolate(torch.from_numpy(data.masks[-256:]).float()[:, None] / 255, size=x.shape[-2:])
    z, y = reconstruct(vae, x)
    vae.register_to_config(scaling_factor=float(1 / z.std()))
    for name, value in measure(x, y, cover).items():
        print(f"vae: {name} {value:.4g} on {len(x)} unseen pictures", flush=True)
    return vae
