"""Command lines that a screen shows and runs: words after `objtune`, made from the values of its fields."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from objtune_cli.report.plain_text import remove_unseen

Value = str | int | float | bool | Sequence[str] | None
"""A value of an option: True for a flag, several for a repeated option, None or "" where the option is left out."""


@dataclass(frozen=True, slots=True)
class TrainingPhoto:
    """A photo to learn from, and the mask of the object in it, "" for none."""

    photo: str
    mask: str = ""


@dataclass(frozen=True, slots=True)
class TrainingObject:
    """One object to learn, from its photos."""

    photos: Sequence[TrainingPhoto]
    class_word: str
    name: str = ""


def clean_text(text: object) -> str:
    """One line of text without characters that cannot be seen."""
    return " ".join(remove_unseen(str(text)).split())


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


def train(objects: Sequence[TrainingObject], options: Mapping[str, Value]) -> list[str]:
    """Learn objects from their photos, each followed by its mask; the class of an object stands behind its last photo."""
    words = ["train"]
    for each in objects:
        for photo in each.photos:
            is_last = photo is each.photos[-1]
            name = each.name if each.name != each.class_word else ""
            own: dict[str, Value] = {"--class": each.class_word, "--name": name} if is_last else {}
            words += [photo.photo, *write_options({**own, "--mask": photo.mask})]
    return [*words, *write_options(options)]


def place(name: str, box: Sequence[float]) -> str:
    """The value of `--place` for a box x0, y0, x1, y1 in fractions of the image."""
    return f"{name}={','.join(f'{value:.3g}' for value in box)}"


def show(words: Sequence[str]) -> str:
    """The command line as a shell reads it."""
    return " ".join(show_words(words))


def show_words(words: Sequence[str]) -> list[str]:
    """The words of the command line as a shell reads them."""
    return [shlex.quote(word) for word in ("objtune", *words)]
