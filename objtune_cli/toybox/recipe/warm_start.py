"""Initialise a larger base from a smaller one, so that it computes the same at first.

Weights that fit are copied. A finer resolution level is added outside, so that the latent grid stays the same and a
denoiser for small images remains useful. Wider layers start with duplicated channels (Net2Net, arXiv:1511.05641), and
additional latent channels start without influence on the others.
"""

from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)
PATCHES = "vision_model.embeddings.patch_embedding.weight"
LATENT_LAYERS = ("encoder.conv_out", "quant_conv", "post_quant_conv", "decoder.conv_in", "conv_in", "conv_out")
"""Layers of the VAE and the denoiser with latent channels as input or output."""
MOMENTS = ("encoder.conv_out", "quant_conv")
"""Those of them whose outputs are means, then log variances."""
NEW_LOG_VARIANCE = -6.0
"""Log variance of additional latent channels: little noise, so that the decoder learns to use them."""
UNLIKE = 0.3
"""Largest relative difference of the weights of two duplicated channels, without which they would stay equal."""


def load_start(network: Network, start: str, part: str) -> Network:
    """Copy the weights that fit from part `part` (vae, unet, clip) of the base in folder `start` into `network`.

    Raises:
        SystemExit: The folder lacks these weights.
    """
    if not start:
        return network
    files = sorted((Path(start) / part).glob("*.safetensors"))
    if not files:
        raise SystemExit(f"error: {start} contains no {part} weights; give the folder of a published base")
    old = {k: v for file in files for k, v in load_file(file).items()}
    new = network.state_dict()
    levels = len({k.split(".")[2] for k in new if k.startswith("encoder.down_blocks.")})
    added = levels - len({k.split(".")[2] for k in old if k.startswith("encoder.down_blocks.")})
    renamed = {_grown_key(k, added): _fine(k, v, new.get(k)) for k, v in old.items()}
    if part == "vae":
        renamed |= _shortcuts(renamed, new)
        renamed = {k: _duplicate(k, v, new[k]) for k, v in renamed.items() if k in new}
    widened = {k: _widen_latents(k, v, new[k]) for k, v in renamed.items() if k in new}
    fitting = {k: v.float() for k, v in widened.items() if new[k].shape == v.shape}
    network.load_state_dict(fitting, strict=False)
    print(f"{part}: {len(fitting)} of {len(new)} tensors from {start}", flush=True)
    return network


def _grown_key(key: str, added: int) -> str:
    """The key's name in a network with `added` more resolution levels outside; its first layer is new."""
    head, _, rest = key.partition("encoder.down_blocks.")
    if added and not head and rest:
        level, _, rest = rest.partition(".")
        return f"encoder.down_blocks.{int(level) + added}.{rest}"
    return f"old.{key}" if added and key.startswith("encoder.conv_in.") else key


def _fine(key: str, value: Tensor, aim: Tensor | None) -> Tensor:
    """Patch filters for patches k times as wide, with the same output on an image enlarged k times."""
    if key != PATCHES or aim is None or aim.shape == value.shape:
        return value
    k = aim.shape[-1] // value.shape[-1]
    spread = value.float().repeat_interleave(k, -1).repeat_interleave(k, -2)
    return torch.as_tensor(spread / k**2)


def _shortcuts(old: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the shortcuts that only the wider network needs: the identity of the old width."""
    added = {}
    for key in new:
        if key.endswith("conv_shortcut.weight") and key not in old:
            first = old.get(key.replace("conv_shortcut", "conv2"))
            if first is not None:
                added[key] = torch.eye(len(first))[:, :, None, None]
                added[key.replace("weight", "bias")] = torch.zeros(len(first))
    return added


def _duplicate(key: str, value: Tensor, fresh: Tensor) -> Tensor:
    """Weights whose channels are those of `value`, each repeated as often as `fresh` is wider; the output is the same."""
    if value.ndim != fresh.ndim or value.shape == fresh.shape:
        return value
    layer = key.rpartition(".")[0]
    latents = {"encoder.conv_out": (0,), "decoder.conv_in": (1,)}.get(layer, (0, 1) if layer in LATENT_LAYERS else ())
    value = value.float()
    if 0 not in latents and len(fresh) % len(value) == 0:
        value = value.repeat_interleave(len(fresh) // len(value), 0)
    if value.ndim == 1 or 1 in latents or fresh.shape[1] == value.shape[1] or fresh.shape[1] % value.shape[1]:
        return value
    times = fresh.shape[1] // value.shape[1]
    generator = torch.Generator().manual_seed(len(key))
    share = 1 + UNLIKE * (2 * torch.rand((*value.shape[:2], times, *value.shape[2:]), generator=generator) - 1)
    share = share / share.sum(2, keepdim=True)
    return (value.unsqueeze(2) * share).flatten(1, 2)


def _widen_latents(key: str, value: Tensor, fresh: Tensor) -> Tensor:
    """The weights of a layer with more latent channels: `fresh`, with the old weights in their place.

    New inputs have no influence on old outputs, so that the old outputs stay the same.
    """
    layer = key.rpartition(".")[0]
    if layer not in LATENT_LAYERS or value.shape == fresh.shape or value.ndim != fresh.ndim:
        return value
    wide = fresh.clone()
    rows = _positions(len(value), len(fresh), 2 if layer in MOMENTS else 1)
    if layer == "quant_conv":
        wide[len(fresh) // 2 :] = 0 if value.ndim > 1 else NEW_LOG_VARIANCE
    if value.ndim == 1:
        wide[rows] = value.float()
        return wide
    columns = _positions(value.shape[1], fresh.shape[1], 2 if layer == "quant_conv" else 1)
    wide[rows] = 0
    wide[rows[:, None], columns] = value.float()
    return wide


def _positions(old: int, new: int, groups: int) -> Tensor:
    """Indices of `old` channels among `new` ones, at the start of each of `groups` equal groups."""
    return torch.cat([torch.arange(old // groups) + group * (new // groups) for group in range(groups)])
