"""LoRAs that act beside the objects of a prompt, such as styles: finds their files and makes them part of the loaded base."""

import contextlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from objtune_cli import paths
from objtune_cli.errors import InputError, MissingError, NonFiniteError, UsageError
from objtune_cli.generation import fast_loras, lora_hashes
from objtune_cli.generation.fast_loras import FastLora
from objtune_cli.interchange import import_, import_contents, import_sources
from objtune_cli.interchange.import_sources import ImportFile
from objtune_cli.models import hub_cache
from objtune_cli.store.kinds import adapter, scene
from objtune_cli.store.refs import Ref
from objtune_cli.workflow.context import StageContext

if TYPE_CHECKING:
    from objtune_cli.models.base_model import BaseModel

MAX_STRENGTH = 10.0
"""Largest strength of a LoRA, with either sign; sliders are used at several times their own strength."""
FOLDER = "loras"
"""Folder of the project in which LoRAs are found by their names, as `<lora:style:0.7>` names them."""
_NUMBER = re.compile(r"[-+]?(?:[0-9]{1,9}\.?[0-9]*|\.[0-9]+)")
_ADAPTER = re.compile(r"(?:adapter/)?[a-z0-9][a-z0-9._-]*(?:@[0-9]+)?")

Tags = Sequence[tuple[str, float]]
"""Name and strength of each `<lora:name:0.7>` of a prompt."""
Inputs = tuple[tuple[str, str], ...]
LoadedLoras = dict[Inputs, dict[str, Any]]
"""`ExtraLora.inputs` to tensors with an adapter's names."""


@dataclass(frozen=True, slots=True)
class ExtraLora:
    """A LoRA beside the objects.

    Attributes:
        name: As in `<lora:name:0.7>`. strength: Factor of its weights.
        hash: Of its weights, as in A1111's `Lora hashes`; "" if it is unknown.
        inputs: (ref or "", SHA-256) of the adapter, or of its files and the settings beside them.
        files: Its files; empty for an adapter. metadata: Of the header of the first file.
    """

    name: str
    strength: float
    hash: str
    inputs: Inputs
    files: tuple[ImportFile, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        """The form in which A1111's prompts name it."""
        return f"<lora:{self.name}:{self.strength:g}>"


def find_loras(ctx: StageContext, setting: str, tags: Sequence[Tags]) -> list[list[ExtraLora]]:
    """Find the LoRAs of each prompt: those of the setting `generate.lora`, then its own tags.

    Args:
        setting: One LoRA a line, each with its strength behind a colon.
        tags: Name and strength of each `<lora:name:0.7>`, for each prompt.

    Raises:
        UsageError: A strength is no number or out of range, or a LoRA is named twice.
        InputError: A file cannot be read. MissingError: There is no such LoRA.
    """
    of_all = [_find_lora(ctx, *_parse_strength(line)) for line in paths.to_lora_list(setting).splitlines()]
    by_tag = {tag: _find_lora(ctx, tag[0], _check_strength(*tag), is_tag=True) for tag in itertools.chain(*tags)}
    loras = [[*of_all, *(by_tag[tag] for tag in dict.fromkeys(own))] for own in tags]
    for each in loras:
        _check_distinct(each)
    for lora in {id(lora): lora for lora in itertools.chain(*loras)}.values():
        if not lora.strength:
            ctx.report.note(f"the LoRA {lora.name} has strength 0 and does not act")
    return [[lora for lora in each if lora.strength] for each in loras]


def _check_distinct(loras: Sequence[ExtraLora]) -> None:
    """Refuse one LoRA that is named twice, and two LoRAs of one name."""
    for a, b in itertools.combinations(loras, 2):
        if a.inputs == b.inputs:
            raise UsageError(f"the LoRA {a.name} is named twice", "name it once, with one strength")
        if a.name == b.name:
            raise UsageError(f"two LoRAs have the name {a.name}", "rename one of the files")


def find_fast_lora(ctx: StageContext, loras: Sequence[ExtraLora]) -> FastLora | None:
    """The needs of the first LoRA of few steps; None without one."""
    fast_loras = (_recognize(ctx, lora.name, lora.metadata) for lora in loras)
    return next(filter(None, fast_loras), None)


def _recognize(ctx: StageContext, name: str, metadata: Mapping[str, str]) -> FastLora | None:
    return fast_loras.recognize(name, metadata, is_flow=ctx.base.family.prediction == "flow")


def _parse_strength(line: str) -> tuple[str, float | None]:
    """The LoRA and the strength of one line; None if it has none.

    Raises:
        UsageError: The strength is no number, or out of range.
    """
    if paths.path_exists(Path(line)):
        return line, None
    name, strength = paths.split_strength(line)
    if strength and not _NUMBER.fullmatch(strength):
        raise UsageError(
            f"the strength of the LoRA {name} is {strength!r}", f"a number behind the name: `--lora {quote(name)}:0.7`"
        )
    return name, _check_strength(name, float(strength)) if strength else None


def _check_strength(name: str, strength: float) -> float:
    if not abs(strength) <= MAX_STRENGTH:
        raise UsageError(
            f"the strength of the LoRA {name} is {strength:g}",
            f"from -{MAX_STRENGTH:g} to {MAX_STRENGTH:g}; 1 is usual",
        )
    return strength


def _find_lora(ctx: StageContext, name: str, strength: float | None, *, is_tag: bool = False) -> ExtraLora:
    """Find a LoRA: a file or folder, a file in the project's folder of LoRAs, an adapter, or a hub repository in the cache.

    Raises:
        MissingError: There is none.
    """
    candidates = [Path(name)] if not is_tag else []
    if "/" not in name:
        files = (f"{name}.safetensors", name)
        candidates += [*(ctx.store.backend.path(f"{FOLDER}/{file}") for file in files), *map(Path, files)]
    path = next(filter(paths.path_exists, candidates), None) or _find_in_cache(name)
    if path is not None:
        return _read_files(ctx, path, strength)
    if name.startswith(("http://", "https://", "https:/", "http:/")):
        raise InputError(f"{name} is an address, not a file", "download it, and give the file")
    is_adapter = _ADAPTER.fullmatch(name) and (
        name.startswith("adapter/") or ctx.store.list_versions("adapter", name.partition("@")[0])
    )
    if is_adapter:
        return _read_adapter(ctx, ctx.store.find(name, ("adapter",)), strength)
    raise MissingError(f"there is no LoRA {name}", _suggest_places(ctx, name))


def _suggest_places(ctx: StageContext, name: str) -> str:
    names = [Path(entry.name) for entry in ctx.store.backend.list(f"{FOLDER}/")]
    names_in_folder = sorted(name.stem for name in names if name.suffix == ".safetensors")
    if paths.is_hub_id(name):
        return f"`hf download {name}` brings it; or give a .safetensors file"
    others = f"; {FOLDER}/ contains {', '.join(names_in_folder[:8])}" if names_in_folder else ""
    return f"give a .safetensors file, an adapter, or the name of a file in the project's folder {FOLDER}/{others}"


def _find_in_cache(name: str) -> Path | None:
    """The file or folder of `owner/name` or `owner/name/file.safetensors` in the hub's cache."""
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if not repository or owner == "adapter" or not paths.is_hub_id(f"{owner}/{repository}"):
        return None
    folder = hub_cache.find_any_snapshot(f"{owner}/{repository}")
    path = folder / file if folder and file else folder
    return path if path is not None and path.exists() else None


def _read_files(ctx: StageContext, path: Path, strength: float | None) -> ExtraLora:
    files = import_sources.read_files([path])
    inputs = [("", file.sha256) for file in files]
    inputs += [("", import_sources.sha256_of(file.config)) for file in files if file.config]
    name, metadata = _name_of(files[0].path, path), import_contents.read_metadata(files[0].data)
    if strength is None:
        fast = _recognize(ctx, name, metadata)
        strength = fast.strength if fast else 1.0
    return ExtraLora(name, strength, files[0].body[: lora_hashes.DIGITS], tuple(inputs), tuple(files), metadata)


def _name_of(file: Path, location: Path) -> str:
    """The name of a LoRA's file; of the folder if the file has the name that every program writes."""
    name = file.stem
    if name in import_sources.WEIGHT_NAMES:
        folder = (location if location.is_dir() else file.parent).absolute()
        if folder.parent.name == "snapshots":  # of the hub's cache
            folder = folder.parent.parent
            name = folder.name.rpartition("--")[2]
        else:
            name = folder.name
    return re.sub(r"[:,<>\"\s]+", "_", name)


def _read_adapter(ctx: StageContext, ref: Ref, strength: float | None) -> ExtraLora:
    record, sha256 = ctx.store.verify(ref)
    ctx.check_base(record, for_images=True)
    if not adapter.has_lora(ctx.store.read_tensor_specs(ref)):
        raise InputError(f"{ref} has no LoRA, only a token", "name its object in the prompt")
    hashes = lora_hashes.adapter_hashes(ctx, str(ref), sha256).get(lora_hashes.LORA_HASHES, {})
    strength = 1.0 if strength is None else strength
    return ExtraLora(record.name, strength, next(iter(hashes.values()), ""), ((str(ref), sha256),))


def scene_settings(loras: Sequence[ExtraLora]) -> dict[str, Any]:
    """The LoRAs for a scene's record; empty without any."""
    listed = [{"name": lora.name, "strength": lora.strength, "hash": lora.hash} for lora in loras]
    return {"loras": listed} if listed else {}


def scene_inputs(loras: Sequence[ExtraLora]) -> dict[str, dict[str, str]]:
    """The LoRAs as `inputs` of a scene's record."""
    sources = [source for lora in loras for source in lora.inputs]
    return {f"{scene.LORA_ROLE}{i}": {"ref": ref, "sha256": sha256} for i, (ref, sha256) in enumerate(sources)}


def infotext_tags(listed: Iterable[Mapping[str, Any]]) -> tuple[str, str]:
    """The LoRAs of a scene's record as the end of a prompt, and as a part of `Lora hashes`."""
    loras = [ExtraLora(each["name"], each["strength"], each["hash"], ()) for each in listed]
    return " ".join(lora.tag for lora in loras), ", ".join(f"{lora.name}: {lora.hash}" for lora in loras if lora.hash)


def load_loras(ctx: StageContext, model: "BaseModel", loras: Iterable[ExtraLora]) -> LoadedLoras:
    """The tensors of each LoRA, loaded once.

    Raises:
        InputError: A file contains no LoRA. IncompatibleError: It is for another base, or of another kind.
    """
    loaded: LoadedLoras = {}
    for lora in loras:
        if lora.inputs not in loaded:
            loaded[lora.inputs] = _load_weights(ctx, model, lora)
    return loaded


@contextlib.contextmanager
def active_loras(model: "BaseModel", loras: Sequence[ExtraLora], loaded: LoadedLoras) -> Iterator[None]:
    """Let LoRAs act on a base.

    Raises:
        NonFiniteError: Names them if images drawn with them are not finite.
    """
    from objtune_cli.lora import forward_hooks

    try:
        with forward_hooks.added_to_base(model, [(loaded[lora.inputs], lora.strength) for lora in loras]):
            yield
    except NonFiniteError as error:
        if not loras or not error.of_base:
            raise
        names = " and ".join(lora.name for lora in loras)
        raise NonFiniteError(
            f"{error.message}, with the LoRA {names}", "use less strength behind its name, or leave it out"
        ) from None


def _load_weights(ctx: StageContext, model: "BaseModel", lora: ExtraLora) -> dict[str, Any]:
    """The tensors of a LoRA with an adapter's names, without token vectors."""
    import torch

    from objtune_cli.lora import import_kinds
    from objtune_cli.lora.import_source import BUNDLED_VECTORS

    if not lora.files:
        ((ref, sha256),) = lora.inputs
        ctx.store.require_finite(ctx.store.find(ref, ("adapter",)))
        _, arrays = ctx.store.read(ctx.store.find(ref, ("adapter",)), sha256)
        return {key: torch.from_numpy(value.copy()) for key, value in arrays.items() if ".lora_" in key}
    sources = [import_.open_source(_refuse_pickle(file), allow_pickle=False) for file in lora.files]
    sources = [source for source in sources if import_kinds.is_lora(source.weights)]
    if not sources:
        raise InputError(
            f"{lora.files[0].what} contains no LoRA",
            f"`objtune import {quote(str(lora.files[0].path))} --class WORD` reads an embedding",
        )
    tokens = {match[1] for source in sources for key in source.weights if (match := BUNDLED_VECTORS.fullmatch(key))}
    if tokens:
        ctx.report.note(
            f"{sources[0].what} also contains the embedding of {', '.join(sorted(tokens))}, which acts only after `objtune import`"
        )
    return import_.read_layers(ctx, model, sources)


def _refuse_pickle(file: ImportFile) -> ImportFile:
    """The file, unless it is a pickle.

    Raises:
        InputError: It is one.
    """
    if not import_sources.is_safetensors(file.data) and file.path.suffix.lower() in import_sources.PICKLE_SUFFIXES:
        raise InputError(
            f"{file.what} is a pickle, which can run code when it is loaded",
            "get it as .safetensors, or read it with `objtune import --allow-pickle`",
        )
    return file
