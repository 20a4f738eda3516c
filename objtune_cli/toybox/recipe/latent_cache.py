"""Latents of the training images, cached in the work folder in shards, so that an interrupted run continues."""

import zlib
from pathlib import Path

import numpy as np
import torch

from objtune_cli.toybox.recipe.dataset import HELD_BACK, SHARD, ToyboxDataset
from objtune_cli.toybox.recipe.vae import to_tensor

BATCH = 32


def encoder_digest(vae) -> str:
    """A checksum of the weights that the latents depend on."""
    crc = 0
    for key, value in sorted(vae.state_dict().items()):
        if key.startswith(("encoder.", "quant_conv.")):
            crc = zlib.crc32(value.contiguous().numpy().tobytes(), crc)
    return f"{crc:08x}"


def load_or_encode(work: Path, data: ToyboxDataset, vae, count: int | None = None) -> np.ndarray:
    """Latents (N, h, w, C) in half precision: of every training image, or of the first `count`, then those held back."""
    folder = work / "data" / f"latents-{encoder_digest(vae)}"
    folder.mkdir(parents=True, exist_ok=True)
    usable = len(data.pictures) - HELD_BACK
    first = min(count or usable, usable)
    starts = range(0, first, SHARD)
    parts = [_encode(folder, data, vae, start, min(start + SHARD, usable)) for start in starts]
    train = np.concatenate(parts)[:first]
    held_back = _encode(folder, data, vae, usable, len(data.pictures))
    return np.concatenate([train, held_back])


@torch.no_grad()
def _encode(folder: Path, data: ToyboxDataset, vae, start: int, end: int) -> np.ndarray:
    """Latents of images `start` to `end` - 1."""
    file = folder / f"{start:06d}-{end:06d}.npy"
    if not file.exists():
        rows = [
            vae.encode(to_tensor(data.pictures[i : min(i + BATCH, end)])).latent_dist.mean.permute(0, 2, 3, 1)
            for i in range(start, end, BATCH)
        ]
        partial = file.with_suffix(".partial.npy")
        np.save(partial, (torch.cat(rows) * vae.config.scaling_factor).half().numpy())
        partial.replace(file)
        print(f"latents: {end} of {len(data.pictures)}", flush=True)
    latents: np.ndarray = np.load(file)
    return latents
