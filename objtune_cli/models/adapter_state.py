"""Whether the adapters on a base model act: as layers of its networks, or folded into weights of the denoiser."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from objtune_cli.models.base_model import BaseModel


@dataclass(frozen=True, slots=True)
class FoldedWeights:
    """Layers of the denoiser that LoRAs are folded into, see `lora.folding`.

    Attributes:
        base, folded: The weights of each layer without and with the LoRAs.
    """

    layers: "list[nn.Module]"
    base: "list[nn.Parameter]"
    folded: "list[nn.Parameter]"

    def enable(self, enabled: bool) -> None:
        """Give the layers the weights with the LoRAs, or without them; nothing is copied."""
        for layer, weight in zip(self.layers, self.folded if enabled else self.base, strict=True):
            layer.weight = weight


@contextlib.contextmanager
def disabled(model: "BaseModel") -> Iterator[None]:
    """Inside, no LoRA acts and the base is the frozen one; afterwards those act that acted."""
    if model.folded_weights is not None:
        with _unfolded(model, model.folded_weights):
            yield
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    networks = [n for n in (model.denoiser, *model.text_encoders) if getattr(n, "peft_config", None)]
    acting: list[Any] = [
        m for n in networks for m in n.modules() if isinstance(m, BaseTunerLayer) and not m.disable_adapters
    ]
    frozen = [p for layer in acting for p in layer.parameters() if not p.requires_grad]
    before, model.adapters_disabled = model.adapters_disabled, True
    try:
        for layer in acting:
            layer.enable_adapters(False)
        yield
    finally:
        model.adapters_disabled = before
        for layer in acting:
            layer.enable_adapters(True)
        for p in frozen:  # which peft lets learn when it wakes a layer
            p.requires_grad_(False)


@contextlib.contextmanager
def _unfolded(model: "BaseModel", weights: FoldedWeights) -> Iterator[None]:
    """Inside, the denoiser has the base's weights; afterwards those that it had."""
    before, model.adapters_disabled = model.adapters_disabled, True
    weights.enable(False)
    try:
        yield
    finally:
        model.adapters_disabled = before
        weights.enable(not before)
