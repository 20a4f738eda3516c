"""How a network is opened whole: every weight that it has came out of the files, or the base is refused."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from objtune_cli.errors import DamagedError
from objtune_cli.models.families import pipeline_folder as folders

UNSAVED = ("position_ids",)
"""Ends of buffers that a network makes by itself; some files hold them."""


def open_part(kind: Any, folder: Path, part: str, **options: Any) -> Any:
    """A network of a diffusers folder; the libraries fill what a file lacks with random numbers, and say so only in their log.

    Raises:
        DamagedError: A weight is missing, or of another shape than the config says. MissingError, IncompatibleError: see `folder.find_weights`.
    """
    from huggingface_hub.errors import (
        StrictDataclassError,
    )  # what transformers' configs raise for a value of another type

    found = folders.find_weights(folder, part)
    try:
        network, told = kind.from_pretrained(
            folder / part,
            variant=found.variant or None,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except (RuntimeError, ValueError, StrictDataclassError) as error:
        raise DamagedError(
            f"the base in {folder} is damaged: {part} cannot be opened: {_first(error)}", folders.AGAIN
        ) from None
    refuse_incomplete(
        f"the base in {folder}", part, missing=told["missing_keys"], mismatched=told.get("mismatched_keys") or ()
    )
    network.unused_weights = sorted(str(key) for key in told["unexpected_keys"] if not str(key).endswith(UNSAVED))
    return network


def open_whole(kind: Any, source: Any, name: str, unread: tuple[str, ...] = (), **options: Any) -> Any:
    """A network of transformers from its own folder, as `open_part`.

    Args:
        name: What it is, for the message. unread: starts of weights that are never used.

    Raises:
        DamagedError: A weight is missing. What `from_pretrained` raises, else.
    """
    network, told = kind.from_pretrained(source, local_files_only=True, output_loading_info=True, **options)
    missing = [key for key in told["missing_keys"] if not str(key).startswith(unread)]
    refuse_incomplete(name, "it", missing=missing, mismatched=told.get("mismatched_keys") or ())
    return network


def refuse_incomplete(name: str, part: str, missing: Iterable[Any], mismatched: Iterable[Any] = ()) -> None:
    """Refuse a network that was not filled by its files.

    Args:
        name: Of the base. missing: names of weights that no file has. mismatched: name, shape and shape that the config says.

    Raises:
        DamagedError: Names the first of them and how many there are.
    """
    lost = sorted(str(key) for key in missing if not str(key).endswith(UNSAVED))
    if lost:
        more = f" and {len(lost) - 1} more weights" if len(lost) > 1 else ""
        raise DamagedError(f"{name} is damaged: {part} lacks {lost[0]}{more}", folders.AGAIN)
    for each in mismatched:
        key, shape, wanted = (each if isinstance(each, tuple | list) else (each, "of another shape", "its config"))[:3]
        raise DamagedError(
            f"{name} is damaged: {key} of {part} is {_sides(shape)}, its config says {_sides(wanted)}", folders.AGAIN
        )


def _sides(shape: Any) -> str:
    return " x ".join(str(side) for side in shape) if not isinstance(shape, str) else shape


def _first(error: Exception) -> str:
    """The first sentence of a library's message."""
    return str(error).strip().splitlines()[0].split(". If you want")[0]
