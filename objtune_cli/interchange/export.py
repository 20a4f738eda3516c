"""`export`: write an adapter as files that other tools read.

docs/reference/file-format.md lists the key names. Adapters have alpha = rank, which readers assume if a file has no alpha.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from objtune_cli.errors import IncompatibleError, ObjtuneError, UsageError
from objtune_cli.interchange import model_card, trigger_words
from objtune_cli.interchange.number_formats import DTYPES, convert
from objtune_cli.lora import file_names
from objtune_cli.models import families
from objtune_cli.models.families import Family
from objtune_cli.store import artifacts, safetensors_format
from objtune_cli.store.artifacts import Record
from objtune_cli.store.kinds import adapter
from objtune_cli.store.refs import Ref
from objtune_cli.store.store import Store
from objtune_cli.workflow.output_files import OutputFile, is_file_name, write_files

FORMATS = ("diffusers", "kohya", "embedding", "bundle", "hub")
KOHYA_PREFIXES = dict(
    zip((adapter.DENOISER, *adapter.TEXT_ENCODERS), ("lora_unet_", "lora_te1_", "lora_te2_"), strict=True)
)
"""Key prefixes of an adapter's LoRA to those of kohya's files, where there are two text encoders."""
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
PLAIN_METADATA = {"format": "pt"}
"""Metadata of files without any of their own."""
Note = Callable[[str], None]


def run(
    store: Store, ref: Ref, form: str, out: Path, *, dtype: str = "fp32", trigger: Sequence[str] = (), force: bool = False,
    note: Note = lambda text: None,
) -> list[Path]:  # fmt: skip
    """Write the files of one format into the folder `out`; see `plan` and `outputs.write`.

    Returns:
        diffusers: pytorch_lora_weights.safetensors; kohya: <name>.safetensors; embedding: <trigger>.safetensors for each
        object; bundle: <name>-bundle.safetensors, kohya's with the embeddings inside; hub: all but the bundle, with a model card.
    """
    return write_files(plan(store, ref, form, out, dtype=dtype, trigger=trigger, note=note), force=force, note=note)


def plan(
    store: Store,
    ref: Ref,
    form: str,
    out: Path,
    *,
    dtype: str = "fp32",
    trigger: Sequence[str] = (),
    note: Note = lambda text: None,
) -> list[OutputFile]:
    """Encode the files of one format without writing them.

    Args:
        out: A folder; or a file that ends in .safetensors, where the format is one file.
        dtype: Number format of the weights. trigger: `WORD`, or `NAME=WORD` for one of several objects.

    Raises:
        IncompatibleError: No adapter, or one that the format cannot hold. UsageError: no such format, or values too large for the number format.
        DamagedError: A weight is NaN or infinite.
    """
    if ref.kind != "adapter":
        raise IncompatibleError(f"{ref} is no adapter", "`objtune list adapter` shows what can be exported")
    for what, value, known in (("format", form, FORMATS), ("number format", dtype, DTYPES)):
        if value not in known:
            raise UsageError(f"there is no {what} {value}", f"one of {', '.join(known)}")
    record, tensors = store.read(ref)
    family = families.get_family(record.base.get("family", ""))
    layers = any(k.startswith(tuple(KOHYA_PREFIXES)) for k in tensors)
    if form in ("diffusers", "kohya", "bundle") and not layers:
        raise IncompatibleError(f"{ref} is a token alone, without LoRA", "`--format embedding` writes it")
    store.require_finite(ref)  # other tools draw black images from it without an error
    words = _choose_triggers(record, form, out, trigger)
    if form in ("embedding", "bundle", "hub"):
        for line in trigger_words.describe_common(words, record.objects, is_file=is_file_name(out)):
            note(line)
    exported = _AdapterExport(record, convert(ref, tensors, dtype, note), family, words)
    forms = ["diffusers", "kohya", "embedding"] if layers else ["embedding"]
    if form != "hub":
        return list(_list_outputs(store, exported, form, out))
    files = [file for each in forms for file in _list_outputs(store, exported, each, out / _FOLDERS[each])]
    return [
        *files,
        *model_card.list_outputs(
            store, record, family, out, [file.path.relative_to(out).as_posix() for file in files], words
        ),
    ]


_FOLDERS = {"diffusers": ".", "kohya": "kohya", "embedding": "embeddings"}
"""Folder of each format in a hub repository."""


class _AdapterExport:
    """An adapter to export: its record, its tensors in the file's number format, and the objects' trigger words."""

    def __init__(self, record: Record, tensors: Mapping[str, Any], family: Family, words: Mapping[str, str]) -> None:
        self.record, self.tensors, self.family, self.words = record, tensors, family, words

    def encode(self, kind: str) -> bytes:
        """Encode one file; `kind` is "diffusers", "kohya", "bundle", or the name of an object for its embedding."""
        record, tensors, family, words = self.record, self.tensors, self.family, self.words
        if kind == "diffusers":
            return _encode_file(diffusers_keys(tensors, family), PLAIN_METADATA)
        if kind not in ("kohya", "bundle"):
            return _encode_file(_embedding_tensors(tensors, kind, family, f"<{kind}>"), PLAIN_METADATA)
        named = kohya_keys(tensors, family)
        if kind == "bundle":
            words = {name: word.replace(".", "_") for name, word in words.items()}  # a dot ends the word
            named |= {
                f"bundle_emb.{words[o]}.{k}": v
                for o in record.objects
                for k, v in _embedding_tensors(tensors, o, family, "string_to_param.*").items()
            }
        return _encode_file(named, _kohya_metadata(record, tensors, family, words, inside=kind == "bundle"))


def _choose_triggers(record: Record, form: str, out: Path, trigger: Sequence[str]) -> dict[str, str]:
    """Trigger word of each object; if `out` is the file of an embedding, its stem is the trigger word.

    Raises:
        UsageError: One file for several, or two triggers for one object.
    """
    words = trigger_words.choose_triggers(list(record.objects), trigger, is_inside=form == "bundle")
    if not is_file_name(out):
        return words
    if form == "hub" or (form == "embedding" and len(words) > 1):
        raise UsageError(f"{form} writes several files, {out} is one", "give a folder with `--out DIR`")
    if form != "embedding":
        return words
    (name,) = words
    if trigger and words[name] != out.stem:
        raise UsageError(
            f"the file {out.name} and --trigger {words[name]} are two names",
            "a file's name is its trigger: leave one of them away",
        )
    return {name: out.stem}


def _list_outputs(store: Store, exported: _AdapterExport, form: str, out: Path) -> Iterator[OutputFile]:
    """Encode the files of one format other than `hub`."""
    name = exported.record.name
    names = {"diffusers": DIFFUSERS_FILE, "kohya": f"{name}.safetensors", "bundle": f"{name}-bundle.safetensors"}
    files = (
        {form: names[form]}
        if form in names
        else {o: f"{exported.words[o]}.safetensors" for o in exported.record.objects}
    )
    is_own = _has_signature if form in ("kohya", "bundle") else _is_reproducible
    for kind, file in files.items():
        yield OutputFile(
            out if is_file_name(out) else out / file, exported.encode(kind), partial(is_own, store, exported, kind)
        )


def _has_signature(store: Store, exported: _AdapterExport, kind: str, content: bytes) -> bool:
    """Whether a file's metadata names a version of this adapter, and its tensors match the stored hash."""
    try:
        length = int.from_bytes(content[:8], "little")
        said = json.loads(content[8 : 8 + length])["__metadata__"]
        source = json.loads(said["objtune"])
        whole = said["sshs_model_hash"] == hashlib.sha256(content[8 + length :]).hexdigest()
        return (
            whole
            and source["digest"] in {r.digest for r in _read_versions(store, exported.record)}
            and bool(source["digest"])
        )
    except (ValueError, KeyError, TypeError):
        return False


def _is_reproducible(store: Store, exported: _AdapterExport, kind: str, content: bytes) -> bool:
    """Whether a file without metadata equals the export of some version of this adapter in some number format."""
    for record in _read_versions(store, exported.record):
        tensors = store.read(record.ref)[1]
        for dtype in DTYPES:
            with contextlib.suppress(ObjtuneError, KeyError):
                if (
                    _AdapterExport(record, convert(record.ref, tensors, dtype), exported.family, exported.words).encode(
                        kind
                    )
                    == content
                ):
                    return True
    return False


def _read_versions(store: Store, record: Record) -> Iterator[Record]:
    """Records of all readable versions of an adapter, newest first."""
    for version in reversed(store.list_versions("adapter", record.name)):
        with contextlib.suppress(ObjtuneError):
            yield store.read_record(Ref("adapter", record.name, version))


def _embedding_tensors(tensors: Mapping[str, Any], name: str, family: Family, only: str) -> dict[str, Any]:
    """A token's vectors under the keys of an embedding file; `only` is the key where there is one text encoder."""
    keys = file_names.of_family(family).embedding_keys or (only,)
    return {key: tensors[own] for key, own in zip(keys, adapter.token_names(name), strict=False)}


def diffusers_keys(tensors: Mapping[str, Any], family: Family = families.SD1) -> dict[str, Any]:
    """Rename LoRA tensors to peft keys below `unet.` or `transformer.`, and text encoders of imported adapters; alpha = rank."""
    named = (
        (k.replace(adapter.DENOISER, f"{family.denoiser}.", 1) if k.startswith(adapter.DENOISER) else k, v)
        for k, v in _fill_biases(tensors).items()
    )
    return {k: v for k, v in named if k.startswith((f"{family.denoiser}.", *KOHYA_PREFIXES))}


def _fill_biases(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add zero biases to all layers of a network that has any, because peft expects all or none."""
    import numpy as np

    missing: dict[str, Any] = {}
    for prefix in {key.split(".")[0] for key in tensors if key.endswith(".lora_B.bias")}:
        for key, value in tensors.items():
            if key.startswith(f"{prefix}.") and key.endswith(".lora_B.weight"):
                missing[key.removesuffix("weight") + "bias"] = np.zeros(value.shape[0], value.dtype)
    return {**missing, **tensors}


def kohya_keys(tensors: Mapping[str, Any], family: Family = families.SD1) -> dict[str, Any]:
    """Rename LoRA tensors to kohya keys: `lora_unet_…lora_down.weight`, `…lora_up.weight` and an explicit `…alpha` per layer.

    Raises:
        IncompatibleError: A layer has no kohya key.
    """
    import numpy as np

    named: dict[str, Any] = {}
    for prefix, start in KOHYA_PREFIXES.items():
        ends = [
            key.removeprefix(prefix).removesuffix(".lora_A.weight")
            for key in tensors
            if key.startswith(prefix) and ".lora_A." in key
        ]
        layers = {
            end: (tensors[f"{prefix}{end}.lora_A.weight"], tensors[f"{prefix}{end}.lora_B.weight"]) for end in ends
        }
        bias_vectors = {
            end: tensors[f"{prefix}{end}.lora_B.bias"] for end in ends if f"{prefix}{end}.lora_B.bias" in tensors
        }
        biases = {end: (np.ones((1, 1), bias.dtype), np.asarray(bias)[:, None]) for end, bias in bias_vectors.items()}
        if prefix == adapter.DENOISER:
            names = file_names.of_family(family)
            layers, biases = names.to_kohya(layers), names.to_kohya(biases)
        elif prefix == adapter.TEXT_ENCODERS[0] and len(family.encoders) == 1:
            start = "lora_te_"
        for layer, (down, up) in layers.items():
            stem = start + layer.replace(".", "_")
            named |= {
                f"{stem}.lora_down.weight": down,
                f"{stem}.lora_up.weight": up,
                f"{stem}.alpha": np.array(float(down.shape[0]), np.float32),
            }
        named |= {f"{start}{layer.replace('.', '_')}.diff_b": (up @ down)[:, 0] for layer, (down, up) in biases.items()}
    return named


def _kohya_metadata(
    record: Record, tensors: Mapping[str, Any], family: Family, words: Mapping[str, str], *, inside: bool
) -> dict[str, str]:
    """ModelSpec and kohya metadata. `words`: object to trigger word. `inside`: the vectors are in the same file."""
    rank = next(str(v.shape[0]) for k, v in tensors.items() if "lora_A" in k)
    licence = (
        {"modelspec.license": model_card.base_licence(record, family)[0]}
        if model_card.base_licence(record, family)[0]
        else {}
    )
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.implementation": "diffusers",
        "modelspec.title": record.name,
        "modelspec.tags": "Object",
        "modelspec.trigger_phrase": " ".join(words.values()),
        "modelspec.usage_hint": "the embedding is inside"
        if inside
        else f"with the embedding {', '.join(f'{w}.safetensors' for w in words.values())} of the same object",
        "ss_network_module": file_names.of_family(family).kohya_network_module,
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_network_args": "{}",
        "ss_output_name": record.name,
        "ss_sd_model_name": record.base["id"],
        "objtune": safetensors_format.canonical_json(
            {"ref": str(record.ref), "schema": record.schema, "digest": record.digest}
        ),
        **licence,
        **_architecture_metadata(record, tensors, family),
    }


def _architecture_metadata(record: Record, tensors: Mapping[str, Any], family: Family) -> dict[str, str]:
    """Metadata that names the base's family; for SD 1.x only if the width of the text condition is 768."""
    if family is families.SD1:
        widths = {v.shape[1] for k, v in tensors.items() if "attn2.to_k.lora_A" in k}
        if widths != {768}:
            return {"ss_v2": "True"} if widths == {1024} else {}
    prediction = record.base.get("prediction", "epsilon")
    names = file_names.of_family(family)
    said = {"ss_v2": str(family is families.SD2), "ss_base_model_version": names.version}
    if family is families.SD2:
        said["ss_base_model_version"] += "_v" if prediction == "v_prediction" else ""
        return said | {
            "modelspec.architecture": f"stable-diffusion-v2-{'768-v' if prediction == 'v_prediction' else '512'}/lora",
            "modelspec.prediction_type": "v" if prediction == "v_prediction" else "epsilon",
        }
    return said | {
        "modelspec.architecture": f"{names.architecture}/lora",
        "modelspec.prediction_type": prediction.removesuffix("_prediction"),
    }


def body_hash(tensors: Mapping[str, Any]) -> str:
    """SHA-256 of the bytes after the header of the encoded file, kohya's `sshs_model_hash`."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(artifacts.to_array(tensors[name])[1].tobytes())
    return digest.hexdigest()


def embedding_hash(tensors: Mapping[str, Any], name: str, family: Family) -> str:
    """SHA-256 of the file that the format `embedding` writes for an object."""
    return hashlib.sha256(
        _encode_file(_embedding_tensors(tensors, name, family, f"<{name}>"), PLAIN_METADATA)
    ).hexdigest()


def _encode_file(tensors: Mapping[str, Any], metadata: dict[str, str]) -> bytes:
    """Encode a safetensors file with sorted keys; ModelSpec metadata gets the hash of the bytes after the header."""
    arrays = {name: artifacts.to_array(value) for name, value in tensors.items()}
    specs = {name: (kind, array.shape) for name, (kind, array) in arrays.items()}
    body = b"".join(arrays[name][1].tobytes() for name in sorted(arrays))
    if "modelspec.sai_model_spec" in metadata:
        digest = body_hash(tensors)
        metadata = metadata | {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}
    return safetensors_format.encode_with_metadata(metadata, specs) + body
