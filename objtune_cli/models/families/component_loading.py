"""Load networks completely: a base is refused if its files lack a weight of a network."""

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
"""Suffixes of buffers that networks compute themselves; some files store them."""
VERSION = r"\d+(\.\d+)*(\.?(a|b|rc|dev|post)\d+)*(\+[\w.]+)?"
"""Pattern of the version of diffusers in a config, which its pipelines parse."""
MAX_NUMBER = 2**31 - 1
"""Largest valid number in a network's config."""
UNUSED = ("pad_token_id", "bos_token_id")
"""Numbers in the configs of text encoders that are not used."""
NULLABLE = ("out_channels", "sliding_window")
"""Keys with numbers as values, for which the libraries accept null as the default."""


def load_component(kind: Any, folder: Path, part: str, **options: Any) -> Any:
    """Load a network of a diffusers folder.

    The libraries fill missing weights with random numbers and only log it; here that is an error.

    Raises:
        DamagedError: A weight is missing, or its shape contradicts the config.
        MissingError, IncompatibleError: As `pipeline_folder.find_weights`.
    """
    weights = folders.find_weights(folder, part)
    check_config(kind, folder, part)
    with _refuse_unreadable(folder, part):
        network, report = kind.from_pretrained(
            folder / part,
            variant=weights.variant or None,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    refuse_incomplete(
        f"the base in {folder}", part, missing=report["missing_keys"], mismatched=report.get("mismatched_keys") or ()
    )
    network.unused_weights = sorted(str(key) for key in report["unexpected_keys"] if not str(key).endswith(UNSAVED))
    return network


def load_tokenizer(kind: Any, folder: Path, part: str, **options: Any) -> Any:
    """Load a tokenizer of a diffusers folder.

    Raises:
        DamagedError: Its files are unreadable. OSError: They are missing.
    """
    with _refuse_unreadable(folder, part):
        return kind.from_pretrained(folder / part, local_files_only=True, **options)


def load_complete(kind: Any, source: Any, name: str, unread: tuple[str, ...] = (), **options: Any) -> Any:
    """Load a network of transformers from its own folder; missing weights are an error, as in `load_component`.

    Args:
        name: Its name in messages. unread: Prefixes of weights that are never used.

    Raises:
        DamagedError: A weight is missing. OSError, RuntimeError, ValueError: As `translate_errors`.
    """
    with translate_errors():
        network, report = kind.from_pretrained(source, local_files_only=True, output_loading_info=True, **options)
    missing = [key for key in report["missing_keys"] if not str(key).startswith(unread)]
    refuse_incomplete(name, "it", missing=missing, mismatched=report.get("mismatched_keys") or ())
    return network


def refuse_incomplete(name: str, part: str, missing: Iterable[Any], mismatched: Iterable[Any] = ()) -> None:
    """Refuse a network whose files lack weights, or have them in other shapes.

    Args:
        name: Name of the base. missing: Names of missing weights.
        mismatched: Name, shape in the file, and shape in the config of weights.

    Raises:
        DamagedError: Names the first of them and their number.
    """
    absent = sorted(str(key) for key in missing if not str(key).endswith(UNSAVED))
    if absent:
        more = f" and {len(absent) - 1} more weights" if len(absent) > 1 else ""
        raise DamagedError(f"{name} is damaged: {part} lacks {absent[0]}{more}", folders.AGAIN)
    for each in mismatched:
        key, shape, wanted = (each if isinstance(each, tuple | list) else (each, "of another shape", "its config"))[:3]
        raise DamagedError(
            f"{name} is damaged: {key} of {part} is {_sides(shape)}, but {_sides(wanted)} in its config", folders.AGAIN
        )


def check_config(kind: Any, folder: Path, part: str) -> None:
    """Refuse values in a component's config that the library accepts, but that make the network fail when it is used.

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
    """The type of each config value.

    The classes of diffusers declare all of them. Those of transformers check types themselves, except for null.
    """
    config = getattr(kind, "config_class", None)
    if config is None:
        return {**typing.get_type_hints(inspect.unwrap(kind.__init__)), "_diffusers_version": re.Pattern}
    defaults = {field.name: type(field.default) for field in dataclasses.fields(config)}
    return {key: each for key, each in defaults.items() if each in (int, float) and key not in UNUSED}


def _fits(value: Any, declared: Any) -> bool:
    """Whether a config's value has the declared type; numbers must also be finite and at most `MAX_NUMBER`."""
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
    """Turn the errors of libraries about malformed files, such as KeyError or AttributeError, into ValueError.

    Raises:
        OSError, ImportError, MemoryError, RuntimeError, ValueError: Unchanged. ValueError: In place of all others.
    """
    try:
        yield
    except (OSError, ImportError, MemoryError, RuntimeError, ValueError):
        raise
    except Exception as error:  # tokenizers raises bare exceptions
        raise ValueError(first_line(error)) from None


@contextmanager
def _refuse_unreadable(folder: Path, part: str) -> Iterator[None]:
    """Refuse a base with a component that a library cannot read."""
    try:
        with translate_errors():
            yield
    except (RuntimeError, ValueError) as error:
        message = f"the base in {folder} is damaged: {part} cannot be opened: {first_line(error)}"
        raise DamagedError(message, folders.AGAIN) from None


def _sides(shape: Any) -> str:
    return " x ".join(str(side) for side in shape) if not isinstance(shape, str) else shape


def first_line(error: Exception) -> str:
    """The first sentence of a library's message, or the class of the error if there is no message."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". If you want")[0]
