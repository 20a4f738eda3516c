"""Segments objects by the user's hints, with accurate, soft outlines."""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli.config.sections import Segment
from objtune_cli.errors import InputError, ObjtuneError
from objtune_cli.images import photo
from objtune_cli.segmentation import quality_gate
from objtune_cli.workflow.context import StageContext

if TYPE_CHECKING:
    import numpy as np

    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.models.clip import Clip
    from objtune_cli.segmentation.detector import Detector
    from objtune_cli.segmentation.segmenters import SegmenterChoice
    from objtune_cli.segmentation.types import Hints, Point, Proposal, Segmenter, WordSegmenter

SEGMENTER_AND_BASE_MB = 14_000
"""GPU memory for the largest segmenter and SDXL together, MB."""
SNAP_REACH = 0.02
"""Largest distance by which an outline moves to a colour edge, fraction of the object's longer side."""
MIN_COLOR_IOU = 0.9
"""Smallest IoU at which a mask refined by colour replaces the original."""
ALPHA_ADVICE = (
    "the photo's transparency was taken as its mask; give the photo without it, or `--mask M.png`, `--box x0,y0,x1,y1`"
)
MASK_ADVICE = (
    "a mask is white on the object alone, filled, and black elsewhere; or show the object with `--box x0,y0,x1,y1`"
)
HINT_ADVICE = "give `--box x0,y0,x1,y1`, `--point x,y` or `--mask M.png`"


@dataclass(frozen=True, slots=True)
class Target:
    """One object to find: its class and name, and what the user said about where it is (photo px).

    Attributes:
        mask: A picture of exactly the object. rough: of roughly the object, to be made exact.
    """

    class_word: str
    name: str
    box_xyxy: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] = ()
    negative_points: tuple[tuple[float, float], ...] = ()
    mask: Path | None = None
    rough_mask: Path | None = None

    @property
    def has_no_hint(self) -> bool:
        """Whether the class word is the only information."""
        return not (self.box_xyxy or self.points or self.mask or self.rough_mask)

    @property
    def is_single_point(self) -> bool:
        """Whether a single point is the only positive hint."""
        return len(self.points) == 1 and not (self.box_xyxy or self.rough_mask)

    def to_record(self) -> dict[str, Any]:
        """Hints as the record of a mask stores them."""
        return {
            "box": list(self.box_xyxy or ()),
            "points": [list(p) for p in self.points],
            "beside": [list(p) for p in self.negative_points],
        }


@dataclass(slots=True)
class SegmentedObject:
    """Coverage of one object (H, W) uint8 at the stored size, and how it was found.

    Attributes:
        metrics: Scores of the mask. alternatives: Masks of other candidates. advice: Hint for the user if the mask is unusable.
        rough_mask: Coverage of the user's rough mask, like `cover`. outline: Why the mask file shows only an outline.
    """

    cover: "np.ndarray"
    found_by: str
    metrics: dict[str, float] = field(default_factory=dict)
    alternatives: list["np.ndarray"] = field(default_factory=list)
    advice: str = HINT_ADVICE
    rough_mask: "np.ndarray | None" = None
    outline: str = ""


class SegmentationModels:
    """A segmenter, a detector and the base's CLIP, each loaded on first use.

    Attributes:
        current_image: The image that is set in the segmenter. proposals: Its cached proposals for that image.
    """

    def __init__(self, ctx: StageContext, config: Segment, choice: "SegmenterChoice | None" = None) -> None:
        """`choice`: The segmenter, if it was chosen before."""
        self.ctx, self.config, self.choice = ctx, config, choice
        self.current_image: np.ndarray | None = None
        self.proposals: list[Proposal] | None = None

    @functools.cached_property
    def segmenter(self) -> "Segmenter":
        from objtune_cli.segmentation import segmenters

        choice = self.choice or segmenters.choose_segmenter(self.ctx, self.config)
        if choice.note:
            self.ctx.note_once(choice.note)
        return segmenters.load_segmenter(choice, self._device())

    @property
    def word_segmenter(self) -> "WordSegmenter | None":
        """The segmenter if it finds objects by words, and no detector is set for that."""
        from objtune_cli.segmentation.types import WordSegmenter

        return self.segmenter if not self.config.detector and isinstance(self.segmenter, WordSegmenter) else None

    @functools.cached_property
    def detector(self) -> "Detector | None":
        """A zero-shot detector, where one is set."""
        from objtune_cli.segmentation.detector import Detector

        return Detector(self.config.detector, self._device()) if self.config.detector else None

    def _device(self) -> str:
        """Device of a large segmenter or detector: the base's GPU if both fit, else the CPU."""
        from objtune_cli.runtime import devices, memory

        device = devices.pick_device(self.ctx.common.device)
        return str(device) if device.type == "cuda" and memory.available_mb("cuda") > SEGMENTER_AND_BASE_MB else "cpu"

    @functools.cached_property
    def clip(self) -> "tuple[BaseModel, Clip] | None":
        """The base and its CLIP; None if the base has no CLIP image encoder, or knows no photographs."""
        from objtune_cli.models import clip as towers

        if self.ctx.base.clip_path is None or (self.choice is not None and self.choice.ignores_word):
            return None
        model = self.ctx.load_base_model()
        return model, towers.load(self.ctx.base.clip_path, model)

    def knows_class(self, word: str) -> bool:
        """Whether the base is on this machine, has a CLIP image encoder, and knows the class."""
        try:
            base = self.ctx.base
        except ObjtuneError:  # a hint is enough without it
            return False
        return base.clip_path is not None and (not base.known_classes or word in base.known_classes)


class PhotoSegmenter:
    """Segments objects in one photo, which is embedded only once."""

    def __init__(self, models: SegmentationModels, picture: photo.Photo, rgb: "np.ndarray") -> None:
        self.models, self.picture, self.rgb, self.config = models, picture, rgb, models.config
        self.scale = rgb.shape[1] / picture.size[0]

    @property
    def segmenter(self) -> "Segmenter":
        """The segmenter with this photo set as its image."""
        self.set_image()
        return self.models.segmenter

    def set_image(self) -> None:
        """Set this photo as the segmenter's image."""
        if self.models.current_image is not self.rgb:
            self.models.segmenter.set_image(self.rgb)
            self.models.current_image, self.models.proposals = self.rgb, None

    def has_hints(self, target: Target, is_only: bool) -> bool:
        return not target.has_no_hint or (is_only and self.picture.alpha is not None)

    def from_hints(self, target: Target, *, is_only: bool) -> SegmentedObject:
        """Segment an object by the user's hints or the photo's transparency."""
        import cv2
        import numpy as np

        if target.mask:
            exact, outline = self._read_mask(target.mask)
            return SegmentedObject(exact, "mask", advice=MASK_ADVICE, outline=outline)
        if target.has_no_hint and self.picture.alpha is not None:
            size = (self.rgb.shape[1], self.rgb.shape[0])
            return SegmentedObject(
                cv2.resize(self.picture.alpha, size, interpolation=cv2.INTER_AREA), "alpha", advice=ALPHA_ADVICE
            )
        cover: np.ndarray | None = None
        outline = ""
        if target.rough_mask:
            cover, outline = self._read_mask(target.rough_mask)
        rough = None if cover is None else cover.astype(np.float32) / 255
        if rough is not None and not (rough > 0.5).any():
            raise InputError(f"the rough mask {target.rough_mask} is empty", "white is the object")
        segmented = self.finish_mask(self.segmenter.predict(self._hints(target, rough)), self.segmenter.name)
        segmented.rough_mask, segmented.outline = cover, outline
        return segmented

    def sketch(self, target: Target) -> "np.ndarray":
        """The segmenter's first answer (H, W) bool to boxes and points, before outlines are refined."""
        return self.segmenter.predict(self._hints(target, None)).mask

    def _read_mask(self, path: Path) -> tuple["np.ndarray", str]:
        """A mask picture as coverage (H, W) uint8 at the kept size, and why it shows only an outline, else an empty text.

        Black and white are exchanged where black is the object. An outline is looked for before a small mask is enlarged, which blurs thin lines.
        """
        import cv2

        from objtune_cli.images import mask_image as mask

        mask_image = mask.read(path, self.picture)
        for note in mask_image.notes:
            self.models.ctx.report.note(f"{path.name}: {note}")
        size = (self.rgb.shape[1], self.rgb.shape[0])
        own = mask_image.cover
        cover: np.ndarray = cv2.resize(
            own, size, interpolation=cv2.INTER_LINEAR if size[0] > own.shape[1] else cv2.INTER_AREA
        )
        if quality_gate.is_inverted(cover):
            self.models.ctx.report.note(
                f"{path.name}: it looks inverted, white all around: what is black or transparent in it is taken as the object"
            )
            cover, own = 255 - cover, 255 - own
        return cover, quality_gate.explain_outline(own if own.size < cover.size else cover)

    def _hints(self, target: Target, rough: "np.ndarray | None") -> "Hints":
        from objtune_cli.segmentation.types import Hints

        def scaled(points: "tuple[Point, ...]") -> "tuple[Point, ...]":
            return tuple((x * self.scale, y * self.scale) for x, y in points)

        box = None
        if target.box_xyxy:
            left, top, right, bottom = target.box_xyxy
            box = (left * self.scale, top * self.scale, right * self.scale, bottom * self.scale)
        return Hints(box, scaled(target.points), scaled(target.negative_points), rough)

    def finish_mask(self, proposal: "Proposal", by: str) -> SegmentedObject:
        """Remove specks, refine by colour and soften the outline of a mask."""
        from objtune_cli.segmentation import matting

        mask = self.refine_by_color(self.snap_to_edges(proposal.mask))
        soft = matting.matte(self.rgb, mask, self.config.edge_softness * _longer_side(mask))
        return SegmentedObject((soft * 255).round().astype("uint8"), by, {"quality": round(proposal.quality, 4)})

    def refine_by_color(self, mask: "np.ndarray") -> "np.ndarray":
        """Refine a mask by GrabCut if the result agrees with it.

        A small segmenter blurs legs and corners; colours alone lose whole parts.
        """
        import numpy as np

        from objtune_cli.numerics import masks
        from objtune_cli.segmentation.grabcut import GrabCut
        from objtune_cli.segmentation.types import Hints

        if not mask.any():
            return mask
        cutter = GrabCut()
        cutter.set_image(self.rgb)
        refined = self.snap_to_edges(cutter.predict(Hints(rough_mask=mask.astype(np.float32))).mask)
        return refined if masks.iou(refined, mask) > MIN_COLOR_IOU else mask

    def snap_to_edges(self, mask: "np.ndarray") -> "np.ndarray":
        """Remove specks and move the outline to colour edges."""
        from objtune_cli.segmentation import matting

        mask = matting.remove_specks(mask)
        return matting.remove_specks(matting.snap_to_edges(self.rgb, mask, SNAP_REACH * _longer_side(mask)))


def _longer_side(mask: "np.ndarray") -> float:
    """Longer side of what a mask covers, px."""
    import numpy as np

    ys, xs = mask.nonzero()
    return float(max(np.ptp(ys), np.ptp(xs))) + 1 if len(ys) else 0.0
