"""Finds segmenters for photographs on this machine, as folders or in the hub's cache; nothing is downloaded here."""

import json
from dataclasses import dataclass
from pathlib import Path

from objtune_cli import paths
from objtune_cli.errors import InputError, ResourceError
from objtune_cli.models import hub_cache

REPOSITORIES = {
    "sam3": ("facebook/sam3",),
    "sam2": (
        "facebook/sam2.1-hiera-large",
        "facebook/sam2.1-hiera-base-plus",
        "facebook/sam2.1-hiera-small",
        "facebook/sam2.1-hiera-tiny",
    ),
    "salient": ("onnx-community/BiRefNet-ONNX", "onnx-community/BiRefNet_lite-ONNX", "onnx-community/ormbg-ONNX"),
}
"""Repositories of each kind of segmenter, best first."""
RECOMMENDED = {
    "sam3": "facebook/sam3",
    "sam2": "facebook/sam2.1-hiera-base-plus",
    "salient": "onnx-community/BiRefNet_lite-ONNX",
}
"""The repository of each kind that hints and `fetch` name."""
TITLES = {"sam3": "SAM 3", "sam2": "SAM 2.1", "salient": "a salient-object network"}
"""Names of the kinds, best first."""
MODEL_TYPES = {"sam2": "sam2", "sam2_video": "sam2", "sam3_video": "sam3"}
"""`model_type` of a folder's config.json to the kind of segmenter."""


@dataclass(frozen=True, slots=True)
class SegmenterFolder:
    """A segmenter for photographs on this machine.

    Attributes:
        kind: sam2, sam3 or salient. folder: Where it is. label: Its name for messages.
    """

    kind: str
    folder: Path
    label: str


def find_segmenter(kind: str, model: str = "") -> SegmenterFolder:
    """Find a segmenter of a kind.

    Args:
        kind: sam2, sam3, salient, or "" for the kind of `model`. model: Folder or hub id; "" searches the hub's cache.

    Raises:
        ResourceError: It is not on this machine. InputError: The folder has another kind of model.
    """
    if not model:
        cached = find_cached(kind)
        if cached is None:
            raise _missing(TITLES[kind], RECOMMENDED[kind])
        return cached
    folder = Path(model) if Path(model).is_dir() else None
    if folder is None and paths.is_hub_id(model):
        folder = find_repository(model)
    if folder is None:
        raise _missing(f"the segmenter {model}", model if paths.is_hub_id(model) else RECOMMENDED[kind or "sam2"])
    actual = read_kind(folder)
    if kind and actual != kind:
        raise InputError(
            f"{model} is {TITLES[actual]}, and the segmenter is {kind}",
            f"`--segmenter {actual}`, or the folder of {TITLES[kind]}",
        )
    return SegmenterFolder(actual, folder, f"{TITLES[actual]} ({folder.name if Path(model).is_dir() else model})")


def find_cached(kind: str) -> SegmenterFolder | None:
    """Find the best segmenter of a kind in the hub's cache."""
    for repository in REPOSITORIES[kind]:
        if hub_cache.has_repository(repository) and (folder := find_repository(repository)):
            return SegmenterFolder(kind, folder, f"{TITLES[kind]} ({repository})")
    return None


def find_best() -> SegmenterFolder | None:
    """Find the best segmenter for photographs in the hub's cache."""
    return next((cached for kind in TITLES if (cached := find_cached(kind))), None)


def find_repository(repository: str) -> Path | None:
    """Return the folder of a complete segmenter in the hub's cache."""
    return hub_cache.find_transformers_model(repository, is_segmenter=True) or hub_cache.find_onnx_model(repository)


def find_onnx_file(folder: Path) -> Path | None:
    """Return the network of a folder in the layout of the hub's ONNX repositories."""
    return next((folder / name for name in hub_cache.ONNX_NETWORKS if (folder / name).is_file()), None)


def read_kind(folder: Path) -> str:
    """Read the kind of segmenter in a folder: sam2, sam3 or salient.

    Raises:
        InputError: The folder has no config.json, or one of another kind of model.
    """
    if find_onnx_file(folder) is not None and not (folder / hub_cache.SINGLE_WEIGHTS).exists():
        return "salient"
    try:
        config = json.loads((folder / "config.json").read_bytes())
        model_type = str(config["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{folder} is no model of transformers: it has no readable config.json",
            "give a folder of SAM 2.1 or SAM 3 in transformers' layout",
        ) from None
    if model_type not in MODEL_TYPES:
        raise InputError(
            f"{folder} is a {model_type}, not SAM 2.1, SAM 3 or a salient-object network",
            f"give a folder of SAM 2.1 or SAM 3 in transformers' layout, such as {RECOMMENDED['sam2']}",
        )
    return MODEL_TYPES[model_type]


def _missing(what: str, repository: str) -> ResourceError:
    return ResourceError(f"{what} is not on this machine", f"`objtune fetch --model {repository}` downloads it")
