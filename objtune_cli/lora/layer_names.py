"""The names of a base's layers in files of other tools: diffusers, peft, kohya's scripts and ComfyUI."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from objtune_cli.lora import file_names
from objtune_cli.models.base_model import BaseModel

DENOISER = "unet."
ENCODERS = ("text_encoder.", "text_encoder_2.")
"""Prefixes of layer names in adapter artifacts."""
SHORT = (("lora_te_", "lora_te1_"), ("lora_te2_",))
"""Prefixes of the text encoders' layers in kohya's files."""
TOWERS = (("clip_l", "clip_h"), ("clip_g",))
"""ComfyUI's names of the first text encoder (of SD 1.x, SDXL and SD 3; of 2.x) and of the second."""
OLD = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
"""Names of a text encoder's layers in old versions of diffusers."""


class Place(NamedTuple):
    """A layer of the base to which a name in a file refers.

    Attributes:
        own: The layer's name in adapter artifacts.
        part: Its part of the outputs of the layer in the file, as in `FileNames.original_names`; None: all.
    """

    own: str
    part: int | str | None = None


def modules_of(model: BaseModel) -> dict[str, Any]:
    """Return the linear layers and convolutions of a base by their names in adapter artifacts."""
    modules = {f"{DENOISER}{name}": module for name, module in model.denoiser.named_modules() if _holds(module)}
    for prefix, encoder in zip(ENCODERS, model.text_encoders, strict=False):
        inner = hasattr(encoder, "text_model")
        for name, module in encoder.named_modules():
            if _holds(module):
                modules[prefix + (name if inner else f"text_model.{name}")] = module
    return modules


def _holds(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear | torch.nn.Conv2d)


def places(model: BaseModel, modules: Mapping[str, Any], bare: str = "") -> dict[str, tuple[Place, ...]]:
    """Return the base's layers for each name; several if files store them as one layer.

    Args:
        bare: The network of names without a network prefix; "": the denoiser, and the text encoder if there is only one.
    """
    places_by_name: dict[str, list[Place]] = {}
    for own in modules:
        network, _, layer = own.partition(".")
        if network == "unet":
            named = _denoiser_names(model, layer, bare in ("", "unet", model.family.denoiser))
        else:
            index = ENCODERS.index(f"{network}.")
            is_only = bare == network or (not bare and len(model.text_encoders) == 1)
            named = ((name, None) for name in _encoder_names(index, layer, is_only))
        for name, part in dict.fromkeys(named):
            places_by_name.setdefault(name, []).append(Place(own, part))
    return {name: tuple(several) for name, several in places_by_name.items()}


def _denoiser_names(model: BaseModel, layer: str, bare: bool) -> Iterator[tuple[str, int | str | None]]:
    family = model.family
    for name in dict.fromkeys((layer, layer.removesuffix(".0"))):  # old attention processors have no list of outputs
        flat = name.replace(".", "_")
        yield from ((f"{start}{name}", None) for start in dict.fromkeys((DENOISER, f"{family.denoiser}.")))
        yield from ((f"{start}{flat}", None) for start in ("lora_unet_", "lora_transformer_", "lycoris_"))
        if bare:
            yield name, None
    for name, part in file_names.of_family(family).original_names(layer, model.denoiser.config):
        flat = name.replace(".", "_")
        yield from (
            (f"{start}{name}", part)
            for start in ("diffusion_model.", "model.diffusion_model.", DENOISER, f"{family.denoiser}.", "")
        )
        yield from ((f"{start}{flat}", part) for start in ("lora_unet_", "lora_transformer_", "lycoris_"))


def _encoder_names(index: int, layer: str, bare: bool) -> Iterator[str]:
    prefix, inner = ENCODERS[index], layer.removeprefix("text_model.")
    stem, dot, last = inner.rpartition(".")
    for bottom in (inner, f"{stem}{dot}{OLD[last]}") if last in OLD else (inner,):
        for name in dict.fromkeys((layer.replace(inner, bottom), bottom)):
            yield prefix + name
            yield from (f"{tower}.{way}{name}" for tower in TOWERS[index] for way in ("", "transformer."))
            yield from (f"text_encoders.{tower}.transformer.{name}" for tower in TOWERS[index])
            if bare:
                yield name
        yield from (start + layer.replace(inner, bottom).replace(".", "_") for start in SHORT[index])
