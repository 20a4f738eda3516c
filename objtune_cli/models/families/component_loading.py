"""How a network is opened whole: every weight that it has came out of the files, or the base is refused."""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from objtune_cli.errors import DamagedError
from objtune_cli.models.families import pipeline_folder as folders

UNSAVED = ("position_ids",)
"""Ends of buffers that a network makes by itself; some files hold them."""
VERSION = r"\d+(\.\d+)*(\.?(a|b|rc|dev|post)\d+)*(\+[\w.]+)?"
"""The version of diffusers that wrote a config, which its pipelines parse."""
MAX_NUMBER = 2**31 - 1
"""Largest number in a network's config."""
UNUSED = ("pad_token_id", "bos_token_id")
"""Numbers in the configs of text encoders that nothing here reads."""
NULLABLE = ("out_channels",)
"""Keys that are declared as numbers and whose null the libraries read as the usual value."""


def load_component(kind: Any, folder: Path, part: str, **options: Any) -> Any:
    """A network of a diffusers folder; the libraries fill what a file lacks with random numbers, and say so only in their log.

    Raises:
        DamagedError: A weight is missing, or of another shape than the config says. MissingError, IncompatibleError: see `folder.find_weights`.
    """
    found = folders.find_weights(folder, part)
    check_config(kind, folder, part)
    with _refuse_unreadable(folder, part):
        network, told = kind.from_pretrained(
            folder / part,
            variant=found.variant or None,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    refuse_incomplete(
        f"the base in {folder}", part, missing=told["missing_keys"], mismatched=told.get("mismatched_keys") or ()
    )
    network.unused_weights = sorted(str(key) for key in told["unexpected_keys"] if not str(key).endswith(UNSAVED))
    return network


def load_tokenizer(kind: Any, folder: Path, part: str, **options: Any) -> Any:
    """A tokenizer of a diffusers folder.

    Raises:
        DamagedError: Its files cannot be read as a tokenizer's. OSError: there are none.
    """
    with _refuse_unreadable(folder, part):
        return kind.from_pretrained(folder / part, local_files_only=True, **options)


def load_complete(kind: Any, source: Any, name: str, unread: tuple[str, ...] = (), **options: Any) -> Any:
    """A network of transformers from its own folder, as `load_component`.

    Args:
        name: What it is, for the message. unread: starts of weights that are never used.

    Raises:
        DamagedError: A weight is missing. OSError, RuntimeError, ValueError: see `translate_errors`.
    """
    with translate_errors():
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


def check_config(kind: Any, folder: Path, part: str) -> None:
    """Refuse values in a part's config that the library takes, and at which the first use of the network fails.

    Raises:
        DamagedError: Names the key and its value.
    """
    declared = _value_types(kind)
    for key, value in folders.read_json(folder, f"{part}/config.json").items():
        if key in declared and not _fits(value, declared[key]) and not (key in NULLABLE and value is None):
            raise DamagedError(
                f"the base in {folder} is damaged: {part} cannot be opened: {key} in its config is {value!r}",
                f"correct it in {folder / part / 'config.json'}",
            )


def _value_types(kind: Any) -> dict[str, Any]:
    """The type of each config value: diffusers declares them; of transformers' classes, which check types themselves, those that may not be null."""
    config = getattr(kind, "config_class", None)
    if config is None:
        return {**typing.get_type_hints(inspect.unwrap(kind.__init__)), "_diffusers_version": re.Pattern}
    defaults = {field.name: type(field.default) for field in dataclasses.fields(config)}
    return {key: each for key, each in defaults.items() if each in (int, float) and key not in UNUSED}


def _fits(value: Any, declared: Any) -> bool:
    """Whether a config's value is of a declared type: a number, finite and not beyond all sizes, a text, or lists of those."""
    if typing.get_origin(declared) in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in typing.get_args(declared))
    if declared in (int, float):
        allowed, least = (int, 0) if declared is int else (int | float, -MAX_NUMBER)
        return isinstance(value, allowed) and not isinstance(value, bool) and least <= value <= MAX_NUMBER
    if declared is re.Pattern:
        return isinstance(value, str) and bool(re.fullmatch(VERSION, value))
    if declared is bool:
        return value is None or isinstance(value, bool)  # older configs have null for false
    if declared in (str, types.NoneType):
        return isinstance(value, declared)
    if declared is tuple or typing.get_origin(declared) is tuple:
        item = next(iter(typing.get_args(declared)), int)
        return isinstance(value, list) and all(_fits(each, item) for each in value)
    return True


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise ValueError for whatever a library raises over malformed files: KeyError, AttributeError, a bare Exception and a dozen more.

    Raises:
        OSError, ImportError, MemoryError, RuntimeError, ValueError: As the library raised them. ValueError: all others.
    """
    try:
        yield
    except (OSError, ImportError, MemoryError, RuntimeError, ValueError):
        raise
    except Exception as error:  # also bare ones, from tokenizers
        raise ValueError(first_line(error)) from None


@contextmanager
def _refuse_unreadable(folder: Path, part: str) -> Iterator[None]:
    """Refuse a base whose part a library cannot read."""
    try:
        with translate_errors():
            yield
    except (RuntimeError, ValueError) as error:
        message = f"the base in {folder} is damaged: {part} cannot be opened: {first_line(error)}"
        raise DamagedError(message, folders.AGAIN) from None


def _sides(shape: Any) -> str:
    return " x ".join(str(side) for side in shape) if not isinstance(shape, str) else shape


def first_line(error: Exception) -> str:
    """The first sentence of a library's message; the kind of error where it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". If you want")[0]
