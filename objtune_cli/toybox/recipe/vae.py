"""Train the VAE: images to latents of 16x16 cells and back."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from objtune_cli.toybox.recipe.dataset import HELD_BACK, ToyboxDataset
from objtune_cli.toybox.recipe.presets import Preset
from objtune_cli.toybox.recipe.train_loop import Plan, fit
from objtune_cli.toybox.recipe.warm_start import load_start

KL_WEIGHT = 1e-3


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


def to_unit(pictures: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float in [-1, 1], channels last."""
    x = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2)
    return (x.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def _detail(x: Tensor) -> Tensor:
    """The difference between x and its half-size copy: its edges."""
    return x - F.interpolate(F.avg_pool2d(x, 2), scale_factor=2)


def train(work: Path, preset: Preset, data: ToyboxDataset, device: str = "cpu"):
    """Train on half-size crops, the last fifth of the steps on whole images; sets the scaling factor."""
    vae = build(preset)
    pictures = data.pictures[:-HELD_BACK]
    crop = preset.size // 2
    whole_from = int(0.8 * preset.vae_steps)

    def losses(step: int, g: torch.Generator) -> dict[str, Tensor]:
        whole = step >= whole_from
        rows = torch.randint(len(pictures), (preset.vae_batch // (3 if whole else 1),), generator=g).tolist()
        if whole:
            x = to_unit(pictures[sorted(rows)])
        else:
            corner = torch.randint(crop + 1, (len(rows), 2), generator=g).tolist()
            x = to_unit(
                np.stack([pictures[r, i : i + crop, j : j + crop] for r, (i, j) in zip(rows, corner, strict=True)])
            )
        x = x.to(device)
        posterior = vae.encode(x).latent_dist
        latent = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=g).to(device)
        error = vae.decode(latent).sample - x
        return {
            "l1": error.abs().mean() + F.avg_pool2d(error, 4).abs().mean(),
            "mse": 2 * error.square().mean(),
            "edge": 0.5 * _detail(error).abs().mean(),
            "kl": KL_WEIGHT * 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean(),
        }

    plan = Plan(preset.vae_steps, preset.vae_lr, ema=0.995, decay=0.5, seed=preset.seed)
    fit("vae", vae, losses, plan, work, device=device)
    return _evaluate(vae, data)


@torch.no_grad()
def _evaluate(vae, data: ToyboxDataset):
    """Set the scaling factor to 1 / std of the latents; print the error on validation images."""
    x = to_unit(data.pictures[-256:])
    z = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(32)])
    y = torch.cat([vae.decode(part).sample for part in z.split(32)]).clamp(-1, 1)
    psnr = -10 * torch.log10(((y - x) / 2).square().mean())
    vae.register_to_config(scaling_factor=float(1 / z.std()))
    print(f"vae: {float(psnr):.2f} dB on {len(x)} unseen pictures, latent std {float(z.std()):.3f}", flush=True)
    return vae
