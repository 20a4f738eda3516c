"""LoRAs as forward hooks, without peft: the output of a layer plus the LoRA's output for the same input."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from objtune_cli.errors import IncompatibleError
from objtune_cli.lora.layers import by_network
from objtune_cli.models.base_model import BaseModel

LoraFactors = tuple[Tensor, Tensor, Tensor | None]
"""Down and up projection of a layer's LoRA, and what it adds to the bias."""


@contextlib.contextmanager
def added_to_base(model: BaseModel, loras: Iterable[tuple[Mapping[str, Tensor], float]]) -> Iterator[None]:
    """Make LoRAs part of a base, on the denoiser and on the text encoders.

    They act while the LoRAs of objects are disabled, too.

    Args:
        loras: Tensors with an adapter's names, and the factor s of $s B A$ and of the biases.

    Raises:
        IncompatibleError: A LoRA has a layer that this base does not have.
    """
    handles = []
    try:
        for weights, strength in loras:
            for network, own in by_network(model, weights):
                for name, layer in find_layers(network, [own]).items():
                    frozen = getattr(layer, "base_layer", layer)  # peft's layers wrap those of the base
                    factors = lora_factors(own, name, frozen)
                    if factors is not None:
                        down, up, bias = factors
                        scaled = down, up * strength, None if bias is None else bias * strength
                        handles.append(frozen.register_forward_hook(partial(_add_output, scaled)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add_output(factors: LoraFactors, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    return out + lora_output(args[0], *factors, module)


def lora_output(x: Tensor, down: Tensor, up: Tensor, bias: Tensor | None, module: nn.Module) -> Tensor:
    """The LoRA's output for the input x of a linear or convolution layer."""
    if isinstance(module, nn.Conv2d):
        return F.conv2d(F.conv2d(x, down, stride=module.stride, padding=module.padding), up, bias)
    product = x @ down.T @ up.T
    return product if bias is None else product + bias


def find_layers(network: nn.Module, adapters: Sequence[Mapping[str, Tensor]]) -> dict[str, nn.Module]:
    """The layers of a network that the LoRAs have weights for, by name."""
    modules = dict(network.named_modules())
    names = sorted({key.rsplit(".lora_", 1)[0] for weights in adapters for key in weights})
    missing = [name for name in names if name not in modules]
    if missing:
        raise IncompatibleError(
            f"an adapter was trained on another base: no layer {missing[0]} here", "use the base it names"
        )
    return {name: modules[name] for name in names}


def lora_factors(weights: Mapping[str, Tensor], name: str, layer: Any) -> LoraFactors | None:
    """The factors of one layer in its number format and on its device; None if the LoRA has none for it."""
    down, up = (weights.get(f"{name}.lora_{side}.weight") for side in "AB")
    bias = weights.get(f"{name}.lora_B.bias")
    if down is None or up is None:
        return None
    return down.to(layer.weight), up.to(layer.weight), None if bias is None else bias.to(layer.weight)
