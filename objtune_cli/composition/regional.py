"""`compose`: separately trained objects in one picture, each LoRA and each token only in its region.

Where each part acts: LoRA on spatial features inside the object's region; LoRA on what is made of words
at the object's own token positions; LoRA on the text encoders (of imported objects) in what is said at these;
a token is seen only from inside its region, and where words look too, it looks at its region alone and no other
word hears it; the base alone draws the rest. Sources: regional sampling of Mix-of-Show (arXiv:2305.18292), masked
LoRA outputs of FreeFuse (arXiv:2510.23515); soft regions for both are ours.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objtune_cli.errors import IncompatibleError
from objtune_cli.lora.layers import DENOISER_PREFIX, by_network, has_text_encoder_layers
from objtune_cli.models.attention import is_joint, pad_mask, project_out, project_qkv
from objtune_cli.models.base_model import BaseModel
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


def shares(boxes: Sequence[Box], size: tuple[int, int], edge: float = EDGE) -> Tensor:
    """How much of each pixel belongs to each of the boxes, (N, h, w); from the back to the front: what lies behind another has the rest."""
    rest = torch.ones(size)
    found = []
    for box in reversed(boxes):
        mask = region(box, size, edge=max(edge, 1 / size[0]))
        found.append(mask * rest)
        rest = rest * (1 - mask)
    return torch.stack(found[::-1])


class Regions:
    """Soft region masks of all objects at any resolution, computed once per size."""

    def __init__(self, placed: list[Placed], aspect: float = 1.0, edge: float = EDGE) -> None:
        self.placed, self.aspect, self.edge = placed, aspect, edge
        self.cache: dict[tuple[int, int], Tensor] = {}

    def at(self, height: int, width: int) -> Tensor:
        """(N, h, w); where regions overlap, later objects are in front."""
        if (height, width) not in self.cache:
            self.cache[height, width] = shares([p.box for p in self.placed], (height, width), self.edge)
        return self.cache[height, width]

    def flat(self, length: int) -> Tensor:
        """(N, length) for features in row order; the frame has `aspect` width over height."""
        height = round(math.sqrt(length / self.aspect))
        return self.at(height, length // height).flatten(1)


Factors = tuple[Tensor, Tensor, Tensor | None]
"""Down and up of a layer, and what its LoRA adds to the bias."""


def _delta(x: Tensor, down: Tensor, up: Tensor, bias: Tensor | None, module: nn.Module) -> Tensor:
    """The LoRA's own output for input x of a linear or convolution layer."""
    if isinstance(module, nn.Conv2d):
        return F.conv2d(F.conv2d(x, down, stride=module.stride, padding=module.padding), up, bias)
    product = x @ down.T @ up.T
    return product if bias is None else product + bias


def _hook(model: BaseModel, on_words: bool, pairs: list[Factors | None], regions: Regions):
    """Adds each object's delta to the layer's output, weighted by where the object may act; `on_words`: at tokens, not at places."""

    def add(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        if model.asleep:
            return out
        x = args[0]
        for i, pair in enumerate(pairs):
            if pair is None:
                continue
            if x.ndim == 4:
                weight = regions.at(*out.shape[-2:])[i][None, None]
            elif on_words:
                # Rows: without prompt first, then with it; only the latter holds the tokens.
                own = pad_mask(regions.placed[i].tokens, x.shape[1]).to(x.dtype)
                half = len(x) // 2
                weight = torch.stack([torch.zeros_like(own)] * half + [own] * (len(x) - half))[..., None]
            else:
                weight = regions.flat(x.shape[1])[i][None, :, None]
            out = out + weight.to(x) * _delta(x, *pair, module)
        return out

    return add


class RegionalAttention:
    """Attention to words in which an object's tokens are seen only from inside its region."""

    def __init__(self, regions: Regions, within: "BoundedAttention | None" = None) -> None:
        """`within`: also bounds what the picture sees of itself in joint layers."""
        self.regions, self.within = regions, within
        self.cache: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def _tokens(self, length: int) -> Tensor:
        """(N, L) boolean."""
        return torch.stack([pad_mask(p.tokens, length) for p in self.regions.placed])

    def bias(self, length: int, like: Tensor, words: int = 0) -> Tensor:
        """(Q, L): log of the object's share at its own tokens, 0 at the others; `words`: L, if there are more rows than tokens."""
        shares = self.regions.flat(length)
        tokens = self._tokens(words or len(self.regions.placed[0].tokens)).to(shares)
        logs = shares.clamp_min(math.exp(BLOCKED)).log().clamp_min(BLOCKED)
        return (logs.T @ tokens).to(like)

    def _joint(self, cells: int, words: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """(Q, Q) each, without prompt and with it, for queries and keys that are the picture's and then the words'."""
        if (cells, words) not in self.cache:
            without = like.new_zeros(cells + words, cells + words)
            if self.within is not None:
                without[:cells, :cells] = self.within.bias(cells, like)
            told, tokens = without.clone(), self._tokens(words)
            told[:cells, cells:] = self.bias(cells, like, words)
            told[cells:, :cells] = told[:cells, cells:].T
            same = (tokens[:, :, None] & tokens[:, None]).any(0)
            told[cells:, cells:] = torch.where(tokens.any(0) & ~same, BLOCKED, 0.0).to(like)
            self.cache[cells, words] = without, told
        return self.cache[cells, words]

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Any:
        q, k, v = project_qkv(attn, hidden_states, encoder_hidden_states)
        cells, half = hidden_states.shape[1], len(q) // 2
        if encoder_hidden_states is not None and is_joint(attn, encoder_hidden_states):
            without, bias = self._joint(cells, encoder_hidden_states.shape[1], q)
        else:
            bias = self.bias(cells, q, k.shape[2])
            without = torch.zeros_like(bias)
        full = torch.stack([without] * half + [bias] * (len(q) - half))[:, None]
        return project_out(
            attn, F.scaled_dot_product_attention(q, k, v, attn_mask=full), hidden_states, encoder_hidden_states
        )


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

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        q, k, v = project_qkv(attn, hidden_states, encoder_hidden_states)
        bias = self.bias(hidden_states.shape[1], q)[None, None]
        return project_out(
            attn, F.scaled_dot_product_attention(q, k, v, attn_mask=bias), hidden_states, encoder_hidden_states
        )


@contextlib.contextmanager
def regional(
    model: BaseModel, placed: list[Placed], edge: float = EDGE, *, aspect: float = 1.0, bounded: bool = False
) -> Iterator[Regions]:
    """Inside, the denoiser draws each object in its region; afterwards it is as before.

    Args:
        placed: From the back to the front. edge: Softness of the regions, fraction of the frame. aspect: Width over height of the pictures.
        bounded: Whether self-attention between the regions of different objects is closed.

    Raises:
        IncompatibleError: A LoRA was made for layers that this base does not have.

    The batch must be half without prompt, half with it, as guidance makes it.
    """
    regions = Regions(placed, aspect, edge)
    layers = _layers(
        model.denoiser,
        [
            {k.removeprefix(DENOISER_PREFIX): v for k, v in p.weights.items() if k.startswith(DENOISER_PREFIX)}
            for p in placed
        ],
    )
    processors = dict(model.denoiser.attn_processors)
    handles = []
    try:
        for name, layer in layers.items():
            pairs = [_pair(p.weights, f"{DENOISER_PREFIX}{name}", layer) for p in placed]
            handles.append(layer.register_forward_hook(_hook(model, model.family.on_words(name), pairs, regions)))
        within = BoundedAttention(regions) if bounded else None
        across, family = RegionalAttention(regions, within), model.family
        own = {
            k: across if family.across in k else within if within and family.within in k else v
            for k, v in processors.items()
        }
        model.denoiser.set_attn_processor(own)
        yield regions
    finally:
        for handle in handles:
            handle.remove()
        model.denoiser.set_attn_processor(processors)


@contextlib.contextmanager
def alone(model: BaseModel, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, one object's LoRA acts on all of the picture and, if it has layers there, on all that is said; afterwards the base is as before.

    Raises:
        IncompatibleError: The LoRA was made for layers that this base does not have.
    """
    handles = []
    try:
        for network, own in by_network(model, weights):
            for name, layer in _layers(network, [own]).items():
                pair = _pair(own, name, layer)
                if pair is not None:
                    handles.append(layer.register_forward_hook(partial(_everywhere, model, pair)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def spoken(model: BaseModel, text: str, placed: Sequence[Placed], condition: Tensor | None = None) -> Tensor | None:
    """What the denoiser is told, (1, rows, d), with each object's own tokens as they are said with its LoRA in the text encoders (ours).

    Args:
        text: The prompt with the added words written as tokens. condition: what all other rows are; None: the base's encoding.

    Returns:
        `condition` itself where no object has layers of a text encoder.

    Raises:
        IncompatibleError: A LoRA was made for layers that this base does not have.
    """
    for item in placed:
        if not has_text_encoder_layers(item.weights):
            continue
        condition = model.encode([text]) if condition is None else condition
        with alone(model, item.weights):
            own = model.encode([text])
        condition = torch.where(pad_mask(item.tokens, own.shape[1])[:, None], own, condition)
    return condition


def _everywhere(model: BaseModel, pair: Factors, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    return out if model.asleep else out + _delta(args[0], *pair, module)


def _layers(network: nn.Module, adapters: Sequence[Mapping[str, Tensor]]) -> dict[str, nn.Module]:
    """The layers of a network that LoRAs act on, by name."""
    modules = dict(network.named_modules())
    names = sorted({key.rsplit(".lora_", 1)[0] for weights in adapters for key in weights})
    missing = [name for name in names if name not in modules]
    if missing:
        raise IncompatibleError(
            f"an adapter was trained on another base: no layer {missing[0]} here", "use the base it names"
        )
    return {name: modules[name] for name in names}


def _pair(weights: Mapping[str, Tensor], name: str, layer: Any) -> Factors | None:
    down, up = (weights.get(f"{name}.lora_{side}.weight") for side in "AB")
    bias = weights.get(f"{name}.lora_B.bias")
    if down is None or up is None:
        return None
    return down.to(layer.weight), up.to(layer.weight), None if bias is None else bias.to(layer.weight)
