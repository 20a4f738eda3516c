"""The families of base models: one module each, with the interface `family.Family`. Importing them does not load torch."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from objtune_cli.models.families.family import Family
from objtune_cli.models.families.flux2 import FLUX2_KLEIN
from objtune_cli.models.families.sd1 import SD1
from objtune_cli.models.families.sd2 import SD2
from objtune_cli.models.families.sd3 import SD3, SD35
from objtune_cli.models.families.sdxl import SDXL
from objtune_cli.models.families.z_image import Z_IMAGE

__all__ = [
    "FAMILIES",
    "FLUX2_KLEIN",
    "SD1",
    "SD2",
    "SD3",
    "SD35",
    "SDXL",
    "Z_IMAGE",
    "Family",
    "detect_family",
    "get_family",
]

SAME_FAMILY = {
    "StableDiffusionInpaintPipeline": "StableDiffusionPipeline", "StableDiffusionXLInpaintPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionInstructPix2PixPipeline": "StableDiffusionPipeline", "StableDiffusionXLInstructPix2PixPipeline": "StableDiffusionXLPipeline",
}  # fmt: skip
"""Pipelines of the same components as those of a family; the number of channels of their denoiser tells what they are for."""
FAMILIES: tuple[Family, ...] = (SD1, SD2, SDXL, SD3, SD35, FLUX2_KLEIN, Z_IMAGE)


def get_family(name: str) -> Family:
    """The family of a name in artifacts; SD 1.x if the artifact has none.

    Raises:
        KeyError: No such family.
    """
    return {family.name: family for family in FAMILIES}[name or SD1.name]


def detect_family(folder: Path) -> Family | None:
    """Detect the family of a diffusers folder from `model_index.json` and the configs; None if it belongs to none.

    Raises:
        OSError, ValueError, KeyError: `model_index.json` is missing or unreadable.
    """
    index = json.loads((folder / "model_index.json").read_bytes())
    kind, config = SAME_FAMILY.get(index["_class_name"], index["_class_name"]), partial(_config, folder)
    return next((family for family in FAMILIES if family.matches(kind, config)), None)


def _config(folder: Path, part: str) -> Mapping[str, Any]:
    """The config of a component; empty if it is unreadable, which loading the component reports."""
    try:
        config = json.loads((folder / part / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
