"""`compose`: separately trained objects in one picture, each LoRA and each token only in its region.

Where each part acts: LoRA on spatial features inside the object's region; LoRA on the keys and values
of cross-attention at the object's own token positions; a token is seen only from inside its region;
the base alone draws the rest. Sources: regional sampling of Mix-of-Show (arXiv:2305.18292), masked
LoRA outputs of FreeFuse (arXiv:2510.23515); soft regions for both are ours.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objtune_cli.errors import IncompatibleError
from objtune_cli.models.adapter import PREFIX
from objtune_cli.models.attention import heads, merged
from objtune_cli.models.stack import Stack
from objtune_cli.numerics.masks import Box, region

BLOCKED = -1e4
"""Attention bias where a token must not be seen; finite, so that no row becomes NaN."""

EDGE = 0.06
"""Width over which a region falls from 1 to 0, fraction of the frame."""


@dataclass(slots=True)
class Placed:
    """One object in a scene: LoRA tensors by name, its region, and where its tokens stand (L,)."""

    name: str
    weights: Mapping[str, Tensor]
    box: Box
    tokens: Tensor


class Regions:
    """Soft region masks of all objects at any resolution, computed once per size."""

    def __init__(self, placed: list[Placed], aspect: float = 1.0, edge: float = EDGE) -> None:
        self.placed, self.aspect, self.edge = placed, aspect, edge
        self.cache: dict[tuple[int, int], Tensor] = {}
        self.acts = True  # whether LoRA and tokens act at this noise level
        self.plain: Tensor | None = None  # what is said instead where they do not

    def at(self, height: int, width: int) -> Tensor:
        """(N, h, w); where regions overlap, later objects are in front."""
        if (height, width) not in self.cache:
            own = [region(p.box, (height, width), edge=max(self.edge, 1 / height)) for p in self.placed]
            rest = torch.ones(height, width)
            shares = []
            for mask in reversed(own):
                shares.append(mask * rest)
                rest = rest * (1 - mask)
            self.cache[height, width] = torch.stack(shares[::-1])
        return self.cache[height, width]

    def flat(self, length: int) -> Tensor:
        """(N, length) for features in row order; the frame has `aspect` width over height."""
        height = round(math.sqrt(length / self.aspect))
        return self.at(height, length // height).flatten(1)


def _delta(x: Tensor, down: Tensor, up: Tensor, module: nn.Module) -> Tensor:
    """The LoRA's own output for input x of a linear or convolution layer."""
    if isinstance(module, nn.Conv2d):
        return F.conv2d(F.conv2d(x, down, stride=module.stride, padding=module.padding), up)
    return x @ down.T @ up.T


def _hook(name: str, pairs: list[tuple[Tensor, Tensor] | None], regions: Regions):
    """Adds each object's delta to the layer's output, weighted by where the object may act."""

    def add(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        x = args[0]
        if not regions.acts:
            return out
        for i, pair in enumerate(pairs):
            if pair is None:
                continue
            if x.ndim == 4:
                weight = regions.at(*out.shape[-2:])[i][None, None]
            elif ".attn2.to_k" in name or ".attn2.to_v" in name:
                # Rows: without prompt first, then with it; only the latter holds the tokens.
                own = regions.placed[i].tokens.to(x.dtype)
                half = len(x) // 2
                weight = torch.stack([torch.zeros_like(own)] * half + [own] * (len(x) - half))[..., None]
            else:
                weight = regions.flat(x.shape[1])[i][None, :, None]
            out = out + weight.to(x) * _delta(x, *pair, module)
        return out

    return add


class RegionalAttention:
    """Cross-attention in which an object's tokens are seen only from inside its region."""

    def __init__(self, regions: Regions) -> None:
        self.regions = regions

    def bias(self, length: int, like: Tensor) -> Tensor:
        """(Q, L): log of the object's share at its own tokens, 0 at the others."""
        shares = self.regions.flat(length)
        tokens = torch.stack([p.tokens for p in self.regions.placed]).to(shares)
        logs = shares.clamp_min(math.exp(BLOCKED)).log().clamp_min(BLOCKED)
        return (logs.T @ tokens).to(like)

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Tensor:
        q, k, v = heads(attn, hidden_states, encoder_hidden_states)
        bias = self.bias(hidden_states.shape[1], q)
        if not self.regions.acts and self.regions.plain is not None:
            bias = torch.zeros_like(bias)
        half = len(q) // 2
        full = torch.stack([torch.zeros_like(bias)] * half + [bias] * (len(q) - half))[:, None]
        return merged(attn, F.scaled_dot_product_attention(q, k, v, attn_mask=full), hidden_states)


class BoundedAttention:
    """Self-attention in which one object's region does not look into another's (Bounded Attention, arXiv:2403.16990).

    Between an object and the rest everything stays open: light and contact come from there.
    """

    def __init__(self, regions: Regions) -> None:
        self.regions = regions
        self.cache: dict[int, Tensor] = {}

    def bias(self, length: int, like: Tensor) -> Tensor:
        """(Q, K): log of 1 minus the share that query and key have in different objects."""
        if length not in self.cache:
            shares = self.regions.flat(length)
            together = shares.sum(0)
            apart = together[:, None] * together[None] - shares.T @ shares
            self.cache[length] = (1 - apart).clamp_min(math.exp(BLOCKED)).log().clamp_min(BLOCKED).to(like)
        return self.cache[length]

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Tensor:
        q, k, v = heads(attn, hidden_states, encoder_hidden_states)
        bias = self.bias(hidden_states.shape[1], q)[None, None]
        return merged(attn, F.scaled_dot_product_attention(q, k, v, attn_mask=bias), hidden_states)


@contextlib.contextmanager
def regional(
    stack: Stack, placed: list[Placed], edge: float = EDGE, *, aspect: float = 1.0, plain: Tensor | None = None, below: float = 1.0, bounded: bool = False
) -> Iterator[Regions]:
    """Inside, the denoiser draws each object in its region; afterwards it is as before.

    Args:
        placed: From the back to the front. edge: Softness of the regions, fraction of the frame. aspect: Width over height of the pictures.
        plain: The scene's prompt with class words in place of the tokens, encoded (1, L, d). below: Noise level below which the objects
            are themselves, fraction of the whole: above it, where places are decided, the base alone lays the plain scene out.
        bounded: Whether self-attention between the regions of different objects is closed.

    Raises:
        IncompatibleError: A LoRA was made for layers that this base does not have.

    The batch must be half without prompt, half with it, as guidance makes it.
    """
    regions = Regions(placed, aspect, edge)
    regions.plain = plain
    modules = dict(stack.unet.named_modules())
    names = sorted({key.removeprefix(PREFIX).rsplit(".lora_", 1)[0] for p in placed for key in p.weights if key.startswith(PREFIX)})
    missing = [name for name in names if name not in modules]
    if missing:
        raise IncompatibleError(f"an adapter was trained on another base: no layer {missing[0]} here", "use the base it names")
    processors = dict(stack.unet.attn_processors)
    handles = []
    try:
        for name in names:
            pairs = [_pair(stack, p, name) for p in placed]
            handles.append(modules[name].register_forward_hook(_hook(name, pairs, regions)))
        across, within = RegionalAttention(regions), BoundedAttention(regions)
        own = {k: across if ".attn2." in k else within if bounded and ".attn1." in k else v for k, v in processors.items()}
        stack.unet.set_attn_processor(own)
        handles.append(stack.unet.register_forward_pre_hook(_level(stack, regions, below * len(stack.alpha_bar)), with_kwargs=True))
        yield regions
    finally:
        for handle in handles:
            handle.remove()
        stack.unet.set_attn_processor(processors)


def _level(stack: Stack, regions: Regions, below: float) -> Any:
    """Before each pass: whether the objects are themselves at its noise level, and the plain scene's words where they are not."""

    def tell(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        t = args[1] if len(args) > 1 else kwargs["timestep"]
        regions.acts = bool(torch.as_tensor(t).float().max() <= below)
        if regions.acts or regions.plain is None:
            return None
        words = kwargs["encoder_hidden_states"].clone()
        words[len(words) // 2 :] = stack.family.words(regions.plain).to(words)
        told = dict(kwargs.get("added_cond_kwargs") or {})
        if "text_embeds" in told:
            pooled = told["text_embeds"].clone()
            pooled[len(pooled) // 2 :] = stack.family.extras(stack, regions.plain, 0, 0)["text_embeds"].to(pooled)
            told["text_embeds"] = pooled
        return args, kwargs | {"encoder_hidden_states": words} | ({"added_cond_kwargs": told} if told else {})

    return tell


def _pair(stack: Stack, placed: Placed, name: str) -> tuple[Tensor, Tensor] | None:
    down, up = (placed.weights.get(f"{PREFIX}{name}.lora_{side}.weight") for side in "AB")
    if down is None or up is None:
        return None
    return down.to(stack.device, stack.dtype), up.to(stack.device, stack.dtype)
