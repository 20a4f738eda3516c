"""Less memory for training: recomputed activations and a quantised denoiser."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from objtune_cli.errors import ResourceError
from objtune_cli.models.base_model import BaseModel
from objtune_cli.runtime.memory import MB, available_mb, empty_cache

T = TypeVar("T")


def bitsandbytes(what: str) -> Any:
    """Import bitsandbytes.

    Raises:
        ResourceError: It is not installed, or does not work on this machine.
    """
    try:
        import bitsandbytes as library
    except (ImportError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0] if isinstance(error, RuntimeError | OSError) else "it is not installed"
        raise ResourceError(
            f"{what} needs bitsandbytes: {reason}", "`pip install bitsandbytes`, or leave the setting at its default"
        ) from None
    return library


def reduce_memory(model: BaseModel, *, checkpointing: bool, quantised: str) -> None:
    """Reduce the denoiser's memory in training.

    Args:
        checkpointing: Recompute activations in the backward pass (arXiv:1604.06174).
        quantised: "8bit" or "4bit" (NF4 of QLoRA, arXiv:2305.14314) for the frozen weights of linear layers, or "none".
    """
    if quantised != "none":
        quantise(model, bits=8 if quantised == "8bit" else 4)
    if checkpointing:
        model.denoiser.enable_gradient_checkpointing()


def offload_language_model(model: BaseModel) -> None:
    """Move a language model to the CPU if the free memory of its GPU is smaller than it; it comes back with the next prompt.

    A quantised one stays.
    """
    if model.device.type != "cuda" or not model.family.reads_with_language_model:
        return
    parameters = list(model.text_encoder.parameters())
    size = sum(p.nbytes for p in parameters) / MB
    if all(p.is_floating_point() for p in parameters) and available_mb("cuda") < size:
        model.text_encoder.to("cpu")
        empty_cache("cuda")


def retry_with_checkpointing(model: BaseModel, work: Callable[[], T], *, auto: bool) -> T:
    """Run `work`; if GPU memory runs out and `auto` is set, run it again with activation checkpointing, which stays on.

    Processes that share a batch never retry, because they wait for each other inside `work`.
    """
    try:
        return work()
    except torch.OutOfMemoryError:
        if not auto or model.process_group is not None or model.denoiser.is_gradient_checkpointing:
            raise
    model.denoiser.enable_gradient_checkpointing()  # outside of `except`, because the error keeps the tensors alive
    empty_cache(model.device.type)
    return work()


def quantise(model: BaseModel, bits: int) -> None:
    """Replace the linear layers inside the blocks of the denoiser, and of a language model, with those of bitsandbytes."""
    bnb = bitsandbytes(f"train.quantize_base={bits}bit")
    _quantise_blocks(bnb, model.denoiser, bits, model.family.block_names, model.device)
    if model.family.reads_with_language_model:
        _quantise_blocks(bnb, model.text_encoder, bits, ("layers.",), model.device)


def _quantise_blocks(bnb: Any, network: Any, bits: int, blocks: tuple[str, ...], device: torch.device) -> None:
    """Replace the linear layers whose names contain one of `blocks`; other layers stay."""
    for name, layer in list(network.named_modules()):
        if type(layer) is not nn.Linear or not any(part in name for part in blocks):
            continue
        options = {"bias": layer.bias is not None}
        if bits == 4:
            small = bnb.nn.Linear4bit(
                layer.in_features, layer.out_features, **options, compute_dtype=layer.weight.dtype, quant_type="nf4"
            )
        else:
            small = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, **options, has_fp16_weights=False)
        small.load_state_dict(layer.state_dict())
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, small.requires_grad_(False).to(device))
