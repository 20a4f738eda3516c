"""`export`: an adapter as the files that other tools read.

Exact key names and the alpha rule: docs/format.md. Adapters have alpha = rank, so that readers that find
no alpha, and take it to be the rank, are right.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from objtune_cli.errors import IncompatibleError, UsageError
from objtune_cli.store import artifact, header
from objtune_cli.store.artifact import Record
from objtune_cli.store.refs import Ref

FORMATS = ("diffusers", "kohya", "embedding")
PREFIX = "unet."


def run(root: Path, ref: Ref, form: str, out: Path) -> list[Path]:
    """Write the files of one format into the folder `out`.

    Returns:
        diffusers: pytorch_lora_weights.safetensors; kohya: <name>.safetensors;
        embedding: <token>.safetensors for each object.
    """
    if ref.kind != "adapter":
        raise IncompatibleError(f"{ref} is no adapter", "`objtune list adapter` shows what can be exported")
    record, tensors = artifact.load(root, ref)
    if form in ("diffusers", "kohya") and not any(k.startswith(PREFIX) for k in tensors):
        raise IncompatibleError(f"{ref} is a token alone, without LoRA", "`--format embedding` writes it")
    if form == "diffusers":
        return [_write(out / "pytorch_lora_weights.safetensors", diffusers_keys(tensors), {"format": "pt"})]
    if form == "kohya":
        return [_write(out / f"{ref.name}.safetensors", kohya_keys(tensors), _kohya_metadata(record, tensors))]
    if form == "embedding":
        return [
            _write(out / f"{name}.safetensors", {f"<{name}>": tensors[f"token.{name}"]}, {"format": "pt"})
            for name in record.objects
        ]
    raise UsageError(f"there is no format {form}", f"one of {', '.join(FORMATS)}")


def diffusers_keys(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Peft names below `unet.`; alpha = rank in every adapter, so that nothing is left to scale."""
    return {k: v for k, v in tensors.items() if k.startswith(PREFIX)}


def kohya_keys(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """`lora_unet_…lora_down.weight`, `…lora_up.weight` and an explicit `…alpha` for every layer."""
    import numpy as np

    named: dict[str, Any] = {}
    for key, value in tensors.items():
        if not key.startswith(PREFIX):
            continue
        layer, side = key.removeprefix(PREFIX).rsplit(".lora_", 1)
        stem = "lora_unet_" + layer.replace(".", "_")
        named[f"{stem}.lora_{'down' if side.startswith('A') else 'up'}.weight"] = value
        if side.startswith("A"):
            named[f"{stem}.alpha"] = np.array(float(value.shape[0]), np.float32)
    return named


def _kohya_metadata(record: Record, tensors: Mapping[str, Any]) -> dict[str, str]:
    rank = next(str(v.shape[0]) for k, v in tensors.items() if "lora_A" in k)
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.implementation": "diffusers",
        "modelspec.title": record.name,
        "modelspec.trigger_phrase": " ".join(f"<{name}>" for name in record.objects),
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_output_name": record.name,
        "ss_sd_model_name": record.base["id"],
        **_family(tensors),
    }


def _family(tensors: Mapping[str, Any]) -> dict[str, str]:
    """What the width of the text condition tells of the base's family; nothing for others."""
    widths = {v.shape[1] for k, v in tensors.items() if "attn2.to_k.lora_A" in k}
    if widths == {768}:
        return {"modelspec.architecture": "stable-diffusion-v1/lora", "ss_base_model_version": "sd_v1", "ss_v2": "False"}
    return {"ss_v2": "True"} if widths == {1024} else {}


def _write(path: Path, tensors: Mapping[str, Any], metadata: dict[str, str]) -> Path:
    """A plain safetensors file for other tools, its keys sorted."""
    arrays = {name: artifact.as_array(value) for name, value in tensors.items()}
    specs = {name: (kind, array.shape) for name, (kind, array) in arrays.items()}
    head = header.encode_plain(metadata, specs)
    artifact.write_file(path, head + b"".join(arrays[name][1].tobytes() for name in sorted(arrays)))
    return path
