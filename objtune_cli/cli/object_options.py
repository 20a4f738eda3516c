"""Where the objects of a photo are: the options that say so, for one photo or behind each of several."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli import paths
from objtune_cli.cli.runner import require
from objtune_cli.errors import InputError

if TYPE_CHECKING:
    from objtune_cli.segmentation.from_hints import Target

    Parts = list[tuple[str, dict[str, Any]]]

HINT_OPTIONS = {
    "mask": "--mask",
    "box": "--box",
    "point": "--point",
    "negative_point": "--negative-point",
    "refine_mask": "--refine-mask",
}
"""Parameters that say where it is."""
PHOTO_OPTIONS = {"class_": "--class", "name": "--name", **HINT_OPTIONS, "select": "--select"}
"""Parameters that say something of one photo."""


def options_by_photo(parts: "Parts") -> list[dict[str, Any]]:
    """What is said of each of several photos: the options behind it.

    Raises:
        UsageError: Something is said before the first.
    """
    early = [
        option for key, option in PHOTO_OPTIONS.items() if any(not photo and said.get(key) for photo, said in parts)
    ]
    require(
        not early,
        f"{', '.join(early)} before the first photo",
        "with several photos, each one's options stand behind it: `a.jpg --class dog b.jpg --class mug`",
    )
    return [said for photo, said in parts if photo]


def parse_photo_request(photo: Path, said: dict[str, Any]) -> tuple[list["Target"], str | None]:
    """The objects of one of several photos, and which of several things is meant."""
    require(
        said.get("class_"),
        f"what the object in {photo} is was not said",
        "give its class behind it: `a.jpg --class dog b.jpg --class mug`",
    )
    return parse_targets(
        said["class_"], said.get("name"), HintOptions(*(said.get(key) for key in HINT_OPTIONS))
    ), said.get("select")


@dataclass(frozen=True, slots=True)
class HintOptions:
    """Values of the options that say where objects are."""

    mask: list[str] | None = None
    box: list[str] | None = None
    point: list[str] | None = None
    negative_point: list[str] | None = None
    refine_mask: list[str] | None = None


def parse_targets(classes: list[str] | None, names: list[str] | None, said: HintOptions) -> list["Target"]:
    """The objects that the options describe, in the order of `--class`.

    Raises:
        UsageError: Options that do not fit together; names the option.
    """
    from objtune_cli.segmentation.from_hints import Target
    from objtune_cli.workflow.class_words import pair_with_names

    require(classes, "what the object is was not said", "give its class: `--class dog`")
    typed = list(classes or [])
    pairs = pair_with_names(typed, names or ())
    words, called = [word for word, _ in pairs], [name for _, name in pairs]
    keys = {word: i for spelled in (typed, words) for i, word in enumerate(spelled) if words.count(words[i]) == 1}
    keys |= {name: i for i, name in enumerate(called)}

    def owned(values: list[str] | None, option: str) -> list[tuple[int, str]]:
        """Each value with the number of the object it belongs to."""
        found = []
        for text in values or []:
            key, equals, value = text.partition("=")
            key = key.strip()
            known = bool(equals) and key in keys
            stranger = bool(equals) and not known and _is_name(key, value) and not paths.is_file(Path(text))
            require(
                not stranger,
                f"{option} {text} is for {key}, and no `--class` or `--name` is called that",
                f"objects of this photo: {', '.join(called)}",
            )
            require(
                known or len(words) == 1,
                f"{option} {text} does not say whose it is",
                f"for example `{option} {called[0]}={text}`",
            )
            found.append((keys[key], value) if known else (0, text))
        return found

    def one_each(values: list[str] | None, option: str) -> dict[int, str]:
        found: dict[int, str] = {}
        for index, value in owned(values, option):
            require(index not in found, f"two values of {option} for {called[index]}", "give one")
            found[index] = value
        return found

    boxes = {i: parse_numbers(v, 4, "--box", "x0,y0,x1,y1") for i, v in one_each(said.box, "--box").items()}
    masks, refined = (
        {i: _existing(v, o) for i, v in one_each(values, o).items()}
        for values, o in ((said.mask, "--mask"), (said.refine_mask, "--refine-mask"))
    )
    on, beside = (
        [(i, parse_numbers(v, 2, o, "x,y")) for i, v in owned(values, o)]
        for values, o in ((said.point, "--point"), (said.negative_point, "--negative-point"))
    )
    found = []
    for i, (word, name) in enumerate(zip(words, called, strict=True)):
        box: Any = boxes.get(i)
        mine, others = (tuple((d[0], d[1]) for k, d in dots if k == i) for dots in (on, beside))
        require(
            i not in masks or not (box or mine or others or i in refined),
            f"a mask of {name} is all there is to say",
            "hints belong to `--refine-mask`",
        )
        require(
            not others or box or mine or i in refined,
            f"{name} has only points that are not on it",
            "add `--point x,y` or `--box x0,y0,x1,y1`",
        )
        found.append(Target(word, name, box, mine, others, masks.get(i), refined.get(i)))
    return found


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
