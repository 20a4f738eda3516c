"""What TAB offers: names and refs of the project, read from file names alone."""

import os
from typing import TYPE_CHECKING

from objtune_cli import paths
from objtune_cli.errors import ObjtuneError
from objtune_cli.store import KINDS

if TYPE_CHECKING:
    from objtune_cli.store.store import Store


def _store() -> "Store":
    from objtune_cli.store.project import find_project

    folder = os.environ.get("OBJTUNE_PROJECT")
    return find_project(paths.to_place(folder)).store


def _offer(kinds: tuple[str, ...], incomplete: str) -> list[str]:

    try:
        matches = [r for kind in kinds for r in _store().list(kind)]
    except (ObjtuneError, OSError):
        return []
    return [str(r) for r in matches if str(r).startswith(incomplete)]


def any_ref(incomplete: str) -> list[str]:
    """Every artifact of the project."""
    return _offer(KINDS, incomplete)


def mask_ref(incomplete: str) -> list[str]:
    """Masks."""
    return _offer(("mask",), incomplete)


def trainable_ref(incomplete: str) -> list[str]:
    """Masks and embeddings."""
    return _offer(("mask", "embedding"), incomplete)


def adapter_ref(incomplete: str) -> list[str]:
    """Adapters."""
    return _offer(("adapter",), incomplete)


def object_name(incomplete: str) -> list[str]:
    """Names of objects."""
    names = [text.partition("/")[2].partition("@")[0] for text in _offer(("mask", "embedding", "adapter"), "")]
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]


def style_name(incomplete: str) -> list[str]:
    """Names of styles in objtune.toml."""
    from objtune_cli.config.resolve import Settings
    from objtune_cli.store.project import find_project

    folder = os.environ.get("OBJTUNE_PROJECT")
    try:
        styles = Settings(find_project(paths.to_place(folder)).settings, {}).styles
    except (ObjtuneError, OSError):
        return []
    return [name for name in sorted(styles) if name.startswith(incomplete)]
