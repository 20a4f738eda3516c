"""Parses the options that describe the objects of a photo: class, name, mask, box, points."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli import paths
from objtune_cli.cli.runner import require
from objtune_cli.errors import InputError
from objtune_cli.workflow.photo_keys import PHOTO_OPTIONS

if TYPE_CHECKING:
    from objtune_cli.segmentation.from_hints import Target

PHOTO_PARAMETERS = {"class_" if key == "class" else key: option for key, option in PHOTO_OPTIONS.items()}
"""Parameters of commands that describe the objects of one photo, and their options."""


@dataclass(frozen=True, slots=True)
class PhotoRequest:
    """A photo and its objects; `select`: which of several objects of a class, None for the setting.

    `photo` is a path, or the text of a web address or `-` for stdin.
    """

    photo: Path | str
    targets: "list[Target]"
    select: str | None


def parse_targets(options: Mapping[str, Any]) -> list["Target"]:
    """Parse the objects that the options of a photo describe, in the order of `--class`.

    Args:
        options: Values by the keys of `PHOTO_PARAMETERS`.

    Raises:
        UsageError: Options do not fit together; the message names the option.
    """
    from objtune_cli.segmentation.from_hints import Target

    objects = _Objects(options.get("class_"), options.get("name"))
    masks, refined = (
        {i: _existing(text, PHOTO_PARAMETERS[key]) for i, text in objects.assign_one(options, key).items()}
        for key in ("mask", "refine_mask")
    )
    boxes = {i: parse_numbers(v, 4, "--box", "x0,y0,x1,y1") for i, v in objects.assign_one(options, "box").items()}
    points, negative_points = (
        [(i, parse_numbers(text, 2, PHOTO_PARAMETERS[key], "x,y")) for i, text in objects.assign(options, key)]
        for key in ("point", "negative_point")
    )
    targets = []
    for i, (word, name) in enumerate(zip(objects.words, objects.names, strict=True)):
        box: Any = boxes.get(i)
        inside, outside = (tuple((x, y) for k, (x, y) in each if k == i) for each in (points, negative_points))
        require(
            i not in masks or not (box or inside or outside or i in refined),
            f"{name} has a mask and other hints",
            "leave the hints out, or refine the mask with `--refine-mask`",
        )
        require(
            not outside or box or inside or i in refined,
            f"{name} has only negative points",
            "add `--point x,y` or `--box x0,y0,x1,y1`",
        )
        targets.append(Target(word, name, box, inside, outside, masks.get(i), refined.get(i)))
    return targets


class _Objects:
    """The objects of a photo, and which value of an option belongs to which of them.

    Attributes:
        words: Class words. names: Names, as many. keys: Position of an object by each word and name that means it alone.
    """

    def __init__(self, classes: list[str] | None, names: list[str] | None) -> None:
        from objtune_cli.workflow.class_words import pair_with_names

        require(classes, "the object has no class", "give its class: `--class dog`")
        typed = list(classes or [])
        pairs = pair_with_names(typed, names or ())
        self.words, self.names = [word for word, _ in pairs], [name for _, name in pairs]
        self.keys = {
            word: i
            for spelled in (typed, self.words)
            for i, word in enumerate(spelled)
            if self.words.count(self.words[i]) == 1
        } | {name: i for i, name in enumerate(self.names)}

    def assign(self, options: Mapping[str, Any], key: str) -> list[tuple[int, str]]:
        """The values of a repeated option, each with the position of its object: `dog=VALUE`, or VALUE of the only object."""
        return [self._assign_value(text, PHOTO_PARAMETERS[key]) for text in options.get(key) or []]

    def assign_one(self, options: Mapping[str, Any], key: str) -> dict[int, str]:
        """The value of an option that each object has at most once, by the object's position."""
        values: dict[int, str] = {}
        for i, value in self.assign(options, key):
            require(i not in values, f"two values of {PHOTO_PARAMETERS[key]} for {self.names[i]}", "give one")
            values[i] = value
        return values

    def _assign_value(self, text: str, option: str) -> tuple[int, str]:
        key, equals, value = text.partition("=")
        key = key.strip()
        if equals and key in self.keys:
            return self.keys[key], value
        names_other = bool(equals) and _is_name(key, value) and not paths.is_file(Path(text))
        require(
            not names_other,
            f"{option} {text} is for {key}, and no `--class` or `--name` is called that",
            f"objects of this photo: {', '.join(self.names)}",
        )
        require(
            len(self.words) == 1,
            f"{option} {text} names no object, and the photo has several",
            f"for example `{option} {self.names[0]}={text}`",
        )
        return 0, text


def _is_name(key: str, value: str) -> bool:
    """Whether what stands before an equals sign is meant as an object's name: no part of a path, and no coordinate."""
    return bool(value) and bool(re.fullmatch(r"[^\W_][\w .-]*", key)) and not re.fullmatch(r"[xy][0-2]?|w|h", key, re.I)


def _existing(text: str, option: str) -> Path:
    path = paths.to_path(text)
    if not paths.is_file(path):
        raise InputError(
            f"there is no mask {path}", f"give `{option}` a picture of the photo's size, white on the object"
        )
    return path


def parse_numbers(text: str, count: int, option: str, form: str) -> tuple[float, ...]:
    """Numbers with commas, semicolons or spaces between them, in brackets or not; per cent become fractions.

    Raises:
        UsageError: Not that many numbers.
    """
    parts = [part for part in re.split(r"[\s,;]+", text.strip().strip("[](){}").strip()) if part]
    try:
        values = tuple(_number(part) for part in parts)
    except ValueError:
        values = ()
    mixed = len({part.endswith("%") for part in parts}) > 1
    require(
        len(values) == count and not mixed and all(abs(v) < 1e6 for v in values),
        f"{option} {text} is not {form}",
        f"pixels of the photo, or fractions of it: `{option} {'0.2,0.2,0.8,0.8' if count == 4 else '0.5,0.5'}`",
    )
    return values


def _number(text: str) -> float:
    """A number, or per cent as a fraction; 100 % is just below 1, which would be a pixel."""
    if not text.endswith("%"):
        return float(text)
    return min(float(text[:-1]) / 100, 1 - 1e-9) if float(text[:-1]) <= 100 else float("nan")
