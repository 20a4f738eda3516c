"""Regional sampling: each object's LoRA and placeholder act only in the object's region; the base alone samples the rest.

- A LoRA on spatial features acts inside the region.
- A LoRA on text features acts at the object's token positions, and so does a LoRA on the text encoders (of imported objects).
- Cross-attention: only queries inside the region attend to the object's tokens.
- Joint attention: the object's tokens also attend to their region only, and other tokens do not attend to them.

Sources: regional sampling of Mix-of-Show (arXiv:2305.18292) and masked LoRA outputs of FreeFuse (arXiv:2510.23515). Soft regions are ours.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from objtune_cli.composition.region_masks import REGION_SOFTNESS, PlacedObject, RegionMasks
from objtune_cli.composition.regional_attention import BoundedAttention, RegionalAttention
from objtune_cli.lora.forward_hooks import LoraFactors, find_layers, lora_factors, lora_output
from objtune_cli.lora.layers import DENOISER_PREFIX
from objtune_cli.models.attention import pad_mask
from objtune_cli.models.base_model import BaseModel


def _regional_hook(
    model: BaseModel, layer: str, pairs: list[LoraFactors | None], regions: RegionMasks
) -> Callable[..., Tensor]:
    """A forward hook that adds each object's LoRA output, weighted by its region.

    Args:
        layer: Its name. On text features the weight is 1 at the object's tokens and 0 elsewhere.
        pairs: LoRA of each object, None for an object without one.
    """
    on_text, on_all = model.family.acts_on_text_tokens(layer), model.family.acts_on_all_tokens(layer)

    def weigh_tokens(i: int, x: Tensor, length: int) -> Tensor:
        """Weights of text features, (B, length): the first half of the batch is without prompt, and holds no tokens."""
        at_tokens = pad_mask(regions.objects[i].tokens, length).to(x.dtype)
        half = len(x) // 2
        return torch.stack([torch.zeros_like(at_tokens)] * half + [at_tokens] * (len(x) - half))

    def weigh_cells(i: int, x: Tensor, count: int) -> Tensor:
        """Weights of image tokens, (B, count)."""
        return regions.flat(count)[i].to(x).expand(len(x), -1)

    def add(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        if model.adapters_disabled:
            return out
        x = args[0]
        for i, pair in enumerate(pairs):
            if pair is None:
                continue
            if x.ndim == 4:
                weight = regions.at(*out.shape[-2:])[i][None, None]
            elif on_text:
                weight = weigh_tokens(i, x, x.shape[1])[..., None]
            elif on_all:
                words = weigh_tokens(i, x, len(regions.objects[i].tokens)).to(x)
                cells = partial(weigh_cells, i, x)
                weight = model.family.row_weights(model, words, cells, x.shape[1])[..., None]
            else:
                weight = regions.flat(x.shape[1])[i][None, :, None]
            out = out + weight.to(x) * lora_output(x, *pair, module)
        return out

    return add


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
    processors = dict(model.denoiser.attn_processors)
    handles = _add_lora_hooks(model, objects, regions)
    within = BoundedAttention(regions) if bounded else None
    across, family = RegionalAttention(regions, within), model.family
    if family.takes_attention_mask:
        handles.append(model.denoiser.register_forward_pre_hook(across.add_mask, with_kwargs=True))
    try:
        if not family.takes_attention_mask:
            model.denoiser.set_attn_processor(
                {
                    name: across
                    if family.is_cross_attention(name)
                    else within
                    if within and family.self_attention in name
                    else processor
                    for name, processor in processors.items()
                }
            )
        yield regions
    finally:
        for handle in handles:
            handle.remove()
        model.denoiser.set_attn_processor(processors)


def _add_lora_hooks(model: BaseModel, objects: list[PlacedObject], regions: RegionMasks) -> list[Any]:
    """Add a hook to each layer that an object's LoRA has weights for; returns the handles that remove them."""
    own_weights = [
        {k.removeprefix(DENOISER_PREFIX): v for k, v in item.weights.items() if k.startswith(DENOISER_PREFIX)}
        for item in objects
    ]
    handles = []
    for name, layer in find_layers(model.denoiser, own_weights).items():
        pairs = [lora_factors(weights, name, layer) for weights in own_weights]
        hook = _regional_hook(model, name, pairs, regions)
        handles.append(layer.register_forward_hook(hook))
    return handles
