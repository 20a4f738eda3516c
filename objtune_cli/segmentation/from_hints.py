"""What looks at a photo, and what a user's hints show in it: masks with exact, soft outlines."""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli.config.sections import Segment
from objtune_cli.errors import InputError, ObjtuneError
from objtune_cli.images import photo
from objtune_cli.models import registry
from objtune_cli.segmentation import quality_gate
from objtune_cli.workflow.context import StageContext

if TYPE_CHECKING:
    import numpy as np

    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.models.clip import Clip
    from objtune_cli.segmentation.detector import Detector
    from objtune_cli.segmentation.types import Hints, Proposal, Segmenter

SEGMENTER_AND_BASE_MB = 14_000
"""What the largest segmenter and SDXL take side by side on a GPU."""
SNAP_REACH = 0.02
"""Reach of an outline to the edges of the colours, fraction of the object's longer side."""
MIN_COLOR_IOU = 0.9
"""IoU from which a mask cut out by colour is the same object, more exactly."""
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
        """Whether the class word is all there is."""
        return not (self.box_xyxy or self.points or self.mask or self.rough_mask)

    @property
    def is_single_point(self) -> bool:
        """Whether one point on it is all that was said of where it is."""
        return len(self.points) == 1 and not (self.box_xyxy or self.rough_mask)

    def hints(self) -> dict[str, Any]:
        """As records keep them."""
        return {
            "box": list(self.box_xyxy or ()),
            "points": [list(p) for p in self.points],
            "beside": [list(p) for p in self.negative_points],
        }


@dataclass(slots=True)
class SegmentedObject:
    """Coverage of one object at the kept size, (H, W) uint8, and how it was found.

    Attributes:
        metrics: Likeness and margin where the class word chose. rivals: What else it might have been. advice: What would help if it is unusable.
        rough: Coverage of the rough mask that it was made from, like `cover`. outline: Why the mask file shows only an outline.
    """

    cover: "np.ndarray"
    found_by: str
    metrics: dict[str, float] = field(default_factory=dict)
    alternatives: list["np.ndarray"] = field(default_factory=list)
    advice: str = HINT_ADVICE
    rough_mask: "np.ndarray | None" = None
    outline: str = ""


class SegmentationModels:
    """What looks at photos: a segmenter and the base's CLIP, each loaded when it is first needed.

    Attributes:
        seen: The photo that the segmenter looks at. proposed: All that it proposes there, once asked.
    """

    def __init__(self, ctx: StageContext, config: Segment) -> None:
        self.ctx, self.config = ctx, config
        self.current_image: np.ndarray | None = None
        self.proposals: list[Proposal] | None = None

    @functools.cached_property
    def segmenter(self) -> "Segmenter":
        from objtune_cli.segmentation import segmenters

        return segmenters.load_segmenter(
            self.config.segmenter, self.config.sam_checkpoint, registry.TOYBOX_SEGMENTER, self._device()
        )

    @functools.cached_property
    def detector(self) -> "Detector | None":
        """A zero-shot detector, where one is set."""
        from objtune_cli.segmentation.detector import Detector

        return Detector(self.config.detector, self._device()) if self.config.detector else None

    def _device(self) -> str:
        """Where a large segmenter or detector computes: on the base's GPU where both have room, else on the processor."""
        from objtune_cli.models import base_model as model
        from objtune_cli.runtime import memory

        device = model.pick_device(self.ctx.common.device)
        return str(device) if device.type == "cuda" and memory.available_mb("cuda") > SEGMENTER_AND_BASE_MB else "cpu"

    @functools.cached_property
    def clip(self) -> "tuple[BaseModel, Clip] | None":
        """The base and its CLIP; None where it has no image tower: then only the picture speaks."""
        from objtune_cli.models import clip as towers

        if self.ctx.base.image_tower is None:
            return None
        model = self.ctx.load_base_model()
        return model, towers.load(self.ctx.base.image_tower, model)

    def knows_class(self, word: str) -> bool:
        """Whether the base can be asked about a class: it is on this machine, has a CLIP, and does not name other classes alone."""
        try:
            base = self.ctx.base
        except ObjtuneError:  # a hint is enough without it
            return False
        return base.image_tower is not None and (not base.words or word in base.words)


class PhotoSegmenter:
    """One photo, embedded once however many hints there are."""

    def __init__(self, models: SegmentationModels, picture: photo.Photo, rgb: "np.ndarray") -> None:
        self.models, self.picture, self.rgb, self.config = models, picture, rgb, models.config
        self.scale = rgb.shape[1] / picture.rgb.shape[1]

    @property
    def segmenter(self) -> "Segmenter":
        """The segmenter, looking at this photo."""
        found = self.models.segmenter
        if self.models.current_image is not self.rgb:
            found.set_image(self.rgb)
            self.models.current_image, self.models.proposals = self.rgb, None
        return found

    def has_hints(self, target: Target, alone: bool) -> bool:
        return not target.has_no_hint or (alone and self.picture.alpha is not None)

    def from_hints(self, target: Target, *, alone: bool) -> SegmentedObject:
        """An object that the user or the photo's transparency shows."""
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
        found = self.finish_mask(self.segmenter.predict(self._hints(target, rough)), self.segmenter.name)
        found.rough_mask, found.outline = cover, outline
        return found

    def _read_mask(self, path: Path) -> tuple["np.ndarray", str]:
        """A mask picture as coverage (H, W) uint8 at the kept size, and why it shows only an outline, else an empty text.

        Black and white are exchanged where black is the object. An outline is looked for before a small mask is enlarged, which blurs thin lines.
        """
        import cv2

        from objtune_cli.images import mask_image as mask

        found = mask.read(path, self.picture)
        for note in found.notes:
            self.models.ctx.report.note(f"{path.name}: {note}")
        size = (self.rgb.shape[1], self.rgb.shape[0])
        own = found.cover
        cover: np.ndarray = cv2.resize(
            own, size, interpolation=cv2.INTER_LINEAR if size[0] > own.shape[1] else cv2.INTER_AREA
        )
        if quality_gate.is_inverted(cover):
            self.models.ctx.report.note(
                f"{path.name}: it looks inverted, white all around: what is black or transparent in it is taken as the object"
            )
            cover, own = 255 - cover, 255 - own
        return cover, quality_gate.outline_reason(own if own.size < cover.size else cover)

    def _hints(self, target: Target, rough: "np.ndarray | None") -> "Hints":
        from objtune_cli.segmentation.types import Hints

        scaled = lambda points: tuple((x * self.scale, y * self.scale) for x, y in points)  # noqa: E731
        box = tuple(v * self.scale for v in target.box_xyxy) if target.box_xyxy else None
        return Hints(box, scaled(target.points), scaled(target.negative_points), rough)  # type: ignore[arg-type]

    def finish_mask(self, proposal: "Proposal", by: str) -> SegmentedObject:
        """A mask with its specks removed and its outline soft."""
        from objtune_cli.segmentation import matting

        mask = self.refine_by_color(self.snap_to_edges(proposal.mask))
        soft = matting.matte(self.rgb, mask, self.config.edge * _longer_side(mask))
        return SegmentedObject((soft * 255).round().astype("uint8"), by, {"quality": round(proposal.quality, 4)})

    def refine_by_color(self, mask: "np.ndarray") -> "np.ndarray":
        """A mask cut out by colour where that agrees with it: a small segmenter blurs legs and corners, colours alone lose whole parts."""
        import numpy as np

        from objtune_cli.numerics import masks
        from objtune_cli.segmentation.grabcut import GrabCut
        from objtune_cli.segmentation.types import Hints

        if not mask.any():
            return mask
        cutter = GrabCut()
        cutter.set_image(self.rgb)
        found = self.snap_to_edges(cutter.predict(Hints(rough_mask=mask.astype(np.float32))).mask)
        return found if masks.iou(found, mask) > MIN_COLOR_IOU else mask

    def snap_to_edges(self, mask: "np.ndarray") -> "np.ndarray":
        """A mask without specks, drawn to the edges of the colours."""
        from objtune_cli.segmentation import matting

        mask = matting.remove_specks(mask)
        return matting.remove_specks(matting.snap_to_edges(self.rgb, mask, SNAP_REACH * _longer_side(mask)))


def _longer_side(mask: "np.ndarray") -> float:
    """Longer side of what a mask covers, px."""
    import numpy as np

    ys, xs = mask.nonzero()
    return float(max(np.ptp(ys), np.ptp(xs))) + 1 if len(ys) else 0.0
