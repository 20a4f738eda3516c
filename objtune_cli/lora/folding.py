"""LoRAs folded into the denoiser's weights, W + B A: no further products at each step, for pictures that all have the same LoRAs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from objtune_cli.lora.forward_hooks import find_layers
from objtune_cli.lora.layers import DENOISER_PREFIX
from objtune_cli.models.adapter_state import FoldedWeights
from objtune_cli.models.base_model import BaseModel

FACTORS = (".lora_A.weight", ".lora_B.weight")
MAX_BYTES = 64 * 2**20
"""Largest size of the folded layers, which are in memory twice. In larger networks the LoRA is a small part of a step."""


def fold(model: BaseModel, loras: Sequence[Mapping[str, Tensor]]) -> bool:
    """Fold the sum of LoRAs into the denoiser's weights, and return whether that was done.

    It is not done in half precision, whose weights round small updates away, nor for LoRAs with biases or layers of text
    encoders. `adapter_state.disabled` puts the base's weights back.

    Args:
        loras: Tensors with an adapter's names.

    Raises:
        IncompatibleError: This base lacks one of the layers.
    """
    unfold(model)
    factors = [
        {key.removeprefix(DENOISER_PREFIX): value for key, value in each.items() if ".lora_" in key} for each in loras
    ]
    if not _is_plain(loras) or not any(factors):
        return False
    found = find_layers(model.denoiser, factors)
    layers = {name: getattr(layer, "base_layer", layer) for name, layer in found.items()}  # within peft's layers
    weights: dict[str, Any] = {name: getattr(layer, "weight", None) for name, layer in layers.items()}
    if not all(_is_foldable(layer) for layer in layers.values()):
        return False
    if sum(weight.nbytes for weight in weights.values()) > MAX_BYTES:
        return False
    if any(weight.dtype != torch.float32 for weight in weights.values()):
        return False
    deltas = {name: _sum_deltas(factors, name) for name in layers}
    if any(delta.shape != weights[name].shape for name, delta in deltas.items()):
        return False  # which `layers.load` reports
    folded = [weights[name].detach() + delta.to(weights[name].device) for name, delta in deltas.items()]
    model.folded_weights = FoldedWeights(
        list(layers.values()), list(weights.values()), [nn.Parameter(value, requires_grad=False) for value in folded]
    )
    model.folded_weights.enable(True)
    return True


def unfold(model: BaseModel) -> None:
    """Put the base's weights back, if LoRAs are folded into them."""
    if model.folded_weights is not None:
        model.folded_weights.enable(False)
        model.folded_weights = None


def _is_plain(loras: Sequence[Mapping[str, Tensor]]) -> bool:
    """Whether LoRAs have pairs of factors of the denoiser's layers, and nothing else."""
    names = {key for each in loras for key in each if ".lora_" in key}
    return all(key.startswith(DENOISER_PREFIX) and key.endswith(FACTORS) for key in names)


def _is_foldable(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def _sum_deltas(loras: Sequence[Mapping[str, Tensor]], layer: str) -> Tensor:
    """The sum of B A of one layer, float32; the B of a convolution has one cell."""
    down, up = FACTORS
    pairs = [(each[layer + down].float(), each[layer + up].float()) for each in loras if layer + down in each]
    return torch.stack([(b.flatten(1) @ a.flatten(1)).view(len(b), *a.shape[1:]) for a, b in pairs]).sum(0)
