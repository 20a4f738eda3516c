"""Teach a text-to-image diffusion model one object from one photo. Importing this costs nothing."""

from typing import Any

from objtune_cli.version import __version__ as __version__

FUNCTIONS = (
    "project",
    "segment",
    "init_embedding",
    "train",
    "generate",
    "compose",
    "place",
    "export",
    "import_files",
    "StageResult",
    "ObjtuneError",
)
"""What `from objtune_cli import …` gives beside the version; see `api`."""


def __getattr__(name: str) -> Any:
    """The stages as functions, loaded when they are first asked for."""
    if name in FUNCTIONS:
        from objtune_cli import api

        return getattr(api, name)
    raise AttributeError(f"module 'objtune_cli' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *FUNCTIONS]
