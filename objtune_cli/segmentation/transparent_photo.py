"""Decides whether a photo's transparency is a cut-out of its object, or a frame, stray pixels, a shadow or another class."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from objtune_cli.errors import GateError, InputError
from objtune_cli.images import transparency
from objtune_cli.segmentation import quality_gate

if TYPE_CHECKING:
    import numpy as np

    from objtune_cli.images.photo import Photo
    from objtune_cli.segmentation.from_hints import SegmentationModels, Target

MIN_FRAME_FILL, FRAME_CORNER = 0.975, 0.25
"""Smallest share of a rectangle or ellipse that a frame fills, and the share of a side for rounded corners."""
MIN_FRAME_AREA = 0.3
"""Smallest area of a frame, share of the photo; smaller rectangles and ellipses are objects, such as a phone or a ball."""
MIN_OTHER_PROBABILITY, MAX_OWN_PROBABILITY = 0.5, 0.1
"""A cut-out is refused if another class has at least the first probability and its own class at most the second."""
MIN_PART_AREA = 0.1
"""Smallest area of a separate object, fraction of the largest part."""


def check_transparency(models: "SegmentationModels", path: Path, picture: "Photo", target: "Target") -> "Photo":
    """Return the photo with the alpha of a cut-out of the target, or without alpha.

    Raises:
        InputError: The photo is wholly transparent. GateError: The object itself is transparent.
    """
    if picture.alpha is None:
        return picture

    def note(text: str) -> None:
        models.ctx.report.note(f"{path.name}: {text}")

    if not picture.alpha.any():
        raise InputError(
            f"{path} is wholly transparent", "save it without transparency, or with the object alone opaque"
        )
    cover = transparency.remove_shadow(picture.alpha, picture.rgb)
    if quality_gate.is_inverted(cover):
        raise GateError(
            f"no usable mask of the {target.class_word}: what is transparent in {path} lies inside the photo, as if an object had been erased",
            f"give the photo without the hole, and this one as its mask: `--mask {shlex.quote(str(path))}` takes what is transparent in it as the object",
        )
    problem, usable = find_shape_problem(cover)
    if not problem:
        problem, usable = find_class_problem(models, picture, cover, target), True
    if problem:
        note(
            f"its transparency {problem}: it is ignored"
            + (f"; `--mask {shlex.quote(str(path))}` takes it as the mask nevertheless" if usable else "")
        )
        return replace(picture, alpha=None)
    part = select_part(models, picture, cover, target)
    if part is not None:
        note(f"the part of the cut-out that is a {target.class_word} is used")
        cover = part
    elif (cover != picture.alpha).any():
        note("the shadow around the cut-out is left out of its mask")
    return replace(picture, alpha=cover)


def find_shape_problem(cover: "np.ndarray") -> tuple[str, bool]:
    """Why the shape of a transparency is no cut-out, or an empty text; and whether it is still usable as a mask."""
    statistics = quality_gate.mask_statistics(cover)
    if statistics["area"] > quality_gate.MAX_AREA:
        return "hides next to nothing of the photo", False
    if statistics["border"] > quality_gate.MAX_BORDER:
        return "is at the edges of the photo alone", False
    framed = statistics["area"] >= MIN_FRAME_AREA and is_frame(cover)
    return ("leaves a plain rectangle or ellipse, as a frame does", True) if framed else ("", True)


def is_frame(cover: "np.ndarray") -> bool:
    """Whether the opaque part is an ellipse or a rectangle, also rotated or with round corners."""
    import cv2
    import numpy as np

    hard = (cover > 127).astype(np.uint8)
    x, y, width, height = cv2.boundingRect(hard)
    if not width:
        return False
    box = hard[y : y + height, x : x + width]
    ellipse: np.ndarray = cv2.ellipse(
        np.zeros_like(box), (((width - 1) / 2, (height - 1) / 2), (width, height), 0), 1, cv2.FILLED
    )
    if float((box & ellipse).sum()) > MIN_FRAME_FILL * float((box | ellipse).sum()):
        return True
    cross = np.ones_like(box)
    high, wide = round(FRAME_CORNER * height), round(FRAME_CORNER * width)
    cross[:high, :wide] = cross[:high, width - wide :] = cross[height - high :, :wide] = cross[
        height - high :, width - wide :
    ] = 0
    if box[cross > 0].mean() > MIN_FRAME_FILL and box.mean() > 0.9:
        return True
    contours, _ = cv2.findContours(hard, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    (_, sides, _) = cv2.minAreaRect(np.concatenate(contours))
    return float(hard.sum()) > MIN_FRAME_FILL * (sides[0] + 1) * (sides[1] + 1)


def find_class_problem(models: "SegmentationModels", picture: "Photo", cover: "np.ndarray", target: "Target") -> str:
    """Why a cut-out shows another class, or an empty text, also if the base does not know the class."""
    likeness = _class_probabilities(models, picture, [cover > 127], target)
    if likeness is None:
        return ""
    own, best, word = likeness[0]
    return (
        f"shows a {word}, no {target.class_word}"
        if own <= MAX_OWN_PROBABILITY and best >= MIN_OTHER_PROBABILITY
        else ""
    )


def select_part(
    models: "SegmentationModels", picture: "Photo", cover: "np.ndarray", target: "Target"
) -> "np.ndarray | None":
    """The only part of a cut-out that shows the class, if all others show something else; else None."""
    import cv2
    import numpy as np

    _, regions, stats, _ = cv2.connectedComponentsWithStats((cover > 127).astype(np.uint8))
    areas = stats[1:, cv2.CC_STAT_AREA]
    parts = [i + 1 for i, area in enumerate(areas) if area > MIN_PART_AREA * areas.max()]
    if not 2 <= len(parts) <= quality_gate.MAX_PIECES:
        return None
    likeness = _class_probabilities(models, picture, [regions == i for i in parts], target)
    if likeness is None:
        return None
    own = [i for i, (mine, _, _) in zip(parts, likeness, strict=True) if mine >= MIN_OTHER_PROBABILITY]
    if len(own) != 1 or any(
        mine > MAX_OWN_PROBABILITY or best < MIN_OTHER_PROBABILITY
        for i, (mine, best, _) in zip(parts, likeness, strict=True)
        if i != own[0]
    ):
        return None
    near = cv2.dilate((regions == own[0]).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    part_cover: np.ndarray = np.where(near, cover, 0).astype(np.uint8)
    return part_cover


def _class_probabilities(
    models: "SegmentationModels", picture: "Photo", masks: "list[np.ndarray]", target: "Target"
) -> list[tuple[float, float, str]] | None:
    """For each mask the probability of the class, and the largest of another class with its word; None if the base does not know the class."""
    from objtune_cli.segmentation import ranking

    others = (
        [word for word in models.ctx.base.known_classes if word != target.class_word]
        if models.knows_class(target.class_word)
        else []
    )
    if not others or models.clip is None:
        return None
    import cv2

    scale = min(1.0, 320 / max(picture.size))
    size = (round(picture.size[0] * scale), round(picture.size[1] * scale))
    rgb = cv2.resize(picture.rgb, size, interpolation=cv2.INTER_AREA)
    small = [cv2.resize(m.astype("uint8"), size, interpolation=cv2.INTER_NEAREST) > 0 for m in masks]
    shares = ranking.class_probabilities(*models.clip, rgb, small, [target.class_word, *others], ())
    return [(float(row[0]), float(row[1:].max()), others[int(row[1:].argmax())]) for row in shares]
