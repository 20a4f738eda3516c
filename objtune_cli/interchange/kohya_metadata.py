"""Metadata in the header of kohya's files: ModelSpec, the fields of kohya's scripts, and the adapter that a file came from."""

from collections.abc import Mapping
from typing import Any

from objtune_cli.interchange import model_card
from objtune_cli.lora import file_names
from objtune_cli.models import families
from objtune_cli.models.families import Family
from objtune_cli.store import safetensors_format
from objtune_cli.store.artifacts import Record


def describe_file(
    record: Record, tensors: Mapping[str, Any], family: Family, words: Mapping[str, str], *, is_bundle: bool
) -> dict[str, str]:
    """The metadata of one file, without hashes.

    Args:
        words: Object to trigger word. is_bundle: the objects' vectors are in the same file.
    """
    rank = next(str(value.shape[0]) for key, value in tensors.items() if "lora_A" in key)
    embeddings = ", ".join(f"{word}.safetensors" for word in words.values())
    licence = model_card.base_licence(record, family)[0]
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.implementation": "diffusers",
        "modelspec.title": record.name,
        "modelspec.tags": "Object",
        "modelspec.trigger_phrase": " ".join(words.values()),
        "modelspec.usage_hint": "the embedding is inside"
        if is_bundle
        else f"with the embedding {embeddings} of the same object",
        "ss_network_module": file_names.of_family(family).kohya_network_module,
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_network_args": "{}",
        "ss_output_name": record.name,
        "ss_sd_model_name": record.base["id"],
        "objtune": safetensors_format.canonical_json(
            {"ref": str(record.ref), "schema": record.schema, "digest": record.digest}
        ),
        **({"modelspec.license": licence} if licence else {}),
        **_describe_architecture(record, tensors, family),
    }


def _describe_architecture(record: Record, tensors: Mapping[str, Any], family: Family) -> dict[str, str]:
    """Metadata that names the base's family; for SD 1.x only if the width of the text condition is 768."""
    if family is families.SD1:
        widths = {value.shape[1] for key, value in tensors.items() if "attn2.to_k.lora_A" in key}
        if widths != {768}:
            return {"ss_v2": "True"} if widths == {1024} else {}
    prediction = record.base.get("prediction", "epsilon")
    names = file_names.of_family(family)
    metadata = {"ss_v2": str(family is families.SD2), "ss_base_model_version": names.version}
    if family is families.SD2:
        metadata["ss_base_model_version"] += "_v" if prediction == "v_prediction" else ""
        return metadata | {
            "modelspec.architecture": f"stable-diffusion-v2-{'768-v' if prediction == 'v_prediction' else '512'}/lora",
            "modelspec.prediction_type": "v" if prediction == "v_prediction" else "epsilon",
        }
    return metadata | {
        "modelspec.architecture": f"{names.architecture}/lora",
        "modelspec.prediction_type": prediction.removesuffix("_prediction"),
    }
