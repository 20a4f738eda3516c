"""Several LoRAs in one pass of the denoiser: each has rows of its own, the frozen layers are multiplied once for all.

The sum of losses over rows has the gradients of separate passes: no layer of the denoiser mixes rows. Stacked factors:
tLoRA, arXiv:2602.07263, and S-LoRA, arXiv:2311.03285.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objtune_cli.models.base_model import BaseModel


@contextlib.contextmanager
def per_block_adapters(model: BaseModel, names: Sequence[str], each: int) -> Iterator[None]:
    """Inside, the rows of a pass belong to the named LoRAs, `each` to each, in this order.

    A pass of twice as many rows takes that order twice: guidance puts rows without a prompt before those with it.
    """
    layers = [m for m in model.denoiser.modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")]
    for layer in layers:
        layer.forward = _forward(layer, names, each)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _forward(layer: Any, names: Sequence[str], each: int) -> Any:
    """The forward of one layer: its frozen part on all rows, each block's own LoRA on the block."""
    downs, ups = ([side[name].weight for name in names] for side in (layer.lora_A, layer.lora_B))
    scale = layer.scaling[names[0]]

    def forward(x: Tensor) -> Tensor:
        out, turns = layer.base_layer(x), len(x) // (len(names) * each)
        own = x if torch.is_autocast_enabled(x.device.type) else x.to(downs[0].dtype)
        add = _convolved if x.ndim == 4 else _multiplied
        found = add(_blocks(own, len(names), turns), downs, ups, layer.base_layer)
        return out + (_rows(found, turns) * scale if scale != 1 else _rows(found, turns)).to(out.dtype)

    return forward


def _blocks(x: Tensor, count: int, turns: int) -> Tensor:
    """Rows (T N c, ...) as blocks of one LoRA each, (N, T c, ...)."""
    if turns == 1:
        return x.unflatten(0, (count, -1))
    return x.unflatten(0, (turns, count, -1)).transpose(0, 1).flatten(1, 2)


def _rows(x: Tensor, turns: int) -> Tensor:
    """Blocks back as rows."""
    return x.flatten(0, 1) if turns == 1 else x.unflatten(1, (turns, -1)).transpose(0, 1).flatten(0, 2)


def _multiplied(x: Tensor, downs: list[Tensor], ups: list[Tensor], _: nn.Module) -> Tensor:
    """x (N, c, ..., in) through each block's own two factors, (N, c, ..., out)."""
    low = torch.bmm(x.flatten(1, -2), torch.stack(downs).transpose(1, 2))
    return torch.bmm(low, torch.stack(ups).transpose(1, 2)).unflatten(1, x.shape[1:-1])


def _convolved(x: Tensor, downs: list[Tensor], ups: list[Tensor], base: Any) -> Tensor:
    """x (N, c, in, h, w) through each block's own two convolutions, (N, c, out, h, w)."""
    found = [
        F.conv2d(F.conv2d(part, down, stride=base.stride, padding=base.padding), up)
        for part, down, up in zip(x, downs, ups, strict=True)
    ]
    return torch.stack(found)
