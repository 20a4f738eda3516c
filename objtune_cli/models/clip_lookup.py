"""Finds the CLIP models whose text encoders a base model uses; their vision encoders make the prototype and the scores."""

from dataclasses import dataclass
from pathlib import Path

from objtune_cli import paths
from objtune_cli.errors import InputError, ResourceError, UsageError
from objtune_cli.models import hub_cache
from objtune_cli.models.families import Family
from objtune_cli.models.families.fingerprints import CLIP_FOLDERS


@dataclass(frozen=True, slots=True)
class ClipPaths:
    """The CLIPs of a base's first and second text encoder, folder or file; `names`: those outside of the base's folder."""

    first: Path | None
    second: Path | None
    names: str


def find_clips(family: Family, folder: Path, setting: str) -> ClipPaths:
    """Return the CLIPs of the setting `clip_model`, else those in the base's folder, else the family's from the cache.

    Args:
        setting: Folders, files or hub ids, separated by commas, in the order of the text encoders; "" searches.

    Raises:
        UsageError: More names than text encoders. ResourceError: one is not on this machine. InputError: a file of another format.
    """
    if setting:
        return _named_clips(family, [name.strip() for name in setting.split(",")])
    own = [
        folder / name if (folder / name / "config.json").exists() else None
        for name in CLIP_FOLDERS[: len(family.encoders)]
    ]
    if any(own):
        return _clip_paths(own, "")
    cached = [
        hub_cache.find_transformers_model(name) if hub_cache.has_repository(name) else None
        for name in family.clip_models
    ]
    return _clip_paths(cached, ",".join(name for name, path in zip(family.clip_models, cached, strict=True) if path))


def _named_clips(family: Family, names: list[str]) -> ClipPaths:
    if len(names) > len(family.encoders):
        raise UsageError(
            f"clip_model names {len(names)} models, but the base has {len(family.encoders)} text encoder(s)",
            "name at most one for each text encoder, in their order",
        )
    clips: list[Path | None] = [_find_clip(name) for name in names]
    return _clip_paths(clips, ",".join(Path(name).name if Path(name).exists() else name for name in names))


def _clip_paths(clips: list[Path | None], names: str) -> ClipPaths:
    return ClipPaths(clips[0], clips[1] if len(clips) > 1 else None, names)


def _find_clip(name: str) -> Path:
    path = Path(name)
    if path.is_file() and path.suffix != ".safetensors":
        raise InputError(f"{path} is not a safetensors file", "use the CLIP as a .safetensors file or as a folder")
    if path.exists():
        return path
    cached = hub_cache.find_transformers_model(name)
    if cached is None:
        hint = (
            f"if that is its hub id, `objtune fetch --model {name}` downloads it"
            if paths.is_hub_id(name)
            else "give its folder, its .safetensors file, or its hub id"
        )
        raise ResourceError(f"the CLIP {name} is not on this machine", hint)
    return cached
