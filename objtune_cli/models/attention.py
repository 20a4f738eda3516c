"""Attention layers of the denoiser from inside: their parts, and where tokens look, with gradients."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from objtune_cli.models.stack import Stack

LARGEST = 16
"""Side of the largest maps that are looked at: finer ones follow edges, not objects (Break-A-Scene, arXiv:2305.16311)."""


def heads(attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of an attention layer of diffusers, each (B, heads, length, d)."""
    context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
    projected = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
    q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in projected)
    return q, k, v


def merged(attn: Any, out: Tensor, residual: Tensor) -> Tensor:
    """What the layer gives on: (B, heads, Q, d) through its output projection, (B, Q, C)."""
    out = attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(-2)))
    return (out + residual if attn.residual_connection else out) / attn.rescale_output_factor


class Recorder:
    """Computes cross-attention as usual and keeps its probabilities, (B, Q, L), averaged over heads."""

    def __init__(self, rows: int, largest: int = LARGEST) -> None:
        self.rows, self.largest, self.maps = rows, largest, dict[int, list[Tensor]]()

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Tensor:
        q, k, v = heads(attn, hidden_states, encoder_hidden_states)
        with torch.autocast(q.device.type, enabled=False):  # a softmax in bf16 is too coarse for a loss
            probs = (q.float() @ k.float().transpose(-1, -2) * attn.scale).softmax(-1)
            out = (probs @ v.float()).to(q.dtype)
        side = math.isqrt(probs.shape[2])
        if side**2 == probs.shape[2] and side <= self.largest:
            self.maps.setdefault(side, []).append(probs[: self.rows].mean(1))
        return merged(attn, out, hidden_states)

    def seen(self, tokens: Tensor) -> Tensor:
        """Attention to the tokens (L,) boolean on the finest kept maps, largest value 1: (rows, s, s)."""
        side = max(self.maps)
        mean = torch.stack(self.maps[side]).mean(0)[..., tokens].mean(-1)
        return (mean / mean.amax(1, keepdim=True).clamp_min(1e-8)).unflatten(1, (side, side))


@contextlib.contextmanager
def recorded(stack: Stack, rows: int) -> Iterator[Recorder]:
    """Inside, cross-attention of square pictures is recorded for the first `rows` rows of a batch."""
    before = dict(stack.unet.attn_processors)
    middle = int(stack.unet.config.sample_size) >> (len(stack.unet.config.block_out_channels) - 1)
    recorder = Recorder(rows, max(LARGEST, middle))  # SDXL's smallest maps have 32 cells a side
    stack.unet.set_attn_processor({k: recorder if ".attn2." in k else v for k, v in before.items()})
    try:
        yield recorder
    finally:
        stack.unet.set_attn_processor(before)
