"""The families of base models, one module each behind one interface (`interface.Family`); torch is loaded only where one works."""

import json
from pathlib import Path

from objtune_cli.families.interface import Family
from objtune_cli.families.sd1 import SD1
from objtune_cli.families.sd2 import SD2
from objtune_cli.families.sdxl import SDXL

FAMILIES: tuple[Family, ...] = (SD1, SD2, SDXL)


def named(name: str) -> Family:
    """The family of a name, as artifacts keep it; the first where they keep none.

    Raises:
        KeyError: No such family.
    """
    return {family.name: family for family in FAMILIES}[name or SD1.name]


def of(folder: Path) -> Family | None:
    """The family of a diffusers folder, by its `model_index.json` and its text encoder's config; None: of none of them.

    Raises:
        OSError, ValueError, KeyError: `model_index.json` is not there, or cannot be read.
    """
    index = json.loads((folder / "model_index.json").read_text())
    kind = index["_class_name"]
    try:
        encoder = json.loads((folder / "text_encoder" / "config.json").read_text())
    except (OSError, ValueError):
        encoder = None
    known = encoder if isinstance(encoder, dict) else {}  # what is wrong with it is said where it is opened
    return next((family for family in FAMILIES if family.owns(kind, known)), None)
