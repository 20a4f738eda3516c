"""The layout of a scene: a box for each object, from the command line or a file, checked and drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli.config import toml_files
from objtune_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    import numpy as np

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in fractions of the image, from its upper left corner."""

PLACES: dict[str, Box] = {
    "left": (0.02, 0.25, 0.5, 0.95),
    "right": (0.5, 0.25, 0.98, 0.95),
    "center": (0.22, 0.25, 0.78, 0.9),
    "top": (0.2, 0.02, 0.8, 0.5),
    "bottom": (0.2, 0.5, 0.8, 0.98),
    "top-left": (0.02, 0.02, 0.5, 0.5),
    "top-right": (0.5, 0.02, 0.98, 0.5),
    "bottom-left": (0.02, 0.5, 0.5, 0.98),
    "bottom-right": (0.5, 0.5, 0.98, 0.98),
}
MIN_SIDE = 0.05
"""Least width and height of a box, fractions of the image: the latents have too few cells for a smaller one."""


@dataclass(slots=True)
class Layout:
    """The boxes of all objects of a scene.

    Attributes:
        boxes: Object name to box, in the order of mention.
        order: Names from back to front.
        wide, high: Width and height of the image over the base's own side; more than two objects in a row need a wider image.
    """

    boxes: dict[str, Box]
    order: list[str]
    wide: float = 1.0
    high: float = 1.0


def parse_box(text: str) -> Box | None:
    """Parse `left` or `0.55,0.4,0.95,0.9`; None for no named place and no box inside the image."""
    if text in PLACES:
        return PLACES[text]
    try:
        box = tuple(float(v) for v in text.split(","))
    except ValueError:
        return None
    if len(box) != 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        return None
    return box[0], box[1], box[2], box[3]


def parse_place(text: str) -> tuple[str, Box]:
    """Parse `rex=left` or `cup=0.55,0.4,0.95,0.9` to the object's name and its box.

    Raises:
        UsageError: No named place, and no box inside the image of at least `MIN_SIDE`.
    """
    name, _, where = text.partition("=")
    name = name.strip().removeprefix("<").removesuffix(">").partition("@")[0].lower()
    box = parse_box(where)
    if not name or box is None:
        raise UsageError(
            f"{text!r} is not a place",
            f"`name=PLACE` with {', '.join(PLACES)}, or `name=x0,y0,x1,y1` in fractions of the image",
        )
    if min(box[2] - box[0], box[3] - box[1]) < MIN_SIDE:
        raise UsageError(
            f"{text!r} is too small for a place",
            f"places are at least {MIN_SIDE:g} wide and high, in fractions of the image",
        )
    return name, box


def parse_places(texts: Sequence[str]) -> dict[str, list[Box]]:
    """Parse all values of `--place`: object name to its boxes, in the order of the options.

    Raises:
        UsageError: See `parse_place`.
    """
    boxes: dict[str, list[Box]] = {}
    for name, box in map(parse_place, texts):
        boxes.setdefault(name, []).append(box)
    return boxes


def parse_mapping(places: Mapping[str, str | Sequence[str]]) -> dict[str, list[Box]]:
    """Parse places of a mapping: object name to "left" or "0.5,0.4,0.9,0.9", or to a list of such; errors as of `parse_places`."""
    pairs = [(name, [own] if isinstance(own, str) else own) for name, own in places.items()]
    return parse_places([f"{name}={place}" for name, own in pairs for place in own])


def read_file(file: Path) -> dict[str, list[Box]]:
    """Read places from a TOML or JSON file: `rex = "left"` or `cup = [0.55, 0.4, 0.95, 0.9]`, or a list of these for an object that the prompt names more than once.

    Raises:
        InputError: The file cannot be read, or a value has another type.
        UsageError: See `parse_place`.
    """
    form = 'one line for each object: `rex = "left"` or `cup = [0.55, 0.4, 0.95, 0.9]`'
    try:
        table = toml_files.read(file, form)
    except FileNotFoundError:
        raise InputError(f"{file} does not exist", form) from None
    for name, where in table.items():
        if not isinstance(where, str | list):
            raise InputError(f"{name} in {file} is {where!r}", form)
    return parse_places(
        [f"{name}={_place_text(each)}" for name, value in table.items() for each in _listed_places(value)]
    )


def _listed_places(value: Any) -> list[Any]:
    """The places in a file's value: several in a list, or one. A list of numbers is one box."""
    several = isinstance(value, list) and any(isinstance(each, str | list) for each in value)
    return value if several else [value]


def _place_text(value: Any) -> str:
    """A place as the command line takes it."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def assign_places(places: Mapping[str, Sequence[Box]], mentions: Mapping[str, Sequence[str]]) -> dict[str, Box]:
    """Assign an object's places to its mentions, in order.

    Args:
        mentions: Object to its names in the scene, one for each mention.

    Raises:
        UsageError: An object has more places than mentions.
    """
    for name, boxes in places.items():
        count = len(mentions.get(name, boxes))
        if len(boxes) > count:
            times = "once" if count == 1 else f"{count} times"
            raise UsageError(
                f"{len(boxes)} places for {name}, but the prompt names <{name}> {times}",
                f"give one `--place` for each <{name}> of the prompt",
            )
    return {
        mention: box
        for name, boxes in places.items()
        for mention, box in zip(mentions.get(name, [name]), boxes, strict=False)
    }


def check_places(places: Mapping[str, Box], mentioned: Sequence[str]) -> None:
    """Refuse places that do not fit the prompt.

    Raises:
        InputError: The prompt does not mention the object of a place.
        UsageError: Two objects have the same place.
    """
    unknown = [name for name in places if name not in mentioned]
    if unknown:
        raise InputError(
            f"the prompt does not mention <{unknown[0]}>", f"it mentions {', '.join(f'<{n}>' for n in mentioned)}"
        )
    owner: dict[Box, str] = {}
    for name, box in places.items():
        if box in owner:
            raise UsageError(
                f"{owner[box]} and {name} have the same place", "give each object a place of its own; they may overlap"
            )
        owner[box] = name


COLOURS = ("#d62828", "#2a6fdb", "#2a9d4b", "#b8860b", "#7b3fb0")


def render(layout: Layout, size: tuple[int, int]) -> "np.ndarray":
    """Draw the boxes as coloured frames with their names.

    Args:
        size: Height and width of the scene's images, px; enlarged so that the shorter side is at least 256.

    Returns:
        Image (H, W, 3) uint8.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    scale = max(1.0, 256 / min(size))
    height, width = (round(side * scale) for side in size)
    image: Any = Image.new("RGB", (width, height), "white")
    for name in layout.order:
        colour = COLOURS[list(layout.boxes).index(name) % len(COLOURS)]
        x0, y0, x1, y1 = (
            round(v * (side - 1)) for v, side in zip(layout.boxes[name], (width, height) * 2, strict=True)
        )
        tint = Image.new("RGB", (x1 - x0 + 1, y1 - y0 + 1), colour)
        image.paste(Image.blend(image.crop((x0, y0, x1 + 1, y1 + 1)), tint, 0.12), (x0, y0))
        pen = ImageDraw.Draw(image)
        pen.rectangle((x0, y0, x1, y1), outline=colour, width=3)
        pen.text((x0 + 8, y0 + 8), name, fill=colour, font_size=max(12, min(height, width) // 20))
    return np.asarray(image)
