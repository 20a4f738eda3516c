"""What a base model needs besides its own files: CLIP models, a segmenter for photographs, and the models of `evaluate`."""

from dataclasses import dataclass
from pathlib import Path

from objtune_cli.models import hub_cache, segmenter_lookup
from objtune_cli.models.families import FAMILIES, Family
from objtune_cli.models.families.fingerprints import CLIP_FOLDERS

METRIC_MODELS = {"CLIP": "openai/clip-vit-base-patch32", "DINO": "facebook/dino-vits16"}
"""What `evaluate` asks about photographs by default."""


@dataclass(frozen=True, slots=True)
class NeededModel:
    """A model beside a base.

    Attributes:
        what: What it is for. repository: Where `fetch` finds it. folder: Where it is on this machine; None if it is missing.
        number: Of several of a kind, from 1. for_metrics: Whether only `evaluate` needs it.
    """

    what: str
    repository: str
    folder: Path | None
    number: str = ""
    for_metrics: bool = False


def family_of(name: str) -> Family | None:
    """Return the family of an alias; None for other names."""
    return next((family for family in FAMILIES if name in family.hub), None)


def companions(family: Family, folder: Path | None, *, with_metrics: bool = False) -> list[NeededModel]:
    """List the models that a base of a family needs for a run on photographs.

    Args:
        folder: The base's folder, which may have its own CLIP models. with_metrics: Also list the models of `evaluate`.
    """
    needed = []
    for number, (repository, own) in enumerate(zip(family.clip_models, CLIP_FOLDERS, strict=False), 1):
        inside = folder / own if folder is not None and (folder / own / "config.json").exists() else None
        here = inside or hub_cache.find_transformers_model(repository)
        counted = str(number) if len(family.clip_models) > 1 else ""
        needed.append(NeededModel("CLIP vision encoder", repository, here, counted))
    segmenter = next((cached for kind in ("sam3", "sam2") if (cached := segmenter_lookup.find_cached(kind))), None)
    repository = segmenter_lookup.RECOMMENDED["sam2"]
    needed.append(NeededModel("segmenter", repository, segmenter.folder if segmenter else None))
    metrics = METRIC_MODELS.items() if with_metrics else ()
    return needed + [
        NeededModel(f"{name} of evaluate", repository, hub_cache.find_transformers_model(repository), for_metrics=True)
        for name, repository in metrics
    ]
