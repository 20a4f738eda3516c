"""What a user has shown in one photo: points, a box and brush strokes, in the order in which they came."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from objtune_cli.segmentation.from_hints import Target
from objtune_cli.segmentation.segment import MaskVerdict

if TYPE_CHECKING:
    import numpy as np

    from objtune_cli.segmentation.interactive import InteractivePhoto

Box = tuple[float, float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class PointHint:
    """A point on the object, or beside it; pixels of the stored photo."""

    point: Point
    is_object: bool = True


@dataclass(frozen=True, slots=True)
class BoxHint:
    """A box x0, y0, x1, y1 around the object."""

    box: Box


@dataclass(frozen=True, slots=True)
class Stroke:
    """A brush stroke, which adds to the mask or takes from it; `width` in pixels."""

    points: tuple[Point, ...]
    width: float
    adds: bool


@dataclass(slots=True)
class PhotoHints:
    """One photo of the screen.

    Attributes:
        scale: Stored pixels for each pixel of the file. size: Width and height of the stored photo.
        found: Mask (H, W) uint8 of the model, without strokes. is_finished: Whether its outline is finished.
        verdict: Of the quality gate; None until it is known.
        class_word, name: As typed for this photo.
    """

    photo: str
    scale: float
    size: tuple[int, int]
    actions: list[PointHint | BoxHint | Stroke] = field(default_factory=list)
    found: "np.ndarray | None" = None
    is_finished: bool = False
    verdict: MaskVerdict | None = None
    class_word: str = ""
    name: str = ""

    @property
    def is_usable(self) -> bool:
        """Whether the quality gate takes the mask."""
        return self.verdict is not None and not self.verdict.problem

    @property
    def points(self) -> list[PointHint]:
        """All points."""
        return [each for each in self.actions if isinstance(each, PointHint)]

    @property
    def box(self) -> Box | None:
        """The last box."""
        return next((each.box for each in reversed(self.actions) if isinstance(each, BoxHint)), None)

    @property
    def strokes(self) -> list[Stroke]:
        """All brush strokes."""
        return [each for each in self.actions if isinstance(each, Stroke)]

    @property
    def can_sketch(self) -> bool:
        """Whether something shows where the object is; points beside it alone do not."""
        return self.box is not None or any(each.is_object for each in self.points)

    def target(self, class_word: str, name: str) -> Target:
        """The hints in pixels of the photo's file."""

        def scaled(values: tuple[float, ...]) -> tuple[float, ...]:
            return tuple(round(value / self.scale, 1) for value in values)

        def chosen(is_object: bool) -> tuple[Point, ...]:
            return tuple(scaled(p.point)[:2] for p in self.points if p.is_object == is_object)  # type: ignore[misc]

        box = scaled(self.box)[:4] if self.box else None
        return Target(class_word, name, box, chosen(True), chosen(False) if self.can_sketch else ())  # type: ignore[arg-type]

    def mask(self) -> "np.ndarray | None":
        """The mask with all strokes; None before there is one."""
        import cv2
        import numpy as np

        if self.found is None and not self.strokes:
            return None
        width, height = self.size
        mask = np.zeros((height, width), np.uint8) if self.found is None else self.found.copy()
        for stroke in self.strokes:
            line = np.round(np.array(stroke.points)).astype(np.int32).reshape(-1, 1, 2)
            cv2.polylines(mask, [line], False, 255 if stroke.adds else 0, max(1, round(stroke.width)), cv2.LINE_AA)
            for x, y in line[:: max(1, len(line) - 1), 0]:
                cv2.circle(mask, (int(x), int(y)), max(1, round(stroke.width / 2)), 255 if stroke.adds else 0, -1)
        return mask

    def options(self) -> dict[str, list[str]]:
        """The hints as options of `segment`."""
        target = self.target("", "")

        def joined(values: tuple[float, ...]) -> str:
            return ",".join(f"{value:g}" for value in values)

        return {
            "--box": [joined(target.box_xyxy)] if target.box_xyxy else [],
            "--point": [joined(point) for point in target.points],
            "--negative-point": [joined(point) for point in target.negative_points],
        }


def open_hints(photo: "InteractivePhoto", name: str) -> PhotoHints:
    """A photo without hints."""
    height, width = photo.rgb.shape[:2]
    return PhotoHints(name, width / photo.picture.size[0], (width, height))


def describe(verdict: MaskVerdict) -> str:
    """The verdict of the quality gate in words."""
    if verdict.problem:
        return f"Not usable: {verdict.problem}. {verdict.advice}".strip()
    parts = [f"it covers {verdict.metrics['area']:.0%} of the photo"]
    if verdict.metrics.get("pieces", 1) > 1:
        parts.append(f"in {verdict.metrics['pieces']:.0f} pieces")
    if "likeness" in verdict.metrics:
        parts.append(f"class probability {verdict.metrics['likeness']:.2f}")
    return f"Usable: {', '.join(parts)}."
