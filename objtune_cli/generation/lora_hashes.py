"""The hashes by which A1111, Forge and Civitai identify an adapter's exported files, cached in the project."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from objtune_cli.errors import ObjtuneError
from objtune_cli.interchange import export_files, lora_keys, trigger_words
from objtune_cli.models import families
from objtune_cli.store import artifacts, garbage
from objtune_cli.store.kinds import adapter, scene
from objtune_cli.store.refs import parse
from objtune_cli.workflow.context import StageContext

DIGITS = 12
"""Number of a hash's digits in the generation parameters."""
LORA_HASHES, TI_HASHES = "Lora hashes", "TI hashes"
Hashes = dict[str, dict[str, str]]
"""`Lora hashes`: the name of a file without its ending to its hash; `TI hashes`: the name of an object to that of its embedding file."""


def collect_hashes(
    ctx: StageContext, inputs: Mapping[str, Mapping[str, str]], of_other_loras: str = ""
) -> dict[str, str]:
    """Values of `Lora hashes` and `TI hashes` for the adapters among a scene's inputs; missing or damaged adapters are left out.

    Args:
        of_other_loras: The end of `Lora hashes`, for LoRAs beside the objects.

    The files are those of `export --format kohya` and `embedding`. Source: A1111's `extra_networks_lora.py` and `textual_inversion.py`.
    """
    hashes: Hashes = {}
    avoided = {
        source["sha256"]: source["ref"] for role, source in inputs.items() if role.startswith(scene.NEGATIVE_ROLE)
    }
    adapters = {
        source["sha256"]: source["ref"] for role, source in inputs.items() if role.startswith(scene.ADAPTER_ROLE)
    }
    for sha256, ref in {**adapters, **avoided}.items():
        with contextlib.suppress(ObjtuneError):
            for key, values in adapter_hashes(ctx, ref, sha256).items():
                if sha256 not in adapters and key != TI_HASHES:
                    continue  # of an object in the negative prompt only the token acts
                named = (
                    {trigger_words.default_trigger(name): value for name, value in values.items()}
                    if key == TI_HASHES
                    else values
                )
                hashes.setdefault(key, {}).update(named)
    texts = {key: ", ".join(f"{name}: {value}" for name, value in values.items()) for key, values in hashes.items()}
    if of_other_loras:
        texts[LORA_HASHES] = ", ".join(filter(None, (texts.get(LORA_HASHES), of_other_loras)))
    return texts


def adapter_hashes(ctx: StageContext, ref: str, sha256: str) -> Hashes:
    """The hashes of one adapter: of the files that it was imported from, from the cache, or computed."""
    record = ctx.store.read_record(parse(ref))
    imported = imported_hashes(record)
    if imported is not None:
        return imported
    exported = _cached_hashes(ctx, ref, sha256)
    is_lora_only = [role for role in record.inputs if role.startswith(adapter.FILE_ROLE)] == [
        f"{adapter.FILE_ROLE}0"
    ]  # its token is made of existing tokens
    return {key: values for key, values in exported.items() if not (is_lora_only and key == TI_HASHES)}


def _cached_hashes(ctx: StageContext, ref: str, sha256: str) -> Hashes:
    """The hashes of the files that an adapter is exported to, from the cache or computed."""
    key = f"{garbage.HASHES}{sha256}.json"
    with contextlib.suppress(OSError, ValueError):
        cached = json.loads(ctx.store.backend.read(key))
        if isinstance(cached, dict) and all(isinstance(values, dict) for values in cached.values()):
            return cached
    record, tensors = ctx.store.read(parse(ref), sha256)
    hashes = compute_hashes(record, tensors)
    ctx.store.write(key, (json.dumps(hashes) + "\n").encode())
    return hashes


def imported_hashes(record: artifacts.Record) -> Hashes | None:
    """The hashes of the files that an adapter was imported from; None if it was not imported, or by a version that did not store the hash of a LoRA.

    Source: civitai's AutoV3 and A1111's hash of a LoRA cover what follows its header, those of an embedding the whole file.
    """
    files = {
        role.partition(".")[2]: source["sha256"]
        for role, source in sorted(record.inputs.items())
        if role.startswith(adapter.FILE_ROLE)
    }
    bodies = {
        i: record.inputs[f"{adapter.BODY_ROLE}{i}"]["sha256"]
        for i in files
        if f"{adapter.BODY_ROLE}{i}" in record.inputs
    }
    if not files or (record.metrics.get("layers") and not bodies):
        return None
    hashes: Hashes = {}
    for i, sha256 in files.items():
        key, value = (LORA_HASHES, bodies[i]) if i in bodies else (TI_HASHES, sha256)
        hashes.setdefault(key, {}).setdefault(record.name, value[:DIGITS])
    return hashes


def compute_hashes(record: artifacts.Record, tensors: Mapping[str, Any]) -> Hashes:
    """Compute the hashes of an adapter's exported files: of a LoRA without its header, of an embedding the whole file."""
    family = families.get_family(record.base.get("family", ""))
    layers = lora_keys.to_kohya(tensors, family)
    lora: Hashes = {LORA_HASHES: {record.name: export_files.body_hash(layers)[:DIGITS]}} if layers else {}
    embeddings = {
        name: export_files.embedding_hash(tensors, name, family)[:DIGITS]
        for name in record.objects
        if adapter.token_names(name)[0] in tensors
    }
    return lora | ({TI_HASHES: embeddings} if embeddings else {})
