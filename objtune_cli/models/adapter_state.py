"""Whether the adapters on a base model act: LoRA layers belong to the networks, so this needs no adapter of its own."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from objtune_cli.models.base_model import BaseModel


@contextlib.contextmanager
def disabled(model: "BaseModel") -> Iterator[None]:
    """Inside, no LoRA acts and the base is the frozen one; afterwards those act that acted."""
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
