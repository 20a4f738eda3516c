"""Keys of an adapter's LoRA layers in files of diffusers and of kohya's scripts. docs/reference/file-format.md lists them."""

from collections.abc import Mapping
from typing import Any

from objtune_cli.lora import file_names
from objtune_cli.models import families
from objtune_cli.models.families import Family
from objtune_cli.store.kinds import adapter

KOHYA_PREFIXES = dict(
    zip((adapter.DENOISER, *adapter.TEXT_ENCODERS), ("lora_unet_", "lora_te1_", "lora_te2_"), strict=True)
)
"""Key prefixes of an adapter's LoRA to those of kohya's files, where there are two text encoders."""

Factors = dict[str, tuple[Any, Any]]
"""Layer to the matrices A (r, in) and B (out, r)."""


def to_diffusers(tensors: Mapping[str, Any], family: Family = families.SD1) -> dict[str, Any]:
    """Rename LoRA tensors to peft keys below `unet.` or `transformer.`, and text encoders of imported adapters; alpha = rank."""
    renamed = (
        (k.replace(adapter.DENOISER, f"{family.denoiser}.", 1) if k.startswith(adapter.DENOISER) else k, v)
        for k, v in _fill_biases(tensors).items()
    )
    return {k: v for k, v in renamed if k.startswith((f"{family.denoiser}.", *KOHYA_PREFIXES))}


def _fill_biases(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add zero biases to all layers of a network that has any, because peft expects all or none."""
    import numpy as np

    missing: dict[str, Any] = {}
    for prefix in {key.split(".")[0] for key in tensors if key.endswith(adapter.LORA_BIAS)}:
        for key, value in tensors.items():
            if key.startswith(f"{prefix}.") and key.endswith(adapter.LORA_B):
                missing[key.removesuffix("weight") + "bias"] = np.zeros(value.shape[0], value.dtype)
    return {**missing, **tensors}


def to_kohya(tensors: Mapping[str, Any], family: Family = families.SD1) -> dict[str, Any]:
    """Rename LoRA tensors to kohya keys: `lora_unet_…lora_down.weight`, `…lora_up.weight` and an explicit `…alpha` per layer.

    Raises:
        IncompatibleError: A layer has no kohya key.
    """
    import numpy as np

    renamed: dict[str, Any] = {}
    for prefix, kohya_prefix in KOHYA_PREFIXES.items():
        layers, biases = _collect_factors(tensors, prefix)
        if prefix == adapter.DENOISER:
            names = file_names.of_family(family)
            layers, biases = names.to_kohya(layers), names.to_kohya(biases)
        elif prefix == adapter.TEXT_ENCODERS[0] and len(family.encoders) == 1:
            kohya_prefix = "lora_te_"
        for layer, (down, up) in layers.items():
            stem = kohya_prefix + layer.replace(".", "_")
            renamed |= {
                f"{stem}.lora_down.weight": down,
                f"{stem}.lora_up.weight": up,
                f"{stem}.alpha": np.array(float(down.shape[0]), np.float32),
            }
        for layer, (down, up) in biases.items():
            renamed[f"{kohya_prefix}{layer.replace('.', '_')}.diff_b"] = (up @ down)[:, 0]
    return renamed


def _collect_factors(tensors: Mapping[str, Any], prefix: str) -> tuple[Factors, Factors]:
    """The layers of one network, and their biases as factors of rank 1 of one input."""
    import numpy as np

    names = [
        key.removeprefix(prefix).removesuffix(adapter.LORA_A)
        for key in tensors
        if key.startswith(prefix) and key.endswith(adapter.LORA_A)
    ]
    layers = {
        name: (tensors[prefix + name + adapter.LORA_A], tensors[prefix + name + adapter.LORA_B]) for name in names
    }
    biases = {
        name: tensors[prefix + name + adapter.LORA_BIAS]
        for name in names
        if prefix + name + adapter.LORA_BIAS in tensors
    }
    return layers, {name: (np.ones((1, 1), bias.dtype), np.asarray(bias)[:, None]) for name, bias in biases.items()}
