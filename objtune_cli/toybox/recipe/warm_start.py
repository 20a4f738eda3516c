"""Initialise a larger base from a smaller one: copy the weights that fit and add a finer resolution level outside.

The latent grid stays the same, so that a denoiser for small images remains useful.
"""

from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)
PATCHES = "vision_model.embeddings.patch_embedding.weight"


def load_start(network: Network, start: str, part: str) -> Network:
    """Copy the weights that fit from part `part` (vae, unet, clip) of the base in folder `start` into `network`.

    Raises:
        SystemExit: The folder lacks these weights.
    """
    if not start:
        return network
    files = sorted((Path(start) / part).glob("*.safetensors"))
    if not files:
        raise SystemExit(f"error: {start} holds no {part} weights; give the folder of a published base")
    old = {k: v for file in files for k, v in load_file(file).items()}
    new = network.state_dict()
    levels = len({k.split(".")[2] for k in new if k.startswith("encoder.down_blocks.")})
    added = levels - len({k.split(".")[2] for k in old if k.startswith("encoder.down_blocks.")})
    renamed = {_grown_key(k, added): _fine(k, v, new.get(k)) for k, v in old.items()}
    fitting = {k: v.float() for k, v in renamed.items() if k in new and new[k].shape == v.shape}
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
