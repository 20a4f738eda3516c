"""The models that Hugging Face's cache holds on this machine; nothing is downloaded here."""

import contextlib
import json
import re
from pathlib import Path

from objtune_cli.errors import UsageError
from objtune_cli.models.families import FAMILIES
from objtune_cli.models.families.fingerprints import CLIP_FOLDERS, IGNORED_FILES

HUB_REPOSITORIES = {alias: repository for family in FAMILIES for alias, (repository, _) in family.hub.items()}
"""Aliases of base models, and their repositories on the hub."""
REVISIONS = {repository: commit for family in FAMILIES for repository, commit in family.hub.values()}
"""The commit of each repository that `fetch` downloads; of other repositories it takes `main`."""

PARTS = tuple(dict.fromkeys(part for family in FAMILIES for part in (*family.parts, *CLIP_FOLDERS)))
BASE_FILES = (
    "model_index.json",
    *(f"{part}/*.{end}" for part in PARTS for end in ("json", "txt", "jinja", "safetensors")),
)
"""The files of a base model's repository that `fetch` downloads; pickles are not among them."""
SINGLE_WEIGHTS = "model.safetensors"
FEATURE_MODEL_FILES = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer*.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    SINGLE_WEIGHTS,
)
"""The files of a CLIP or DINO repository."""
SHARD_INDEX = "model.safetensors.index.json"
WEIGHT_SHARDS = (SHARD_INDEX, "model-*-of-*.safetensors")
"""The weights of large models in several files, instead of one."""
SEGMENTER_FILES = ("processor_config.json",)
"""The further files of a repository of SAM 2.1 or SAM 3."""
ONNX_NETWORKS = ("onnx/model.onnx", "model.onnx")
"""The network of an ONNX repository, in float32."""
ONNX_FILES = ("config.json", "preprocessor_config.json", *ONNX_NETWORKS, *(f"{name}_data" for name in ONNX_NETWORKS))
"""The files of a repository with a salient-object network in ONNX."""
PICKLED_WEIGHTS = "pytorch_model.bin"
"""The weights of CLIP and DINO repositories without safetensors; only its tensors are read."""
CACHE_ERRORS = (ValueError, OSError, RuntimeError)
"""Errors of huggingface_hub for a missing snapshot, an unreadable cache, and a user without a home folder."""


def resolve_hub_id(name: str) -> str:
    """Return the hub repository of an alias or hub id.

    Raises:
        UsageError: The name is neither.
    """
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not ("/" in name or name in HUB_REPOSITORIES):
        page = re.match(r"https?://huggingface\.co/([\w.-]+/[\w.-]+)", name)
        intended = page[1] if page else "" if "/" in name else re.sub(r"[\W_]", "", name.lower())
        suggestion = f"did you mean `--base {intended}`? " if page or intended in ("toybox", *HUB_REPOSITORIES) else ""
        raise UsageError(
            f"there is no base {name}",
            f"{suggestion}known: toybox, {', '.join(HUB_REPOSITORIES)}, a diffusers folder, a .safetensors checkpoint, or a hub id",
        )
    return HUB_REPOSITORIES.get(name, name)


def find_snapshot(repository: str) -> Path | None:
    """Return the folder of a complete base model in the cache: the pinned commit, else `main`."""
    from huggingface_hub import snapshot_download

    for revision in filter(None, (REVISIONS.get(repository), "main")):
        with contextlib.suppress(*CACHE_ERRORS):
            folder = snapshot_download(
                repository,
                revision=revision,
                local_files_only=True,
                allow_patterns=list(BASE_FILES),
                ignore_patterns=list(IGNORED_FILES),
            )
            return Path(folder)
    return None


def find_transformers_model(repository: str, *, is_segmenter: bool = False) -> Path | None:
    """Return the folder of a complete CLIP, DINO or segmenter in the cache; safetensors, in one file or several, come before pickles."""
    from huggingface_hub import snapshot_download

    files = (*SEGMENTER_FILES, *FEATURE_MODEL_FILES) if is_segmenter else FEATURE_MODEL_FILES
    forms = {SINGLE_WEIGHTS: files, SHARD_INDEX: (*files, *WEIGHT_SHARDS)}
    forms |= {} if is_segmenter else {PICKLED_WEIGHTS: (*files, PICKLED_WEIGHTS)}
    for weights, patterns in forms.items():
        with contextlib.suppress(*CACHE_ERRORS):
            folder = Path(snapshot_download(repository, local_files_only=True, allow_patterns=list(patterns)))
            if (folder / weights).exists() and (weights != SHARD_INDEX or _has_shards(folder)):
                return folder
    return None


def find_onnx_model(repository: str) -> Path | None:
    """Return the folder of a complete ONNX network in the cache."""
    from huggingface_hub import snapshot_download

    with contextlib.suppress(*CACHE_ERRORS):
        folder = Path(snapshot_download(repository, local_files_only=True, allow_patterns=list(ONNX_FILES)))
        if any((folder / name).exists() for name in ONNX_NETWORKS):
            return folder
    return None


def _has_shards(folder: Path) -> bool:
    """Whether all files of weights that the index names are there.

    Raises:
        ValueError: The index cannot be read.
    """
    shards = json.loads((folder / SHARD_INDEX).read_bytes()).get("weight_map", {})
    return bool(shards) and all((folder / name).exists() for name in set(shards.values()))


def find_any_snapshot(repository: str) -> Path | None:
    """Return the folder of whatever the cache holds of a repository's newest known commit."""
    from huggingface_hub import snapshot_download

    with contextlib.suppress(*CACHE_ERRORS):
        return Path(snapshot_download(repository, local_files_only=True))
    return None


def has_repository(repository: str) -> bool:
    """Whether the cache has a folder for the repository, complete or not."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return (Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}").is_dir()
