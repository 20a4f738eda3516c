"""The parts of the denoiser's attention layers, and attention maps of tokens with gradients."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from objtune_cli.models.base_model import BaseModel

MAX_MAP_SIDE = 16
"""Side of the largest maps that are recorded; finer maps follow edges, not objects (Break-A-Scene, arXiv:2305.16311)."""
FILLED_UP = 32
"""Image tokens of layers of one stream are filled up to a multiple of this number (Z-Image)."""


def is_joint(attn: Any, words: Tensor | None) -> bool:
    """Whether image and text tokens are both queries and keys, as in MMDiT (arXiv:2403.03206); else text tokens are keys only."""
    return words is not None and getattr(attn, "add_k_proj", None) is not None


def pad_mask(tokens: Tensor, length: int) -> Tensor:
    """Pad a token mask (L,) with False to `length` rows; text features that are repeated have repeated masks."""
    if length % len(tokens) == 0:
        return tokens.repeat(length // len(tokens))
    return F.pad(tokens, (0, length - len(tokens)))


def rotates_complex(processor: Any) -> bool:
    """Whether a processor multiplies queries and keys by complex rotary positions (Z-Image)."""
    return type(processor).__name__ == "ZSingleStreamAttnProcessor"


def project_complex(attn: Any, hidden_states: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, heads, length, d) of a layer with complex rotary positions (B, length, d / 2)."""
    q, k, v = project_qkv(attn, hidden_states, None)
    q, k = (
        torch.view_as_real(torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) * freqs_cis[:, None])
        .flatten(3)
        .to(x.dtype)
        for x in (q, k)
    )
    return q, k, v


def widen_mask(mask: Tensor | None) -> Tensor | None:
    """A mask of keys (B, length) as one of queries and keys; others stay."""
    return mask[:, None, None] if mask is not None and mask.ndim == 2 else mask


def is_single_stream(attn: Any) -> bool:
    """Whether a layer has one projection for image and text tokens, and the feed-forward network beside the attention (FLUX)."""
    return hasattr(attn, "to_qkv_mlp_proj")


def get_scale(attn: Any) -> float:
    """The factor of the products of queries and keys."""
    return float(attn.scale if hasattr(attn, "scale") else attn.head_dim**-0.5)


def project_qkv(
    attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None, rotary: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of an attention layer, each (B, heads, length, d); in joint layers those of text follow those of the image.

    Args:
        rotary: Cosines and sines of rotary positions, (length, d) each, those of text before those of the image.
    """
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
    if rotary is not None and words is not None:
        count = words.shape[1]
        own = _rotate(own, tuple(part[count:] for part in rotary))
        more = _rotate(more, tuple(part[:count] for part in rotary))
    q, k, v = (torch.cat(pair, dim=2) for pair in zip(own, more, strict=True))
    return q, k, v


def project_single_stream(
    attn: Any, hidden_states: Tensor, rotary: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, heads, length, d) of a single-stream layer, and the input of its feed-forward network."""
    qkv = 3 * attn.inner_dim
    projected = attn.to_qkv_mlp_proj(hidden_states)
    parts = _split_heads(attn, projected[..., :qkv].chunk(3, dim=-1), attn.norm_q, attn.norm_k)
    return *_rotate(parts, rotary), projected[..., qkv:]


def project_single_stream_out(attn: Any, out: Tensor, feed_forward: Tensor) -> Tensor:
    """The output of a single-stream layer from attention (B, heads, Q, d) and the input of its feed-forward network."""
    output: Tensor = attn.to_out(torch.cat([out.transpose(1, 2).flatten(-2), attn.mlp_act_fn(feed_forward)], dim=-1))
    return output


def _rotate(parts: tuple[Tensor, Tensor, Tensor], rotary: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate queries and keys by their positions."""
    from diffusers.models.embeddings import apply_rotary_emb

    rotate: Any = apply_rotary_emb
    q, k, v = parts
    return rotate(q, rotary, sequence_dim=2), rotate(k, rotary, sequence_dim=2), v


def _split_heads(
    attn: Any, projected: tuple[Tensor, Tensor, Tensor], norm_q: Any, norm_k: Any
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in projected)
    return q if norm_q is None else norm_q(q), k if norm_k is None else norm_k(k), v


def project_out(attn: Any, out: Tensor, residual: Tensor, words: Tensor | None) -> Any:
    """The layer's output (B, Q, C) from attention (B, heads, Q, d); in joint layers a pair, of the image and of the text."""
    out = out.transpose(1, 2).flatten(-2)
    if is_joint(attn, words):
        out, text_out = out[:, : residual.shape[1]], out[:, residual.shape[1] :]
        return attn.to_out[1](attn.to_out[0](out)), text_out if getattr(
            attn, "context_pre_only", False
        ) else attn.to_add_out(text_out)
    out = attn.to_out[1](attn.to_out[0](out))
    return (out + residual if attn.residual_connection else out) / attn.rescale_output_factor


class Recorder:
    """Attention processor that records the probabilities of attention to text, (B, Q, L), averaged over heads.

    In joint layers the softmax is over the text tokens.

    Attributes:
        before: Each layer's former processor, which still computes layers whose maps are too large.
        image_tokens: Number of image tokens of the call, for layers of one stream.
        complete: Whether recording has ended; a backward pass may compute layers again, in the same way.
    """

    def __init__(
        self,
        rows: int,
        largest: int = MAX_MAP_SIDE,
        before: Mapping[Any, Any] = MappingProxyType({}),
        image_tokens: Callable[[], int] = lambda: 0,
    ) -> None:
        self.rows, self.largest, self.before, self.complete = rows, largest, before, False
        self.image_tokens = image_tokens
        self.maps = dict[int, list[Tensor]]()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        freqs_cis: Tensor | None = None,  # by name, because diffusers passes no other arguments on
        **kwargs: Any,
    ) -> Any:
        if freqs_cis is not None:
            return self._record_one_stream(attn, hidden_states, kwargs.get("attention_mask"), freqs_cis)
        cells, joint = hidden_states.shape[1], is_joint(attn, encoder_hidden_states)
        side = math.isqrt(cells)
        is_recorded = side**2 == cells and side <= self.largest
        if not is_recorded and attn in self.before:
            return self.before[attn](attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        rotary = args[1] if len(args) > 1 else None  # behind the attention mask
        q, k, v = project_qkv(attn, hidden_states, encoder_hidden_states, rotary)
        with torch.autocast(q.device.type, enabled=False):  # a softmax in bf16 is too coarse for a loss
            if joint:
                out = F.scaled_dot_product_attention(q, k, v, scale=get_scale(attn))
                q, k = q[: self.rows, :, :cells], k[: self.rows, :, cells:]
            probs = (q.float() @ k.float().transpose(-1, -2) * get_scale(attn)).softmax(-1)
            if not joint:
                out = (probs @ v.float()).to(q.dtype)
        if is_recorded and not self.complete:
            self.maps.setdefault(side, []).append(probs[: self.rows].mean(1))
        return project_out(attn, out, hidden_states, encoder_hidden_states)

    def _record_one_stream(self, attn: Any, hidden_states: Tensor, mask: Tensor | None, freqs_cis: Tensor) -> Any:
        """A layer over image tokens, tokens that fill up the image, and text tokens, in this order."""
        cells = self.image_tokens()
        side = math.isqrt(cells)
        if side**2 != cells or side > self.largest:
            return self.before[attn](attn, hidden_states, attention_mask=mask, freqs_cis=freqs_cis)
        q, k, v = project_complex(attn, hidden_states, freqs_cis)
        wide = widen_mask(mask)
        text = slice(cells + -cells % FILLED_UP, None)
        with torch.autocast(q.device.type, enabled=False):
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=wide, scale=get_scale(attn))
            logits = q[: self.rows, :, :cells].float() @ k[: self.rows, :, text].float().transpose(-1, -2)
            logits = logits * get_scale(attn)
            if mask is not None and mask.ndim == 2:
                logits = logits.masked_fill(~mask[: self.rows, None, None, text], -1e4)
        if not self.complete:
            self.maps.setdefault(side, []).append(logits.softmax(-1).mean(1))
        return project_out(attn, out, hidden_states, None)

    def token_map(self, tokens: Tensor) -> Tensor:
        """Attention to the tokens of a mask (L,) on the finest recorded maps, (rows, s, s), with maximum 1."""
        side = max(self.maps)
        mean = torch.stack(self.maps[side]).mean(0)
        mean = mean[..., pad_mask(tokens, mean.shape[-1])].mean(-1)
        normalised: Tensor = (mean / mean.amax(1, keepdim=True).clamp_min(1e-8)).unflatten(1, (side, side))
        return normalised


@contextlib.contextmanager
def record_cross_attention(model: BaseModel, rows: int) -> Iterator[Recorder]:
    """Record the attention of square images to text for the first `rows` samples of a batch.

    A backward pass that computes activations again must be inside too; set `complete` before it.
    """
    before = dict(model.denoiser.attn_processors)
    plain = {
        model.denoiser.get_submodule(k.removesuffix(".processor")): v
        for k, v in before.items()
        if model.family.is_cross_attention(k)
    }
    middle = model.resolution // model.vae_scale_factor // model.family.latent_multiple(model.denoiser.config)
    recorder = Recorder(
        rows, max(MAX_MAP_SIDE, middle), plain, lambda: model.denoiser.image_tokens
    )  # SDXL's smallest maps have 32 cells a side
    model.denoiser.set_attn_processor(
        {k: recorder if model.family.is_cross_attention(k) else v for k, v in before.items()}
    )
    try:
        yield recorder
    finally:
        model.denoiser.set_attn_processor(before)
