"""A setting as a dataclass field, and what an artifact's identity takes of it."""

from collections.abc import Callable
from dataclasses import field, fields
from typing import Any

MAX_SEED = 2**64 - 1
"""The largest seed: other tools take a seed as a non-negative number of up to 64 bits."""
SEEDS = "0 to 18446744073709551615"
"""The range of every seed, for help texts."""
MAX_RATE = 1e30
"""The largest learning rate: above it the optimizer's step sizes overflow float32."""
MAX_WEIGHT = 1_000_000
"""The largest weight of a loss term, or of a part of the prototype: above it other terms vanish and sums overflow."""
DEFAULT = object()
"""Stands for "the same as the default"."""


def seed_after(seed: int, count: int) -> int:
    """The seed `count` places after another; 0 follows the largest."""
    return (seed + count) % (MAX_SEED + 1)


def setting(
    default: Any,
    text: str,
    low: float | None = None,
    high: float | None = None,
    *,
    auto: str = "",
    absent: Any = None,
    neutral: Any = DEFAULT,
    identifies: bool = True,
    path: str = "",
) -> Any:
    """A setting.

    Args:
        auto: The word that users write for the default: "auto" where the base decides, "none" or "first".
        absent: For a setting that was added later, the value that a record without it stands for.
        neutral: The value that leaves a plain LoRA training as it is; baselines start from it.
        identifies: Whether another value makes another artifact.
        path: The kind of path that it is or may be, a key of `paths.CONVERTERS`: "file", "model" (a hub id, too), "models" or "loras".
    """
    return field(
        default=default,
        metadata={
            "help": text, "low": low, "high": high, "auto": auto, "absent": absent,
            "neutral": default if neutral is DEFAULT else neutral, "identifies": identifies, "path": path,
        },
    )  # fmt: skip


def text_setting(
    default: str, text: str, read: Callable[[str], str], *, auto: str = "", identifies: bool = True
) -> Any:
    """A setting of which users write other spellings.

    Args:
        read: A user's text to the value; raises ValueError with a hint.
    """
    return field(
        default=default, metadata={**setting(default, text, auto=auto, identifies=identifies).metadata, "read": read}
    )


def identifying(section: Any) -> dict[str, Any]:
    """The settings that identify an artifact; one that was added later counts only where it differs from `absent`."""
    values = {f.name: getattr(section, f.name) for f in fields(section) if f.metadata["identifies"]}
    absent = {f.name: f.metadata["absent"] for f in fields(section)}
    return {name: value for name, value in values.items() if absent[name] is None or value != absent[name]}


def neutral(section: type) -> dict[str, Any]:
    """The settings of a section whose neutral value is not the default, at their neutral values."""
    return {f.name: f.metadata["neutral"] for f in fields(section) if f.metadata["neutral"] != f.default}
