"""LoRAs of single objects as forward hooks, without peft: on the denoiser and on the text encoders."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from objtune_cli.composition.region_masks import PlacedObject
from objtune_cli.lora.forward_hooks import LoraFactors, find_layers, lora_factors, lora_output
from objtune_cli.lora.layers import by_network, has_text_encoder_layers
from objtune_cli.models.attention import pad_mask
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.conditioning import Conditioning


@contextlib.contextmanager
def single_lora(model: BaseModel, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let one object's LoRA act on the whole image and, if it has such layers, on the text encoders.

    Raises:
        IncompatibleError: The LoRA was trained for layers that this base does not have.
    """
    handles = []
    try:
        for network, own in by_network(model, weights):
            for name, layer in find_layers(network, [own]).items():
                pair = lora_factors(own, name, layer)
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
    return out if model.adapters_disabled else out + lora_output(args[0], *pair, module)
