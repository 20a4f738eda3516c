"""`import`: convert LoRA and embedding files of other tools to an adapter."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from objtune_cli.errors import InputError
from objtune_cli.interchange import import_contents, import_sources
from objtune_cli.store.artifacts import Record
from objtune_cli.store.kinds import adapter
from objtune_cli.store.kinds.adapter import AdapterArtifact
from objtune_cli.store.refs import check_name
from objtune_cli.workflow import class_words
from objtune_cli.workflow.context import StageContext, StageResult, tool_versions

if TYPE_CHECKING:
    from torch import Tensor

    from objtune_cli.interchange.textual_inversion import TokenVectors
    from objtune_cli.lora.import_source import Source
    from objtune_cli.models.base_model import BaseModel

MIN_FREE_TOKENS = 10
"""A note is printed if an object's vectors leave fewer tokens than this for the rest of a prompt."""


def run(
    ctx: StageContext, files: list[Path], name: str, class_word: str, word: str, *, allow_pickle: bool
) -> StageResult:
    """Import one object from a LoRA file, an embedding file, or both; a folder stands for the files that diffusers and peft write.

    Args:
        word: Instance prompt of the LoRA ("sks dog"). Its token embeddings are used if no file has vectors.

    Raises:
        InputError: A file is unreadable, two files are of one kind, or a pickle is not allowed. IncompatibleError: The files are for another base.
    """
    name = check_name(name)
    import_files = import_sources.read_files(files)
    record = Record(
        "adapter", name, {name: class_word}, _inputs(import_files), _settings(import_files, word), ctx.base.record()
    )
    done = ctx.find_existing(record)
    if done:
        return done
    class_words.warn_unknown(ctx, class_word)
    from objtune_cli.interchange import textual_inversion
    from objtune_cli.models import placeholders

    sources = [open_source(file, allow_pickle) for file in import_files]
    model = ctx.load_base_model()
    layers = read_layers(ctx, model, sources)
    vectors = [each for each in map(textual_inversion.find_vectors, sources) if each]
    rows = (
        textual_inversion.join_vectors(model, vectors)
        if vectors
        else placeholders.class_token_embeddings(model, word or class_word)
    )
    _note_vectors(ctx, model, name, vectors, len(rows))
    tensors = AdapterArtifact({name: placeholders.split_encoders(rows, model.widths)}, layers).to_tensors()
    rank = max((v.shape[0] for k, v in tensors.items() if k.endswith(adapter.LORA_A)), default=0)
    metrics = {"rank": rank, "vectors": len(rows), "layers": sum(k.endswith(adapter.LORA_A) for k in tensors)}
    record = replace(record, inputs=_inputs(import_files, sources), metrics=metrics, tools=tool_versions())
    return StageResult(ctx.publish(record, tensors), metrics=metrics)


def _inputs(files: list[import_sources.ImportFile], sources: "list[Source] | None" = None) -> dict[str, dict[str, str]]:
    """Hashes of the files and of the settings next to them; for opened LoRA files also the hash of the bytes after the header."""
    hashes = {f"{adapter.FILE_ROLE}{i}": file.sha256 for i, file in enumerate(files)}
    hashes |= {
        f"{adapter.CONFIG_ROLE}{i}": import_sources.sha256_of(file.config)
        for i, file in enumerate(files)
        if file.config
    }
    for i, source in enumerate(sources or []):
        from objtune_cli.lora import import_kinds

        if import_kinds.is_lora(source.weights):
            hashes[f"{adapter.BODY_ROLE}{i}"] = files[i].body
    return {role: {"ref": "", "sha256": digest} for role, digest in hashes.items()}


def _settings(import_files: list[import_sources.ImportFile], word: str) -> dict[str, str]:
    """Settings that are part of an import's identity; files with scale settings in their header have one more."""
    from objtune_cli.lora.import_scale import HEADER

    return {"word": word} | (
        {"strength": "header"}
        if any(HEADER in import_contents.read_metadata(file.data) for file in import_files)
        else {}
    )


def open_source(file: import_sources.ImportFile, allow_pickle: bool) -> "Source":
    """Open a file and read the settings of its scale.

    Raises:
        InputError: The file is neither a LoRA nor an embedding.
    """
    from objtune_cli.lora import import_kinds, import_scale, import_source

    contents = import_contents.open_file(file, allow_pickle)
    whole = import_kinds.whole_kind(contents.tensors)
    if whole:
        raise InputError(
            f"{file.what} {whole[0]}, neither a LoRA nor an embedding", whole[1].format(path=quote(str(file.path)))
        )
    strengths = import_scale.read_header(contents.metadata, file.what)
    if file.config:
        what = f"{import_sources.PEFT_CONFIG} beside {file.what}"
        strengths = {"": import_scale.read_config(import_scale.parse(file.config, what), what)}
    return import_source.Source(file.what, contents.tensors, contents.metadata, strengths, file.network)


def read_layers(ctx: StageContext, model: "BaseModel", sources: "list[Source]") -> "dict[str, Tensor]":
    """LoRA layers of all files.

    Raises:
        InputError: Two files have layers of one network.
    """
    from objtune_cli.lora import import_keys, import_kinds

    layers: dict[str, Any] = {}
    for source in sources:
        if not import_kinds.is_lora(source.weights):
            continue
        own = import_keys.read_lora(model, source)
        if {key.split(".")[0] for key in own} & {key.split(".")[0] for key in layers}:
            raise InputError("two files of the same kind belong to two objects", "import each file under its own name")
        if not any(bool(value.any()) for key, value in own.items() if key.endswith(adapter.LORA_B)):
            ctx.report.note(f"{source.what} has no effect: all of its layers are zero")
        if (
            any(key.startswith("base_model.model.") for key in source.weights)
            and not source.strengths
            and not _has_alpha(source.weights)
        ):
            ctx.report.note(
                f"{source.what} has no {import_sources.PEFT_CONFIG} next to it, so its strength is unknown: alpha is assumed to equal the rank"
            )
        layers |= own
    return layers


def _has_alpha(weights: "Mapping[str, Tensor]") -> bool:
    return any(key.endswith(".alpha") for key in weights)


def _note_vectors(ctx: StageContext, model: "BaseModel", name: str, vectors: "list[TokenVectors]", count: int) -> None:
    """Report vectors that are not used, and vectors that leave few tokens of a prompt."""
    for each in vectors:
        if each.unread:
            ctx.report.note(
                f"{each.what} also contains vectors for T5, which are not used: objtune adds no tokens to T5"
            )
    limit = model.tokenizer.model_max_length - 2
    if vectors and limit - count < MIN_FREE_TOKENS:
        ctx.report.note(
            f"<{name}> has {count} vectors: they leave {limit - count} of a prompt's {limit} tokens for other words"
        )
