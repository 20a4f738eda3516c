"""Regional sampling: each object's LoRA and placeholder act only in the object's region; the base alone samples the rest.

- A LoRA on spatial features acts inside the region.
- A LoRA on text features acts at the object's token positions, and so does a LoRA on the text encoders (of imported objects).
- Cross-attention: only queries inside the region attend to the object's tokens.
- Joint attention: the object's tokens also attend to their region only, and other tokens do not attend to them.

Sources: regional sampling of Mix-of-Show (arXiv:2305.18292) and masked LoRA outputs of FreeFuse (arXiv:2510.23515). Soft regions are ours.
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
from objtune_cli.models.conditioning import Conditioning
from objtune_cli.numerics.masks import Box, region

BLOCKED = -1e4
"""Attention bias of a masked token; finite, so that no row becomes NaN."""

REGION_SOFTNESS = 0.06
"""Width over which a region falls from 1 to 0, fraction of the image."""


@dataclass(slots=True)
class PlacedObject:
    """One object in a scene.

    Attributes:
        weights: LoRA tensors by name.
        box: Its region, fractions of the image.
        tokens: Mask of its token positions in the prompt, (L,) boolean.
    """

    name: str
    weights: Mapping[str, Tensor]
    box: Box
    tokens: Tensor


def region_weights(boxes: Sequence[Box], size: tuple[int, int], edge: float = REGION_SOFTNESS) -> Tensor:
    """Weight of each box at each pixel, (N, h, w) in [0, 1].

    Args:
        boxes: From back to front; a box gets what the boxes in front of it leave.
        size: Height and width.
        edge: Width of the soft edge, fraction of the image.
    """
    rest = torch.ones(size)
    weights = []
    for box in reversed(boxes):
        mask = region(box, size, edge=max(edge, 1 / size[0]))
        weights.append(mask * rest)
        rest = rest * (1 - mask)
    return torch.stack(weights[::-1])


class RegionMasks:
    """Soft region masks of all objects at any resolution, cached by size."""

    def __init__(self, objects: list[PlacedObject], aspect: float = 1.0, edge: float = REGION_SOFTNESS) -> None:
        self.objects, self.aspect, self.edge = objects, aspect, edge
        self.cache: dict[tuple[int, int], Tensor] = {}

    def at(self, height: int, width: int) -> Tensor:
        """The masks (N, h, w); where regions overlap, later objects are in front."""
        if (height, width) not in self.cache:
            self.cache[height, width] = region_weights([p.box for p in self.objects], (height, width), self.edge)
        return self.cache[height, width]

    def flat(self, length: int) -> Tensor:
        """The masks (N, length) for features in row order; the image has `aspect` width over height."""
        height = round(math.sqrt(length / self.aspect))
        return self.at(height, length // height).flatten(1)


LoraFactors = tuple[Tensor, Tensor, Tensor | None]
"""Down and up projection of a layer's LoRA, and what it adds to the bias."""


def _lora_output(x: Tensor, down: Tensor, up: Tensor, bias: Tensor | None, module: nn.Module) -> Tensor:
    """The LoRA's output for the input x of a linear or convolution layer."""
    if isinstance(module, nn.Conv2d):
        return F.conv2d(F.conv2d(x, down, stride=module.stride, padding=module.padding), up, bias)
    product = x @ down.T @ up.T
    return product if bias is None else product + bias


def _regional_hook(model: BaseModel, on_words: bool, pairs: list[LoraFactors | None], regions: RegionMasks):
    """A forward hook that adds each object's LoRA output, weighted by its region.

    Args:
        on_words: Whether the layer works on text features; then the weight is 1 at the object's tokens and 0 elsewhere.
        pairs: LoRA of each object, None for an object without one.
    """

    def add(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        if model.adapters_disabled:
            return out
        x = args[0]
        for i, pair in enumerate(pairs):
            if pair is None:
                continue
            if x.ndim == 4:
                weight = regions.at(*out.shape[-2:])[i][None, None]
            elif on_words:
                # The first half of the batch is without prompt; only the second half holds the tokens.
                at_tokens = pad_mask(regions.objects[i].tokens, x.shape[1]).to(x.dtype)
                half = len(x) // 2
                weight = torch.stack([torch.zeros_like(at_tokens)] * half + [at_tokens] * (len(x) - half))[..., None]
            else:
                weight = regions.flat(x.shape[1])[i][None, :, None]
            out = out + weight.to(x) * _lora_output(x, *pair, module)
        return out

    return add


class RegionalAttention:
    """Attention to text in which only queries inside an object's region attend to its tokens."""

    def __init__(self, regions: RegionMasks, within: "BoundedAttention | None" = None) -> None:
        """`within`: bounds self-attention of the image in joint layers too."""
        self.regions, self.self_attention = regions, within
        self.cache: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def _tokens(self, length: int) -> Tensor:
        """Masks of the objects' tokens, (N, L) boolean."""
        return torch.stack([pad_mask(p.tokens, length) for p in self.regions.objects])

    def bias(self, length: int, like: Tensor, words: int = 0) -> Tensor:
        """Attention bias (Q, L): log of the object's weight at its own tokens, 0 at the others.

        Args:
            words: L, if it is larger than the number of tokens.
        """
        shares = self.regions.flat(length)
        tokens = self._tokens(words or len(self.regions.objects[0].tokens)).to(shares)
        logs = shares.clamp_min(math.exp(BLOCKED)).log().clamp_min(BLOCKED)
        return (logs.T @ tokens).to(like)

    def _joint(self, cells: int, words: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Attention biases without and with prompt, (Q, Q) each; queries and keys are the image's cells, then the tokens."""
        if (cells, words) not in self.cache:
            without = like.new_zeros(cells + words, cells + words)
            if self.self_attention is not None:
                without[:cells, :cells] = self.self_attention.bias(cells, like)
            prompted, tokens = without.clone(), self._tokens(words)
            prompted[:cells, cells:] = self.bias(cells, like, words)
            prompted[cells:, :cells] = prompted[:cells, cells:].T
            same = (tokens[:, :, None] & tokens[:, None]).any(0)
            prompted[cells:, cells:] = torch.where(tokens.any(0) & ~same, BLOCKED, 0.0).to(like)
            self.cache[cells, words] = without, prompted
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
    """Self-attention in which one object's region does not attend to another's (Bounded Attention, arXiv:2403.16990).

    Objects and background still attend to each other, for light and contact.
    """

    def __init__(self, regions: RegionMasks) -> None:
        self.regions = regions
        self.cache: dict[int, Tensor] = {}

    def bias(self, length: int, like: Tensor) -> Tensor:
        """Attention bias (Q, K): log of 1 minus the weight with which query and key lie in different objects."""
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
def regional_sampling(
    model: BaseModel,
    objects: list[PlacedObject],
    edge: float = REGION_SOFTNESS,
    *,
    aspect: float = 1.0,
    bounded: bool = False,
) -> Iterator[RegionMasks]:
    """Let each object's LoRA and tokens act in the object's region only.

    The batch must be half without prompt and half with it, as in classifier-free guidance.

    Args:
        objects: From back to front.
        edge: Softness of the regions, fraction of the image.
        aspect: Width over height of the images.
        bounded: Whether self-attention between the regions of different objects is masked.

    Raises:
        IncompatibleError: A LoRA was trained for layers that this base does not have.
    """
    regions = RegionMasks(objects, aspect, edge)
    layers = _find_layers(
        model.denoiser,
        [
            {k.removeprefix(DENOISER_PREFIX): v for k, v in p.weights.items() if k.startswith(DENOISER_PREFIX)}
            for p in objects
        ],
    )
    processors = dict(model.denoiser.attn_processors)
    handles = []
    try:
        for name, layer in layers.items():
            pairs = [_lora_factors(p.weights, f"{DENOISER_PREFIX}{name}", layer) for p in objects]
            handles.append(
                layer.register_forward_hook(
                    _regional_hook(model, model.family.acts_on_text_tokens(name), pairs, regions)
                )
            )
        within = BoundedAttention(regions) if bounded else None
        across, family = RegionalAttention(regions, within), model.family
        own = {
            k: across if family.cross_attention in k else within if within and family.self_attention in k else v
            for k, v in processors.items()
        }
        model.denoiser.set_attn_processor(own)
        yield regions
    finally:
        for handle in handles:
            handle.remove()
        model.denoiser.set_attn_processor(processors)


@contextlib.contextmanager
def single_lora(model: BaseModel, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let one object's LoRA act on the whole image and, if it has such layers, on the text encoders.

    Raises:
        IncompatibleError: The LoRA was trained for layers that this base does not have.
    """
    handles = []
    try:
        for network, own in by_network(model, weights):
            for name, layer in _find_layers(network, [own]).items():
                pair = _lora_factors(own, name, layer)
                if pair is not None:
                    handles.append(layer.register_forward_hook(partial(_add_everywhere, model, pair)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def encode_with_object_loras(
    model: BaseModel, text: str, objects: Sequence[PlacedObject], condition: Conditioning | None = None
) -> Conditioning | None:
    """Conditioning in which each object's tokens are encoded with the object's LoRA in the text encoders (ours).

    Args:
        text: The prompt, placeholders written as tokens.
        condition: Conditioning of all other tokens, one sample; None: the base's encoding.

    Returns:
        Conditioning of one sample; `condition` itself if no object has layers of a text encoder.

    Raises:
        IncompatibleError: A LoRA was trained for layers that this base does not have.
    """
    for item in objects:
        if not has_text_encoder_layers(item.weights):
            continue
        condition = model.encode_prompt([text]) if condition is None else condition
        with single_lora(model, item.weights):
            own = model.encode_prompt([text])
        condition = condition.with_tokens(own, pad_mask(item.tokens, own.sequence.shape[1]))
    return condition


def _add_everywhere(
    model: BaseModel, pair: LoraFactors, module: nn.Module, args: tuple[Tensor, ...], out: Tensor
) -> Tensor:
    return out if model.adapters_disabled else out + _lora_output(args[0], *pair, module)


def _find_layers(network: nn.Module, adapters: Sequence[Mapping[str, Tensor]]) -> dict[str, nn.Module]:
    """The layers of a network that the LoRAs have weights for, by name."""
    modules = dict(network.named_modules())
    names = sorted({key.rsplit(".lora_", 1)[0] for weights in adapters for key in weights})
    missing = [name for name in names if name not in modules]
    if missing:
        raise IncompatibleError(
            f"an adapter was trained on another base: no layer {missing[0]} here", "use the base it names"
        )
    return {name: modules[name] for name in names}


def _lora_factors(weights: Mapping[str, Tensor], name: str, layer: Any) -> LoraFactors | None:
    down, up = (weights.get(f"{name}.lora_{side}.weight") for side in "AB")
    bias = weights.get(f"{name}.lora_B.bias")
    if down is None or up is None:
        return None
    return down.to(layer.weight), up.to(layer.weight), None if bias is None else bias.to(layer.weight)
