"""The offer to show the object in the browser, where a mask is refused."""

import shlex
from importlib.util import find_spec
from pathlib import Path


def offer_page(hint: str, photo: Path) -> str:
    """A hint with `objtune ui PHOTO` behind it, if the extra `ui` is installed."""
    if find_spec("nicegui") is None:
        return hint
    return f"{hint}; or show it in the browser: `objtune ui {shlex.quote(str(photo))}`"
