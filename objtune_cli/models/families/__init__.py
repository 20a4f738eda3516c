"""The families of base models, one module each behind one interface (`interface.Family`); torch is loaded only where one works."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from objtune_cli.models.families.family import Family
from objtune_cli.models.families.sd1 import SD1
from objtune_cli.models.families.sd2 import SD2
from objtune_cli.models.families.sd3 import SD3, SD35
from objtune_cli.models.families.sdxl import SDXL

__all__ = ["FAMILIES", "SD1", "SD2", "SD3", "SD35", "SDXL", "Family", "detect_family", "get_family"]

FAMILIES: tuple[Family, ...] = (SD1, SD2, SDXL, SD3, SD35)


def get_family(name: str) -> Family:
    """The family of a name, as artifacts keep it; the first where they keep none.

    Raises:
        KeyError: No such family.
    """
    return {family.name: family for family in FAMILIES}[name or SD1.name]


def detect_family(folder: Path) -> Family | None:
    """The family of a diffusers folder, by its `model_index.json` and the configs of its parts; None: of none of them.

    Raises:
        OSError, ValueError, KeyError: `model_index.json` is not there, or cannot be read.
    """
    index = json.loads((folder / "model_index.json").read_bytes())
    kind, config = index["_class_name"], partial(_config, folder)
    return next((family for family in FAMILIES if family.matches(kind, config)), None)


def _config(folder: Path, part: str) -> Mapping[str, Any]:
    """A part's config; empty where it cannot be read: what is wrong with it is said where it is opened."""
    try:
        found = json.loads((folder / part / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
