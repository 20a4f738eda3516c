"""Several LoRAs in one forward of the denoiser: each acts on a block of the batch, and the frozen layers run once for all.

No layer of the denoiser mixes samples, so the gradients of a loss summed over samples equal those of separate forwards.
Stacked factors: tLoRA, arXiv:2602.07263, and S-LoRA, arXiv:2311.03285.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objtune_cli.models.base_model import BaseModel


@contextlib.contextmanager
def per_block_adapters(model: BaseModel, names: Sequence[str], samples_per_adapter: int) -> Iterator[None]:
    """Apply each named LoRA to its own block of a batch of len(names) * samples_per_adapter samples, in this order.

    A batch of twice that size repeats the order: guidance puts samples without a prompt before those with it.
    """
    layers = [m for m in model.denoiser.modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")]
    for layer in layers:
        layer.forward = _make_forward(layer, names, samples_per_adapter)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _make_forward(layer: Any, names: Sequence[str], samples_per_adapter: int) -> Callable[[Tensor], Tensor]:
    """Return the forward of one layer: its frozen part on the whole batch, each LoRA on its own block."""
    downs, ups = ([side[name].weight for name in names] for side in (layer.lora_A, layer.lora_B))
    scale = layer.scaling[names[0]]

    def forward(x: Tensor) -> Tensor:
        out: Tensor = layer.base_layer(x)
        repeats = len(x) // (len(names) * samples_per_adapter)
        lora_input = x if torch.is_autocast_enabled(x.device.type) else x.to(downs[0].dtype)
        apply_lora = _apply_conv if x.ndim == 4 else _apply_linear
        update = apply_lora(_split_blocks(lora_input, len(names), repeats), downs, ups, layer.base_layer)
        update = _join_blocks(update, repeats)
        return out + (update * scale if scale != 1 else update).to(out.dtype)

    return forward


def _split_blocks(x: Tensor, num_blocks: int, repeats: int) -> Tensor:
    """Split samples (R N c, ...) into one block per LoRA, (N, R c, ...)."""
    if repeats == 1:
        return x.reshape(num_blocks, -1, *x.shape[1:])
    return x.reshape(repeats, num_blocks, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)


def _join_blocks(x: Tensor, repeats: int) -> Tensor:
    """Undo `_split_blocks`."""
    if repeats == 1:
        return x.flatten(0, 1)
    return x.reshape(x.shape[0], repeats, -1, *x.shape[2:]).transpose(0, 1).flatten(0, 2)


def _apply_linear(x: Tensor, downs: list[Tensor], ups: list[Tensor], _: nn.Module) -> Tensor:
    """Multiply each block of x (N, c, ..., in) by its own two factors: (N, c, ..., out)."""
    low_rank = torch.bmm(x.flatten(1, -2), torch.stack(downs).transpose(1, 2))
    update = torch.bmm(low_rank, torch.stack(ups).transpose(1, 2))
    return update.reshape(*x.shape[:-1], update.shape[-1])


def _apply_conv(x: Tensor, downs: list[Tensor], ups: list[Tensor], base: Any) -> Tensor:
    """Convolve each block of x (N, c, in, h, w) with its own two factors: (N, c, out, h, w)."""
    updates = [
        F.conv2d(F.conv2d(block, down, stride=base.stride, padding=base.padding), up)
        for block, down, up in zip(x, downs, ups, strict=True)
    ]
    return torch.stack(updates)
