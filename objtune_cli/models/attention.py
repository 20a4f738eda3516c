"""Attention layers of the denoiser from inside: their parts, and where tokens look, with gradients."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from objtune_cli.models.base_model import BaseModel

MAX_MAP_SIDE = 16
"""Side of the largest maps that are looked at: finer ones follow edges, not objects (Break-A-Scene, arXiv:2305.16311)."""


def is_joint(attn: Any, words: Tensor | None) -> bool:
    """Whether picture and words are queries and keys of one layer, as in MMDiT (arXiv:2403.03206); else the words are keys alone."""
    return words is not None and getattr(attn, "add_k_proj", None) is not None


def pad_mask(tokens: Tensor, length: int) -> Tensor:
    """Which of `length` rows of words are the tokens (L,) boolean: what a family says behind them is none."""
    return F.pad(tokens, (0, length - len(tokens)))


def project_qkv(
    attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of an attention layer of diffusers, each (B, heads, length, d); of a joint one the words' behind the picture's."""
    words = encoder_hidden_states
    if not is_joint(attn, words):
        context = hidden_states if words is None else words
        return _split_heads(
            attn, (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)), attn.norm_q, attn.norm_k
        )
    own = _split_heads(
        attn, (attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)), attn.norm_q, attn.norm_k
    )
    more = _split_heads(
        attn,
        (attn.add_q_proj(words), attn.add_k_proj(words), attn.add_v_proj(words)),
        attn.norm_added_q,
        attn.norm_added_k,
    )
    q, k, v = (torch.cat(pair, dim=2) for pair in zip(own, more, strict=True))
    return q, k, v


def _split_heads(
    attn: Any, projected: tuple[Tensor, Tensor, Tensor], norm_q: Any, norm_k: Any
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in projected)
    return q if norm_q is None else norm_q(q), k if norm_k is None else norm_k(k), v


def project_out(attn: Any, out: Tensor, residual: Tensor, words: Tensor | None) -> Any:
    """What the layer gives on: (B, heads, Q, d) through its output projection, (B, Q, C); of a joint one the picture's and the words'."""
    out = out.transpose(1, 2).flatten(-2)
    if is_joint(attn, words):
        out, told = out[:, : residual.shape[1]], out[:, residual.shape[1] :]
        return attn.to_out[1](attn.to_out[0](out)), told if attn.context_pre_only else attn.to_add_out(told)
    out = attn.to_out[1](attn.to_out[0](out))
    return (out + residual if attn.residual_connection else out) / attn.rescale_output_factor


class Recorder:
    """Computes attention to words as usual and keeps its probabilities, (B, Q, L), averaged over heads; in joint layers those among the words.

    Attributes:
        before: What each layer did without it, and does where its maps are too large to be kept. over: whether no more is kept: in the
            backward pass layers may be computed again, in the same way.
    """

    def __init__(
        self, rows: int, largest: int = MAX_MAP_SIDE, before: Mapping[Any, Any] = MappingProxyType({})
    ) -> None:
        self.rows, self.largest, self.before, self.complete = rows, largest, before, False
        self.maps = dict[int, list[Tensor]]()

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **given: Any
    ) -> Any:
        cells, together = hidden_states.shape[1], is_joint(attn, encoder_hidden_states)
        side = math.isqrt(cells)
        kept = side**2 == cells and side <= self.largest
        if not kept and attn in self.before:
            return self.before[attn](attn, hidden_states, encoder_hidden_states, **given)
        q, k, v = project_qkv(attn, hidden_states, encoder_hidden_states)
        with torch.autocast(q.device.type, enabled=False):  # a softmax in bf16 is too coarse for a loss
            if together:
                out = F.scaled_dot_product_attention(q, k, v, scale=attn.scale)
                q, k = q[: self.rows, :, :cells], k[: self.rows, :, cells:]
            probs = (q.float() @ k.float().transpose(-1, -2) * attn.scale).softmax(-1)
            if not together:
                out = (probs @ v.float()).to(q.dtype)
        if kept:
            found = probs[: self.rows].mean(1)
            if not self.complete:
                self.maps.setdefault(side, []).append(found)
        return project_out(attn, out, hidden_states, encoder_hidden_states)

    def token_map(self, tokens: Tensor) -> Tensor:
        """Attention to the tokens (L,) boolean on the finest kept maps, largest value 1: (rows, s, s)."""
        side = max(self.maps)
        mean = torch.stack(self.maps[side]).mean(0)
        mean = mean[..., pad_mask(tokens, mean.shape[-1])].mean(-1)
        normalised: Tensor = (mean / mean.amax(1, keepdim=True).clamp_min(1e-8)).unflatten(1, (side, side))
        return normalised


@contextlib.contextmanager
def record_cross_attention(model: BaseModel, rows: int) -> Iterator[Recorder]:
    """Inside, attention of square pictures to words is recorded for the first `rows` rows of a batch.

    A backward pass that computes activations again must be inside too; `over` then says that the maps are complete.
    """
    before = dict(model.denoiser.attn_processors)
    plain = {
        model.denoiser.get_submodule(k.removesuffix(".processor")): v
        for k, v in before.items()
        if model.family.cross_attention in k
    }
    middle = model.resolution // model.vae_scale_factor // model.family.latent_multiple(model.denoiser.config)
    recorder = Recorder(rows, max(MAX_MAP_SIDE, middle), plain)  # SDXL's smallest maps have 32 cells a side
    model.denoiser.set_attn_processor(
        {k: recorder if model.family.cross_attention in k else v for k, v in before.items()}
    )
    try:
        yield recorder
    finally:
        model.denoiser.set_attn_processor(before)
