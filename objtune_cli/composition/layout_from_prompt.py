"""Objects' places from the words of a prompt, and the prompts of the scene and of each object."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from objtune_cli.composition.layout import PLACES, Box, Layout

MIN_FILL = 0.85
"""Least fraction of a cell that a box fills: the base does not put objects exactly into tight boxes, and what is outside is cut off."""
SIDES = {"left": "left", "right": "right", "center": "center", "middle": "center", "top": "top", "bottom": "bottom"}
"""Words after "on the", "in the" or "at the" to the named box of the object before them."""
RELATIONS = {
    "left of": "left", "right of": "right", "above": "above", "over": "above", "below": "below", "under": "below", "beneath": "below",
    "in front of": "front", "before": "front", "behind": "behind", "wearing": "wears", "on top of": "on", "sitting on": "on",
    "standing on": "on", "riding": "on", "on": "on",
}  # fmt: skip
"""Words between two objects to the relation of the first to the second; other words: the objects are side by side."""
_RELATION_BEFORE = re.compile(
    rf"\b({'|'.join(sorted(RELATIONS, key=len, reverse=True))})\s+(?:(?:the|an?|my|your|his|her|its|their)\s+)?(?:[a-z]+\s+)?$"
)
_SIDE_BY_SIDE = re.compile(
    r"(<[a-z0-9][a-z0-9._-]*(?:@[0-9]+)?>)\s+(?:(?:is|stands|sits|lies)\s+)?(?:to the\s+)?(?:next to|beside|by|left of|right of|above|below|over|under|beneath)\s+(?=(?:the\s+|an?\s+)?<)",
    re.I,
)
"""An object, and a preposition of place that leads to the next object."""
_SIDE_PHRASE = re.compile(rf"(?<!\s)\s*(?:,\s*)?(?:on|in|at|to)\s+the\s+({'|'.join(SIDES)})\b(?!\s+of)")
_JOINING_WORDS = re.compile(
    rf"(?:[\s,;]|\b(?:and|with|plus|next to|beside|by|near|to the|the|an?|is|stands|sits|lies|{'|'.join(sorted(RELATIONS, key=len, reverse=True))})\b)*$",
    re.I,
)
"""Words that lead to the next object, at the end of the text between two objects."""
MAX_LEAD = 500
"""Characters before an object that `_JOINING_WORDS` searches: its time grows with their square."""
_PLACEHOLDER = re.compile(r"<([a-z0-9][a-z0-9._-]*)(?:@[0-9]+)?>")


def scene_prompt(prompt: str) -> str:
    """The prompt of the whole scene: prepositions of place between two objects become "and".

    The regions place the objects. A small base knows few prepositions, and an unknown one makes it draw one object where two are meant.
    """
    for start, end, text in reversed(side_by_side_edits(prompt)):
        prompt = prompt[:start] + text + prompt[end:]
    return prompt


def side_by_side_edits(prompt: str) -> list[tuple[int, int, str]]:
    """The ranges [start, end) that `scene_prompt` replaces, ascending, each with its new text."""
    return [(match.end(1), match.end(), " and ") for match in _SIDE_BY_SIDE.finditer(prompt)]


def object_prompt(prompt: str, name: str) -> str:
    """The prompt of one object: the scene's prompt without the other objects and the words that lead to them, `a photo of <rex> in a hat on the beach`."""
    return "".join(prompt[i] for i in object_characters(prompt, name))


def object_characters(prompt: str, name: str) -> list[int]:
    """Positions of the characters of `object_prompt` in the scene's prompt, ascending."""
    mentions = list(_PLACEHOLDER.finditer(prompt))
    i = next(i for i, mention in enumerate(mentions) if mention[1] == name)
    positions = [*range(mentions[0].start()), *range(*mentions[i].span())]
    if i + 1 < len(mentions):
        start, end = mentions[i].end(), mentions[i + 1].start()
        searched = max(start, end - MAX_LEAD)
        joining = _JOINING_WORDS.search(prompt[searched:end])
        positions += range(start, searched + joining.start() if joining else end)
    positions += range(mentions[-1].end(), len(prompt))
    text = "".join(prompt[k] for k in positions)
    for match in reversed(list(_SIDE_PHRASE.finditer(text))):
        del positions[match.start() : match.end()]
    return positions


@dataclass(slots=True)
class _Cell:
    """Objects that share a part of the image.

    Attributes:
        relations: For each object but the first: the object mentioned before it, and the relation of that one to it.
    """

    names: list[str]
    relations: list[tuple[str, str]] = field(default_factory=list)


def propose(
    prompt: str,
    names: Sequence[str],
    user_boxes: Mapping[str, Box],
    aspect_ratios: Mapping[str, float],
    extent: tuple[float, float] | None = None,
) -> Layout:
    """Boxes for all objects: those of `user_boxes`, and for the others the ones that the prompt describes, else side by side.

    Args:
        names: In the order of mention.
        user_boxes: Boxes that the user chose.
        aspect_ratios: Width over height of the objects where it is known.
        extent: Width and height of the image over the base's own side, if the user chose a size; else the image is as large as the objects need.
    """
    columns, sides = _arrange(prompt, names)
    needed = max(1.0, len(columns) / 2), max(1.0, max(map(len, columns)) / 2)
    image_aspect = extent[0] / extent[1] if extent else needed[0] / needed[1]
    boxes: dict[str, Box] = {}
    order: list[str] = []
    for i, column in enumerate(columns):
        for k, cell in enumerate(column):
            is_single = len(columns) == len(column) == 1 and cell.names[0] in sides
            frame = PLACES[sides[cell.names[0]]] if is_single else _cell_box(i, len(columns), k, len(column))
            cell_boxes, back_to_front = _place_in_cell(cell, frame)
            boxes |= {n: _fit_box(b, aspect_ratios.get(n, 1.0) / image_aspect) for n, b in cell_boxes.items()}
            order += back_to_front
    proposal = dict(user_boxes)
    for name in (n for n in names if n not in user_boxes):
        box = boxes[name]
        if any(_overlap_area(box, other) > 0.2 * _box_area(box) for other in user_boxes.values()):
            unused = [slot for slot in boxes.values() if slot not in proposal.values()]
            box = min(unused, key=lambda slot: (sum(_overlap_area(slot, other) for other in proposal.values()), slot))
        proposal[name] = box
    is_shared = any(len(cell.names) > 1 for column in columns for cell in column)
    wide, high = extent or ((1.0, 1.0) if user_boxes else needed)
    return Layout({n: proposal[n] for n in names}, order if is_shared else list(names), wide, high)


def _arrange(prompt: str, names: Sequence[str]) -> tuple[list[list[_Cell]], dict[str, str]]:
    """Arrange the objects in columns.

    Returns:
        The columns from left to right, each from top to bottom; and the named boxes of objects for which the prompt names a side of the image.
    """
    text = prompt.lower()
    columns: list[list[_Cell]] = []
    sides: dict[str, str] = {}
    cells: dict[str, _Cell] = {}
    previous = None
    for mention in (m for m in _PLACEHOLDER.finditer(text) if m[1] in names):
        name, side = mention[1], _SIDE_PHRASE.match(text, mention.end())
        if side:
            sides.setdefault(name, SIDES[side[1]])
        if name not in cells:
            words = _RELATION_BEFORE.search(text[previous.end() : mention.start()]) if previous else None
            relation = RELATIONS[words[1]] if words else ""
            cells[name] = _insert(columns, cells, previous[1] if previous else "", name, relation)
        previous = mention
    order = {"left": -1, "right": 1}
    columns.sort(key=lambda column: sum(order.get(sides.get(n, ""), 0) for cell in column for n in cell.names))
    return columns, sides


def _insert(columns: list[list[_Cell]], cells: Mapping[str, _Cell], before: str, name: str, relation: str) -> _Cell:
    """Insert an object into the columns.

    Args:
        cells: Cells of the objects so far.
        before: Object that is mentioned before it, or "".
        relation: Relation of `before` to it, a value of `RELATIONS`, or "".

    Returns:
        The object's cell.
    """
    if not before:
        columns.append([_Cell([name])])
        return columns[-1][0]
    cell = cells[before]
    if relation in _SHARED_BOXES:
        cell.names.append(name)
        cell.relations.append((before, relation))
        return cell
    i = next(i for i, column in enumerate(columns) if any(other is cell for other in column))
    new = _Cell([name])
    if relation in ("above", "below"):
        k = next(k for k, other in enumerate(columns[i]) if other is cell)
        columns[i].insert(k + (relation == "above"), new)
    else:
        columns.insert(i + (relation != "right"), [new])
    return new


def _cell_box(column: int, columns: int, row: int, rows: int) -> Box:
    """The box of a cell in the image. A single row lies below the middle of the image, where objects usually stand."""
    if (columns, rows) == (1, 1):
        return 0.15, 0.15, 0.85, 0.95
    x0, x1 = 0.01 + column / columns * 0.98, 0.01 + (column + 1) / columns * 0.98
    top, height = (0.25, 0.7) if rows == 1 else (0.02, 0.96)
    y0, y1 = top + row / rows * height, top + (row + 1) / rows * height
    return (0.2, y0, 0.8, y1) if columns == 1 else (x0, y0, x1, y1)


_SHARED_BOXES: dict[str, tuple[Box, Box]] = {
    "front": ((0.0, 0.25, 0.65, 1.0), (0.3, 0.0, 1.0, 0.8)),
    "behind": ((0.3, 0.0, 1.0, 0.8), (0.0, 0.25, 0.65, 1.0)),
    "wears": ((0.0, 0.0, 1.0, 1.0), (0.22, 0.0, 0.78, 0.4)),
    "on": ((0.12, 0.0, 0.88, 0.6), (0.0, 0.45, 1.0, 1.0)),
}
"""Relation to the boxes of the first and the second object, in fractions of the cell that they share."""


def _place_in_cell(cell: _Cell, frame: Box) -> tuple[dict[str, Box], list[str]]:
    """The boxes of a cell's objects in the image, and their names from back to front."""
    boxes, order = {cell.names[0]: frame}, [cell.names[0]]
    for (first, relation), second in zip(cell.relations, cell.names[1:], strict=True):
        outer, (one, two) = boxes[first], _SHARED_BOXES[relation]
        boxes[first], boxes[second] = _sub_box(outer, one), _sub_box(outer, two)
        order.insert(order.index(first) + (relation in ("behind", "wears")), second)
    return boxes, order


def _sub_box(outer: Box, inner: Box) -> Box:
    """The box `inner`, which is in fractions of `outer`, in fractions of the image."""
    width, height = outer[2] - outer[0], outer[3] - outer[1]
    return (
        outer[0] + inner[0] * width,
        outer[1] + inner[1] * height,
        outer[0] + inner[2] * width,
        outer[1] + inner[3] * height,
    )


def _fit_box(box: Box, aspect_ratio: float) -> Box:
    """The largest box of an object's aspect ratio (width over height) on the lower edge of another box, at least `MIN_FILL` of its sides.

    Both sides are enlarged by 1.15, because an object needs room around it.
    """
    width, height = box[2] - box[0], box[3] - box[1]
    wide, high = (
        min(width, max(MIN_FILL * width, 1.15 * aspect_ratio * height)),
        min(height, max(MIN_FILL * height, 1.15 * width / aspect_ratio)),
    )
    middle = (box[0] + box[2]) / 2
    return tuple(round(v, 4) for v in (middle - wide / 2, box[3] - high, middle + wide / 2, box[3]))  # type: ignore[return-value]


def _box_area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlap_area(a: Box, b: Box) -> float:
    """Shared area of two boxes."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
