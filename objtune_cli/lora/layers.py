"""LoRA layers of the denoiser, and of the text encoders for imported adapters, through peft: add, read, load."""

import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from objtune_cli.errors import IncompatibleError
from objtune_cli.models.base_model import BaseModel
from objtune_cli.numerics.ddpm import torch_seed
from objtune_cli.runtime.load_lock import LOAD_LOCK

DENOISER_PREFIX = "unet."
TEXT_ENCODER_PREFIXES = ("text_encoder.", "text_encoder_2.")
"""Prefixes of the text encoders' layers, which imported LoRAs may have."""


def add(
    model: BaseModel, rank: int, modules: str, seed: int, name: str = "default", blocks: str = "all"
) -> list[torch.nn.Parameter]:
    """Add a LoRA to the denoiser that changes nothing yet (alpha = rank), and return its trainable float32 parameters.

    Args:
        modules: Name of a module set of the family; the set may be empty.
        seed: Of the initial factors A; the factors B are zeros.
        blocks: "all", or "decoder": only the blocks after the middle. No gradient flows through the blocks before them,
            not even to the prompt.
    """
    from peft import LoraConfig

    ends = model.family.modules[modules]
    if not ends:
        return []
    starts, before = model.family.decoder_layers(model.denoiser) if blocks == "decoder" else (("",), [])
    targets = [
        layer for layer, module in model.denoiser.named_modules()
        if not isinstance(module, torch.nn.ModuleList)  # to_out is a list in some blocks, and a layer in others
        and any(layer == end or layer.endswith("." + end) for end in ends) and layer.startswith(starts)
    ]  # fmt: skip
    is_first = not getattr(model.denoiser, "peft_config", None)
    if is_first:
        for block in before:
            block.register_forward_pre_hook(_detach_prompt, with_kwargs=True)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights="gaussian")
    with LOAD_LOCK, torch.random.fork_rng(devices=[]):  # peft draws A from the generator that all threads share
        torch.manual_seed(torch_seed(seed))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several LoRAs are intended
            model.denoiser.add_adapter(config, adapter_name=name)
    params = [
        p
        for key, p in model.denoiser.named_parameters()
        if key.endswith((f".lora_A.{name}.weight", f".lora_B.{name}.weight"))
    ]
    for p in params:
        p.data = p.data.float()
    return params


def _detach_prompt(
    _module: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Detach the prompt in front of frozen blocks, so that no gradient flows through them to the token."""
    prompt = kwargs.get("encoder_hidden_states")
    return args, kwargs if prompt is None else kwargs | {"encoder_hidden_states": prompt.detach()}


def state_dict(model: BaseModel, name: str = "default") -> dict[str, Tensor]:
    """Return the weights of a LoRA on the CPU, with peft's names below `unet.`; {} if none was added."""
    from peft import get_peft_model_state_dict

    if not getattr(model.denoiser, "peft_config", None):
        return {}
    state = get_peft_model_state_dict(model.denoiser, adapter_name=name)
    return {DENOISER_PREFIX + key: value.detach().cpu().clone() for key, value in state.items()}


def load(model: BaseModel, weights: Mapping[str, Tensor], name: str = "default") -> bool:
    """Add a trained LoRA from the tensors of an adapter artifact; return whether it has one (some have only a token).

    Raises:
        IncompatibleError: This base lacks one of its layers.
    """
    has_lora = False
    for network, own in by_network(model, weights):
        _load(network, own, model, name)
        has_lora = True
    return has_lora


def by_network(model: BaseModel, weights: Mapping[str, Tensor]) -> Iterator[tuple[Any, dict[str, Tensor]]]:
    """Yield each network that a LoRA has layers of, and the tensors with the network's own names.

    Raises:
        IncompatibleError: It has layers of a text encoder that this base does not have.
    """
    for prefix, network in zip(
        (DENOISER_PREFIX, *TEXT_ENCODER_PREFIXES),
        (model.denoiser, model.text_encoder, model.text_encoder_2),
        strict=True,
    ):
        own = {
            k.removeprefix(prefix).replace("text_model.text_proj", "text_proj"): v
            for k, v in weights.items()
            if k.startswith(prefix)
        }
        if own and network is None:
            raise IncompatibleError(
                "the adapter was trained on another base: it has a second text encoder", "use the base it names"
            )
        if own and prefix != DENOISER_PREFIX and not hasattr(network, "text_model"):
            own = {k.removeprefix("text_model."): v for k, v in own.items()}
        if own:
            yield network, own


def has_text_encoder_layers(weights: Mapping[str, Any]) -> bool:
    """Whether a LoRA has layers of a text encoder."""
    return any(key.startswith(TEXT_ENCODER_PREFIXES) for key in weights)


def _load(network: Any, own: Mapping[str, Tensor], model: BaseModel, name: str) -> None:
    """Add one network's layers."""
    from peft import LoraConfig, set_peft_model_state_dict

    ranks = {k.removesuffix(".lora_A.weight"): v.shape[0] for k, v in own.items() if k.endswith(".lora_A.weight")}
    rank = min(ranks.values())
    other_ranks = {  # full differences of imported files
        f"^{re.escape(layer)}": layer_rank for layer, layer_rank in ranks.items() if layer_rank != rank
    }
    targets = sorted(ranks)
    missing = set(targets) - {n for n, _ in network.named_modules()}
    if missing:
        raise IncompatibleError(
            f"the adapter was trained on another base: no layer {min(missing)} here", "use the base it names"
        )
    with LOAD_LOCK:
        has_bias = any(k.endswith(".lora_B.bias") for k in own)  # then every layer gets one; zeros are the default
        settings = LoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules=targets,
            rank_pattern=other_ranks,
            alpha_pattern=dict(other_ranks),
            lora_bias=has_bias,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several LoRAs are intended
            warnings.filterwarnings("ignore", message="`lora_bias=True` was passed")  # about merging, which is not done
            network.add_adapter(settings, adapter_name=name)
    try:
        set_peft_model_state_dict(network, {k: v.to(model.device) for k, v in own.items()}, adapter_name=name)
    except RuntimeError:  # same names, other widths
        raise IncompatibleError(
            "the adapter was trained on another base: its layers have other sizes", "use the base it names"
        ) from None
    network.requires_grad_(False).eval()


def set_active(model: BaseModel, names: list[str]) -> None:
    """Enable the named LoRAs together, so that their updates add up; without names, the frozen base remains."""
    for network in (model.denoiser, *model.text_encoders):
        configs = getattr(network, "peft_config", None) or {}
        own = [name for name in names if name in configs]
        if own:
            network.enable_adapters()
            network.set_adapter(own) if network is not model.denoiser else network.set_adapters(own)
        elif configs:
            network.disable_adapters()
