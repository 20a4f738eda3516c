"""`export`: an adapter as the files that other tools read.

Exact key names and the alpha rule: docs/format.md. Adapters have alpha = rank, so that readers that find
no alpha, and take it to be the rank, are right.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from objtune_cli import families
from objtune_cli.errors import GateError, IncompatibleError, UsageError
from objtune_cli.families import Family
from objtune_cli.stages import card
from objtune_cli.store import artifact, header
from objtune_cli.store.artifact import Record
from objtune_cli.store.refs import Ref

FORMATS = ("diffusers", "kohya", "embedding", "bundle", "hub")
PREFIXES = {"unet.": "lora_unet_", "text_encoder.": "lora_te1_", "text_encoder_2.": "lora_te2_"}
"""What keys of an adapter's LoRA begin with, and what kohya's files say for it where there are two text encoders."""
DIFFUSERS = "pytorch_lora_weights.safetensors"
PLAIN = {"format": "pt"}
"""The metadata of files that say nothing of themselves."""


def run(root: Path, ref: Ref, form: str, out: Path) -> list[Path]:
    """Write the files of one format into the folder `out`.

    Returns:
        diffusers: pytorch_lora_weights.safetensors; kohya: <name>.safetensors; embedding: <token>.safetensors for each
        object; bundle: <name>-bundle.safetensors, kohya's with the embeddings inside; hub: all but the bundle, with a model card.
    """
    if ref.kind != "adapter":
        raise IncompatibleError(f"{ref} is no adapter", "`objtune list adapter` shows what can be exported")
    if form not in FORMATS:
        raise UsageError(f"there is no format {form}", f"one of {', '.join(FORMATS)}")
    record, tensors = artifact.load(root, ref)
    family = families.named(record.base.get("family", ""))
    layers = any(k.startswith(tuple(PREFIXES)) for k in tensors)
    if form in ("diffusers", "kohya", "bundle") and not layers:
        raise IncompatibleError(f"{ref} is a token alone, without LoRA", "`--format embedding` writes it")
    _check_finite(ref, tensors)
    if form == "hub":
        forms = ("diffusers", "kohya", "embedding") if layers else ("embedding",)
        files = [path for each in forms for path in _written(record, tensors, family, each, out / _FOLDERS[each])]
        return [*files, *card.write(root, record, family, out, [path.relative_to(out).as_posix() for path in files])]
    return _written(record, tensors, family, form, out)


_FOLDERS = {"diffusers": ".", "kohya": "kohya", "embedding": "embeddings"}
"""Where a format's files lie in a repository: the other two would have one name."""


def _written(record: Record, tensors: Mapping[str, Any], family: Family, form: str, out: Path) -> list[Path]:
    if form == "diffusers":
        return [_write(out / DIFFUSERS, diffusers_keys(tensors, family), PLAIN)]
    if form in ("kohya", "bundle"):
        named, name = kohya_keys(tensors, family), record.name
        if form == "bundle":
            name += "-bundle"
            named |= {
                f"bundle_emb.{o.replace('.', '_')}.{k}": v
                for o in record.objects
                for k, v in _vectors(tensors, o, family, "string_to_param.*").items()
            }
        return [_write(out / f"{name}.safetensors", named, _kohya_metadata(record, tensors, family))]
    return [_write(out / f"{name}.safetensors", _vectors(tensors, name, family, f"<{name}>"), PLAIN) for name in record.objects]


def _vectors(tensors: Mapping[str, Any], name: str, family: Family, only: str) -> dict[str, Any]:
    """A token's vectors under the names of an embedding file; `only`: the name where there is one text encoder."""
    if not family.embedding_keys:
        return {only: tensors[f"token.{name}"]}
    first, second = family.embedding_keys
    return {first: tensors[f"token.{name}"], second: tensors[f"token_2.{name}"]}


def _check_finite(ref: Ref, tensors: Mapping[str, Any]) -> None:
    """Other tools draw black pictures of what is no number, and say nothing.

    Raises:
        GateError: A weight is no number.
    """
    import numpy as np

    for name, value in tensors.items():
        if value.dtype.kind == "f" and not bool(np.isfinite(value).all()):
            raise GateError(f"{ref} cannot be used: {name} holds values that are no numbers", "train it again at a lower rate")


def diffusers_keys(tensors: Mapping[str, Any], family: Family = families.SD1) -> dict[str, Any]:
    """Peft names below `unet.` (`transformer.`) and, of what was imported, the text encoders; alpha = rank, so that nothing is left to scale."""
    named = ((k.replace("unet.", f"{family.denoiser}.", 1) if k.startswith("unet.") else k, v) for k, v in tensors.items())
    return {k: v for k, v in named if k.startswith((f"{family.denoiser}.", *PREFIXES))}


def kohya_keys(tensors: Mapping[str, Any], family: Family = families.SD1) -> dict[str, Any]:
    """`lora_unet_…lora_down.weight`, `…lora_up.weight` and an explicit `…alpha` for every layer.

    Raises:
        IncompatibleError: A layer has no name in such files.
    """
    import numpy as np

    named: dict[str, Any] = {}
    for prefix, start in PREFIXES.items():
        ends = [key.removeprefix(prefix).removesuffix(".lora_A.weight") for key in tensors if key.startswith(prefix) and ".lora_A." in key]
        layers = {end: (tensors[f"{prefix}{end}.lora_A.weight"], tensors[f"{prefix}{end}.lora_B.weight"]) for end in ends}
        if prefix == "unet.":
            layers = family.kohya(layers)
        elif prefix == "text_encoder." and len(family.encoders) == 1:
            start = "lora_te_"
        for layer, (down, up) in layers.items():
            stem = start + layer.replace(".", "_")
            named |= {
                f"{stem}.lora_down.weight": down,
                f"{stem}.lora_up.weight": up,
                f"{stem}.alpha": np.array(float(down.shape[0]), np.float32),
            }
    return named


def _kohya_metadata(record: Record, tensors: Mapping[str, Any], family: Family) -> dict[str, str]:
    rank = next(str(v.shape[0]) for k, v in tensors.items() if "lora_A" in k)
    licence = {"modelspec.license": card.licence(record, family)[0]} if card.licence(record, family)[0] else {}
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.implementation": "diffusers",
        "modelspec.title": record.name,
        "modelspec.tags": "Object",
        "modelspec.trigger_phrase": " ".join(f"<{name}>" for name in record.objects),
        "modelspec.usage_hint": f"with the embedding {', '.join(f'{name}.safetensors' for name in record.objects)} of the same object",
        "ss_network_module": family.network,
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_network_args": "{}",
        "ss_output_name": record.name,
        "ss_sd_model_name": record.base["id"],
        "objtune": header.canonical({"ref": str(record.ref), "schema": record.schema, "digest": record.digest}),
        **licence,
        **_architecture(record, tensors, family),
    }


def _architecture(record: Record, tensors: Mapping[str, Any], family: Family) -> dict[str, str]:
    """What ModelSpec and kohya call the base's family; of the first one, only where the width of the condition is that of SD 1.x."""
    if family is families.SD1:
        widths = {v.shape[1] for k, v in tensors.items() if "attn2.to_k.lora_A" in k}
        if widths != {768}:
            return {"ss_v2": "True"} if widths == {1024} else {}
    prediction = record.base.get("prediction", "epsilon")
    said = {"ss_v2": str(family is families.SD2), "ss_base_model_version": family.version}
    if family is families.SD2:
        said["ss_base_model_version"] += "_v" if prediction == "v_prediction" else ""
        return said | {
            "modelspec.architecture": f"stable-diffusion-v2-{'768-v' if prediction == 'v_prediction' else '512'}/lora",
            "modelspec.prediction_type": "v" if prediction == "v_prediction" else "epsilon",
        }
    return said | {
        "modelspec.architecture": f"{family.architecture}/lora",
        "modelspec.prediction_type": prediction.removesuffix("_prediction"),
    }


def body_hash(tensors: Mapping[str, Any]) -> str:
    """SHA-256 of what follows the header in the file of these tensors: kohya's `sshs_model_hash`."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(artifact.as_array(tensors[name])[1].tobytes())
    return digest.hexdigest()


def embedding_hash(tensors: Mapping[str, Any], name: str, family: Family) -> str:
    """SHA-256 of the file that `embedding` writes for an object."""
    return hashlib.sha256(_encoded(_vectors(tensors, name, family, f"<{name}>"), PLAIN)).hexdigest()


def _encoded(tensors: Mapping[str, Any], metadata: dict[str, str]) -> bytes:
    """A plain safetensors file for other tools, its keys sorted; with ModelSpec's metadata, the hash of what follows the header."""
    arrays = {name: artifact.as_array(value) for name, value in tensors.items()}
    specs = {name: (kind, array.shape) for name, (kind, array) in arrays.items()}
    body = b"".join(arrays[name][1].tobytes() for name in sorted(arrays))
    if "modelspec.sai_model_spec" in metadata:
        digest = body_hash(tensors)
        metadata = metadata | {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}
    return header.encode_plain(metadata, specs) + body


def _write(path: Path, tensors: Mapping[str, Any], metadata: dict[str, str]) -> Path:
    artifact.write_file(path, _encoded(tensors, metadata))
    return path
