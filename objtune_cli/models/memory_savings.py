"""Less memory for training: recomputed activations and a quantised denoiser."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from objtune_cli.errors import ResourceError
from objtune_cli.models.base_model import BaseModel
from objtune_cli.runtime.memory import empty_cache

T = TypeVar("T")


def bitsandbytes(what: str) -> Any:
    """The library of that name.

    Raises:
        ResourceError: It is not installed, or does not work here.
    """
    try:
        import bitsandbytes as found
    except (ImportError, RuntimeError, OSError) as error:
        said = str(error).splitlines()[0] if isinstance(error, RuntimeError | OSError) else "it is not installed"
        raise ResourceError(
            f"{what} needs bitsandbytes: {said}", "`pip install bitsandbytes`, or leave the setting at its default"
        ) from None
    return found


def reduce_memory(model: BaseModel, *, checkpointing: bool, quantised: str) -> None:
    """Make the denoiser take less: activations computed again in the backward pass, weights of products in 8 or 4 bits ("none": as they are).

    Source: arXiv:1604.06174 for the former, QLoRA (arXiv:2305.14314, NF4) for the latter. Frozen weights alone are quantised.
    """
    if quantised != "none":
        quantise(model, bits=8 if quantised == "8bit" else 4)
    if checkpointing:
        model.denoiser.enable_gradient_checkpointing()


def retry_with_checkpointing(model: BaseModel, work: Callable[[], T], *, auto: bool) -> T:
    """What `work` gives; where a GPU's memory ends and `auto` allows it, once more with activations computed again, as all work after it.

    Several processes wait for each other inside the work: none of them may begin it anew.
    """
    try:
        return work()
    except torch.OutOfMemoryError:
        if not auto or model.process_group is not None or model.denoiser.is_gradient_checkpointing:
            raise
    model.denoiser.enable_gradient_checkpointing()  # out here the error, which holds what was computed, is gone
    empty_cache(model.device.type)
    return work()


def quantise(model: BaseModel, bits: int) -> None:
    """Replace the linear layers inside the denoiser's blocks by ones of bitsandbytes; convolutions and the layers around them stay."""
    bnb = bitsandbytes(f"train.quantize_base={bits}bit")
    for name, layer in list(model.denoiser.named_modules()):
        if type(layer) is not nn.Linear or ("blocks." not in name and "mid_block." not in name):
            continue
        given = {"bias": layer.bias is not None}
        if bits == 4:
            small = bnb.nn.Linear4bit(
                layer.in_features, layer.out_features, **given, compute_dtype=layer.weight.dtype, quant_type="nf4"
            )
        else:
            small = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, **given, has_fp16_weights=False)
        small.load_state_dict(layer.state_dict())
        parent, _, last = name.rpartition(".")
        setattr(model.denoiser.get_submodule(parent), last, small.requires_grad_(False).to(model.device))
