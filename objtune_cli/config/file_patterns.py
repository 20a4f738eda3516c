"""Patterns of file names, such as `{object}-{seed}-{index}`: which fields they may have, and the name of one image."""

import re
import string
from collections.abc import Mapping

FIELDS = {
    "object": "the scene's name: its objects, or `scene`",
    "version": "the scene's version, three digits",
    "index": "number of the image in its scene, three digits",
    "seed": "seed of the image",
    "prompt": "the first words of the prompt",
    "base": "name of the base model",
    "sampler": "A1111's name of the sampler",
    "steps": "sampling steps",
    "guidance": "guidance scale",
    "size": "width and height, for example 512x768",
}
"""Fields of a pattern, and what they stand for."""
DEFAULT = "{object}-{version}-{index}"
MAX_VALUE, MAX_NAME = 60, 180
"""Longest value of a field, characters; longest part of a path, bytes."""
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]+')


class _Padded(int):
    """A number that has three digits unless the pattern says otherwise."""

    def __format__(self, spec: str) -> str:
        return format(int(self), spec or "03d")


def read_pattern(text: str) -> str:
    """Check a pattern; a user's text is the value.

    Raises:
        ValueError: An unknown field, an absolute path, or a name of dots; says what there is.
    """
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise ValueError(f"{error}; a brace alone is written twice: `{{{{`") from None
    unknown = next((name for name in names if name not in FIELDS), None)
    if unknown is not None:
        raise ValueError(f"there is no field {{{unknown}}}; fields: {', '.join(f'{{{name}}}' for name in FIELDS)}")
    parts = re.split(r"[/\\]", text)
    if not text.strip() or any(part.strip(" .") == "" for part in parts) or re.match(r"[A-Za-z]:", text):
        raise ValueError("a name below the folder of `--out`, for example `{object}-{seed}-{index}`")
    example: dict[str, object] = dict.fromkeys(FIELDS, "1") | {
        "index": _Padded(1),
        "version": _Padded(1),
        "seed": 1,
        "steps": 1,
    }
    try:
        text.format_map(example)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{error}; for example `{{index:04d}}`") from None
    return text


def fill_pattern(pattern: str, values: Mapping[str, object]) -> str:
    """The name of an image, without suffix; characters that a file system does not allow become dashes.

    Args:
        values: Of the fields; `version`, `index`, `seed` and `steps` are numbers.
    """
    plain = {key: _make_safe(value) if isinstance(value, str) else value for key, value in values.items()}
    for key in ("version", "index"):
        plain[key] = _Padded(plain[key])  # type: ignore[call-overload]
    return "/".join(_shorten(part) for part in re.split(r"[/\\]", pattern.format_map(plain)))


def _make_safe(value: str) -> str:
    return _UNSAFE.sub("-", value)[:MAX_VALUE].strip(" .-") or "none"


def _shorten(part: str) -> str:
    """A part of a path that every file system takes."""
    short = _UNSAFE.sub("-", part).encode()[:MAX_NAME].decode(errors="ignore").strip(" .")
    return short or "image"
