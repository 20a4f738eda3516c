"""Half precision on processors that have it: bf16 for products, float32 for group norms and softmax."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objtune_cli.models.attention import (
    get_scale,
    is_single_stream,
    project_complex,
    project_out,
    project_qkv,
    project_single_stream,
    project_single_stream_out,
    rotates_complex,
    widen_mask,
)


def processor_has_bf16() -> bool:
    """Whether this processor multiplies bf16 itself (AVX512-BF16, AMX); others emulate it, slower than float32."""
    own = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.backends.mkldnn.is_available() and own)


class FloatAttention:
    """Attention whose softmax runs in float32: torch's bf16 kernel is ten times slower backward on a processor."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        **_: Any,
    ) -> Any:
        q, k, v = project_qkv(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
        return project_out(attn, _attend(attn, q, k, v), hidden_states, encoder_hidden_states)


class FloatSingleStreamAttention:
    """The same for single-stream layers."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        assert image_rotary_emb is not None
        q, k, v, feed_forward = project_single_stream(attn, hidden_states, image_rotary_emb)
        return project_single_stream_out(attn, _attend(attn, q, k, v), feed_forward)


class FloatOneStreamAttention:
    """The same for layers with complex rotary positions."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        freqs_cis: Tensor | None = None,
    ) -> Any:
        assert freqs_cis is not None
        q, k, v = project_complex(attn, hidden_states, freqs_cis)
        return project_out(attn, _attend(attn, q, k, v, widen_mask(attention_mask)), hidden_states, None)


def _attend(attn: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention in float32, in the number format of the queries."""
    mask = mask if mask is None or mask.dtype == torch.bool else mask.float()
    with torch.autocast(q.device.type, enabled=False):
        out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, scale=get_scale(attn))
    return out.to(q.dtype)


class FloatGroupNorm(nn.GroupNorm):
    """Group norm in float32 on any input; the result is float32."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)


def run_norms_in_float32(unet: Any) -> None:
    """Let the denoiser's softmax and group norms run in float32 under bf16 autocast on a processor."""
    unet.set_attn_processor(
        {
            name: FloatSingleStreamAttention()
            if is_single_stream(unet.get_submodule(name.removesuffix(".processor")))
            else FloatOneStreamAttention()
            if rotates_complex(processor)
            else FloatAttention()
            for name, processor in unet.attn_processors.items()
        }
    )
    for module in unet.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = FloatGroupNorm


def use_bf16_matmuls(unet: Any) -> None:
    """Keep the weights of products in bf16 and multiply in it; the denoiser takes and gives float32 as before.

    Layers added later (LoRA) keep float32 weights and are multiplied in bf16 too.
    """
    run_norms_in_float32(unet)
    for module in unet.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(torch.bfloat16)
    inside = unet.forward

    def forward(*args: Any, **named: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            out = inside(*args, **named)
        if isinstance(out, tuple):  # what a pipeline asks for
            return (out[0].float(), *out[1:])
        out.sample = out.sample.float()
        return out

    unet.forward = forward
