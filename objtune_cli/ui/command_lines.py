"""Command lines that a screen shows and runs: words after `objtune`, made from the values of its fields."""

import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Value = str | int | float | bool | Sequence[str] | None
"""A value of an option: True for a flag, several for a repeated option, None or "" where the option is left out."""
_UNSEEN = re.compile("[\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""Direction marks and line separators, which change how a command looks."""


@dataclass(frozen=True, slots=True)
class TrainingPhoto:
    """A photo to learn from, and the mask of the object in it, "" for none."""

    photo: str
    mask: str = ""


def clean_text(text: object) -> str:
    """One line of text without characters that cannot be seen."""
    plain = _UNSEEN.sub("", str(text))
    visible = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in plain)
    return " ".join(visible.split())


def build(command: str, arguments: Sequence[str], options: Mapping[str, Value]) -> list[str]:
    """The words of a command line. Arguments that look like options stand behind `--`."""
    named = write_options(options)
    if any(text.startswith("-") for text in arguments):
        return [command, *named, "--", *arguments]
    return [command, *arguments, *named]


def write_options(options: Mapping[str, Value]) -> list[str]:
    """Options as words."""
    words: list[str] = []
    for option, value in options.items():
        if value is True:
            words.append(option)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            words += [word for each in value for word in _write_option(option, each)]
        elif value is not None and value is not False and value != "":
            words += _write_option(option, f"{value:g}" if isinstance(value, float) else str(value))
    return words


def _write_option(option: str, value: str) -> list[str]:
    return [f"{option}={value}"] if value.startswith("-") and option.startswith("--") else [option, value]


def train(photos: Sequence[TrainingPhoto], class_word: str, name: str, options: Mapping[str, Value]) -> list[str]:
    """Learn one object from its photos, each followed by its mask."""
    words = ["train"]
    for i, each in enumerate(photos):
        words += [each.photo, *(["--class", class_word] if i == 0 else [])]
        words += write_options({"--name": name if i == 0 and name != class_word else "", "--mask": each.mask})
    return [*words, *write_options(options)]


def place(name: str, box: Sequence[float]) -> str:
    """The value of `--place` for a box x0, y0, x1, y1 in fractions of the image."""
    return f"{name}={','.join(f'{value:.3g}' for value in box)}"


def show(words: Sequence[str]) -> str:
    """The command line as a shell reads it."""
    return shlex.join(["objtune", *words])
