"""Where the objects of a scene go: places that are given, read from a file, or proposed from the prompt's words."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli.config import toml_files
from objtune_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    import numpy as np

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 as fractions of the picture, from its upper left corner."""

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
LEAST = 0.05
"""Least width and height of a place: a smaller one is lost between the cells of the latents."""
LOOSE = 0.85
"""How far a place follows the object's proportions: the base does not stand things where a tight place would be, and cuts off what is outside."""
SIDES = {"left": "left", "right": "right", "center": "center", "middle": "center", "top": "top", "bottom": "bottom"}
"""Words after "on the", "in the" or "at the" that place the object before them."""
RELATIONS = {
    "left of": "left", "right of": "right", "above": "above", "over": "above", "below": "below", "under": "below", "beneath": "below",
    "in front of": "front", "before": "front", "behind": "behind", "wearing": "wears", "on top of": "on", "sitting on": "on",
    "standing on": "on", "riding": "on", "on": "on",
}  # fmt: skip
"""Words between two objects to how the first one stands to the second; any others: side by side."""
_BETWEEN = re.compile(
    rf"\b({'|'.join(sorted(RELATIONS, key=len, reverse=True))})\s+(?:(?:the|an?|my|your|his|her|its|their)\s+)?(?:[a-z]+\s+)?$"
)
_PLACED = re.compile(
    r"(<[a-z0-9][a-z0-9._-]*(?:@[0-9]+)?>)\s+(?:(?:is|stands|sits|lies)\s+)?(?:to the\s+)?(?:next to|beside|by|left of|right of|above|below|over|under|beneath)\s+(?=(?:the\s+|an?\s+)?<)",
    re.I,
)
"""Two objects and a word between them that says no more than where they stand."""
_SIDE = re.compile(rf"(?<!\s)\s*(?:,\s*)?(?:on|in|at|to)\s+the\s+({'|'.join(SIDES)})\b(?!\s+of)")
_JOINT = re.compile(
    rf"(?:[\s,;]|\b(?:and|with|plus|next to|beside|by|near|to the|the|an?|is|stands|sits|lies|{'|'.join(sorted(RELATIONS, key=len, reverse=True))})\b)*$",
    re.I,
)
"""Words that lead from one object to the next, at the end of what stands between them."""
LEAD = 500
"""Characters before an object in which such words are looked for: the expression tries every one of them."""
_NAME = re.compile(r"<([a-z0-9][a-z0-9._-]*)(?:@[0-9]+)?>")


@dataclass(slots=True)
class Layout:
    """Places of all objects of a scene.

    Attributes:
        boxes: Name to place, in the order of mention. order: names from the back to the front.
        wide, high: Sides of the picture over the base's own: a base draws about two objects side by side, more need room.
    """

    boxes: dict[str, Box]
    order: list[str]
    wide: float = 1.0
    high: float = 1.0


def place(text: str) -> tuple[str, Box]:
    """`rex=left` or `cup=0.55,0.4,0.95,0.9`.

    Raises:
        UsageError: Neither a named place nor a box inside the picture that is large enough.
    """
    name, _, where = text.partition("=")
    name = name.strip().removeprefix("<").removesuffix(">").partition("@")[0].lower()
    if name and where in PLACES:
        return name, PLACES[where]
    try:
        box = tuple(float(v) for v in where.split(","))
    except ValueError:
        box = ()
    if not name or len(box) != 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise UsageError(
            f"{text!r} is no place",
            f"`name=PLACE` with {', '.join(PLACES)}, or `name=x0,y0,x1,y1` in fractions of the picture",
        )
    if min(box[2] - box[0], box[3] - box[1]) < LEAST:
        raise UsageError(
            f"{text!r} is too small a place", f"at least {LEAST:g} wide and high, in fractions of the picture"
        )
    return name, (box[0], box[1], box[2], box[3])


def places(texts: Sequence[str]) -> dict[str, list[Box]]:
    """All of `--place`: the places of each object, in their order.

    Raises:
        UsageError: See `place`.
    """
    found: dict[str, list[Box]] = {}
    for name, box in map(place, texts):
        found.setdefault(name, []).append(box)
    return found


def read(file: Path) -> dict[str, list[Box]]:
    """Places from a TOML or JSON file: `rex = "left"` or `cup = [0.55, 0.4, 0.95, 0.9]`, one a line; a list of such where the prompt names an object more than once.

    Raises:
        InputError: Not readable. UsageError: no place.
    """
    form = 'one line an object: `rex = "left"` or `cup = [0.55, 0.4, 0.95, 0.9]`'
    try:
        table = toml_files.read(file, form)
    except FileNotFoundError:
        raise InputError(f"{file} is no readable layout: there is no such file", form) from None
    for name, where in table.items():
        if not isinstance(where, str | list):
            raise InputError(f"{name} in {file} is {where!r}", form)
    return places([f"{name}={_joined(each)}" for name, value in table.items() for each in _each(value)])


def _each(value: Any) -> list[Any]:
    """A place, or several in a list; numbers in a list are one box."""
    several = isinstance(value, list) and any(isinstance(each, str | list) for each in value)
    return value if several else [value]


def _joined(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def assign(found: Mapping[str, Sequence[Box]], mentions: Mapping[str, Sequence[str]]) -> dict[str, Box]:
    """Give an object's mentions its places in their order; `mentions`: the names that each object has in the scene.

    Raises:
        UsageError: More places than mentions.
    """
    for name, boxes in found.items():
        count = len(mentions.get(name, boxes))
        if len(boxes) > count:
            times = "once" if count == 1 else f"{count} times"
            raise UsageError(
                f"{len(boxes)} places for {name}, but the prompt names <{name}> {times}",
                f"give one `--place` for each <{name}> of the prompt",
            )
    return {
        name: box for own, boxes in found.items() for name, box in zip(mentions.get(own, [own]), boxes, strict=False)
    }


def check(found: Mapping[str, Box], mentioned: Sequence[str]) -> None:
    """Refuse places that the prompt gives no meaning to.

    Raises:
        InputError: A place for an object that the prompt does not mention. UsageError: one place for two objects.
    """
    strangers = [name for name in found if name not in mentioned]
    if strangers:
        raise InputError(
            f"the prompt does not mention <{strangers[0]}>", f"it mentions {', '.join(f'<{n}>' for n in mentioned)}"
        )
    owner: dict[Box, str] = {}
    for name, box in found.items():
        if box in owner:
            raise UsageError(
                f"{owner[box]} and {name} have the same place", "give each object a place of its own; they may overlap"
            )
        owner[box] = name


def spoken(prompt: str) -> str:
    """What the base is told of a scene: objects that stand beside or above each other are joined by "and", for their places are drawn, not said.

    A small base knows few such words, and one that it does not know lets it draw one thing where two are meant.
    """
    return _PLACED.sub(r"\1 and ", prompt)


def alone(prompt: str, name: str) -> str:
    """What the base is told of one object of a scene: the prompt without the others and what leads to them, `a photo of <rex> in a hat on the beach`."""
    found = list(_NAME.finditer(prompt))
    own = next(i for i, match in enumerate(found) if match[1] == name)
    said = prompt[: found[0].start()] + found[own][0]
    if own + 1 < len(found):
        between = prompt[found[own].end() : found[own + 1].start()]
        said += between[:-LEAD] + _JOINT.sub("", between[-LEAD:])
    return _SIDE.sub("", said + prompt[found[-1].end() :])


@dataclass(slots=True)
class _Cell:
    """Objects that share a part of the picture; each but the first with the one it was brought in by, and how that one stands to it."""

    names: list[str]
    how: list[tuple[str, str]] = field(default_factory=list)


def proposed(
    prompt: str,
    names: Sequence[str],
    given: Mapping[str, Box],
    shapes: Mapping[str, float],
    extent: tuple[float, float] | None = None,
) -> Layout:
    """Places for all objects: the given ones, and for the others what the prompt's words say, else side by side.

    Args:
        names: In the order of mention. shapes: width over height of each object, where it is known.
        extent: Width and height of the picture over the base's own side, where they are given; else as many objects need.
    """
    columns, sides = _columns(prompt, names)
    boxes: dict[str, Box] = {}
    order: list[str] = []
    for i, column in enumerate(columns):
        for k, cell in enumerate(column):
            alone = len(columns) == len(column) == 1 and cell.names[0] in sides
            frame = PLACES[sides[cell.names[0]]] if alone else _frame(i, len(columns), k, len(column))
            own, back_to_front = _inside(cell, frame)
            stretch = (
                extent[0] / extent[1] if extent else max(1.0, len(columns) / 2) / max(1.0, max(map(len, columns)) / 2)
            )  # proportions of fractions
            boxes |= {n: _fitted(b, shapes.get(n, 1.0) / stretch) for n, b in own.items()}
            order += back_to_front
    found = dict(given)
    for name in (n for n in names if n not in given):
        best = boxes[name]
        if any(_overlap(best, box) > 0.2 * _area(best) for box in given.values()):
            unused = [slot for slot in boxes.values() if slot not in found.values()]
            best = min(unused, key=lambda slot: (sum(_overlap(slot, box) for box in found.values()), slot))
        found[name] = best
    shared = any(len(cell.names) > 1 for column in columns for cell in column)
    wide, high = extent or ((1.0, 1.0) if given else (max(1.0, len(columns) / 2), max(1.0, max(map(len, columns)) / 2)))
    return Layout({n: found[n] for n in names}, order if shared else list(names), wide, high)


def _columns(prompt: str, names: Sequence[str]) -> tuple[list[list[_Cell]], dict[str, str]]:
    """Objects in columns from left to right, each from top to bottom; and those with a side of the picture of their own."""
    text = prompt.lower()
    columns: list[list[_Cell]] = []
    sides: dict[str, str] = {}
    at: dict[str, _Cell] = {}
    before = None
    for mention in (m for m in _NAME.finditer(text) if m[1] in names):
        name, side = mention[1], _SIDE.match(text, mention.end())
        if side:
            sides.setdefault(name, SIDES[side[1]])
        if name not in at:
            said = _BETWEEN.search(text[before.end() : mention.start()]) if before else None
            at[name] = _added(columns, at, before[1] if before else "", name, RELATIONS[said[1]] if said else "")
        before = mention
    far = {"left": -1, "right": 1}
    columns.sort(key=lambda column: sum(far.get(sides.get(n, ""), 0) for cell in column for n in cell.names))
    return columns, sides


def _added(columns: list[list[_Cell]], at: Mapping[str, _Cell], before: str, name: str, how: str) -> _Cell:
    """Put an object into the columns as the one mentioned `before` it stands to it."""
    if not before:
        columns.append([_Cell([name])])
        return columns[-1][0]
    beside = at[before]
    if how in _INNER:
        beside.names.append(name)
        beside.how.append((before, how))
        return beside
    i = next(i for i, column in enumerate(columns) if any(cell is beside for cell in column))
    new = _Cell([name])
    if how in ("above", "below"):
        k = next(k for k, cell in enumerate(columns[i]) if cell is beside)
        columns[i].insert(k + (how == "above"), new)
    else:
        columns.insert(i + (how != "right"), [new])
    return new


def _frame(column: int, columns: int, row: int, rows: int) -> Box:
    """The part of the picture of one cell; objects in one row stand where things stand, below the middle."""
    if (columns, rows) == (1, 1):
        return 0.15, 0.15, 0.85, 0.95
    x0, x1 = 0.01 + column / columns * 0.98, 0.01 + (column + 1) / columns * 0.98
    top, height = (0.25, 0.7) if rows == 1 else (0.02, 0.96)
    y0, y1 = top + row / rows * height, top + (row + 1) / rows * height
    return (0.2, y0, 0.8, y1) if columns == 1 else (x0, y0, x1, y1)


_INNER: dict[str, tuple[Box, Box]] = {
    "front": ((0.0, 0.25, 0.65, 1.0), (0.3, 0.0, 1.0, 0.8)),
    "behind": ((0.3, 0.0, 1.0, 0.8), (0.0, 0.25, 0.65, 1.0)),
    "wears": ((0.0, 0.0, 1.0, 1.0), (0.22, 0.0, 0.78, 0.4)),
    "on": ((0.12, 0.0, 0.88, 0.6), (0.0, 0.45, 1.0, 1.0)),
}
"""Places of the first and the second of two objects inside the part of the picture that they share."""


def _inside(cell: _Cell, frame: Box) -> tuple[dict[str, Box], list[str]]:
    """Places of a cell's objects, and their names from the back to the front."""
    boxes, order = {cell.names[0]: frame}, [cell.names[0]]
    for (first, how), second in zip(cell.how, cell.names[1:], strict=True):
        outer, (one, two) = boxes[first], _INNER[how]
        boxes[first], boxes[second] = _part(outer, one), _part(outer, two)
        order.insert(order.index(first) + (how in ("behind", "wears")), second)
    return boxes, order


def _part(outer: Box, inner: Box) -> Box:
    """A box given in fractions of another one."""
    width, height = outer[2] - outer[0], outer[3] - outer[1]
    return (
        outer[0] + inner[0] * width,
        outer[1] + inner[1] * height,
        outer[0] + inner[2] * width,
        outer[1] + inner[3] * height,
    )


def _fitted(box: Box, shape: float) -> Box:
    """The largest box of an object's proportions inside another one, standing on its floor; never less than `LOOSE` of it.

    An object needs room around it, so that its own width over height, times 1.15 both ways, is asked for.
    """
    width, height = box[2] - box[0], box[3] - box[1]
    wide, high = (
        min(width, max(LOOSE * width, 1.15 * shape * height)),
        min(height, max(LOOSE * height, 1.15 * width / shape)),
    )
    middle = (box[0] + box[2]) / 2
    return tuple(round(v, 4) for v in (middle - wide / 2, box[3] - high, middle + wide / 2, box[3]))  # type: ignore[return-value]


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlap(a: Box, b: Box) -> float:
    """Shared area of two boxes."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


COLOURS = ("#d62828", "#2a6fdb", "#2a9d4b", "#b8860b", "#7b3fb0")


def drawn(layout: Layout, size: tuple[int, int]) -> "np.ndarray":
    """The places as coloured frames with their names, later ones in front; (H, W, 3) uint8.

    Args:
        size: Height and width of the scene's pictures, px; enlarged so that the shorter side is at least 256.
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
