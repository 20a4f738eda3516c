"""Where each object is: from a mask, the photo's own transparency, hints, or the class word alone."""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli import bases
from objtune_cli.config import Segment
from objtune_cli.errors import InputError
from objtune_cli.stages import gate
from objtune_cli.stages.context import Context
from objtune_cli.store import photo

if TYPE_CHECKING:
    import numpy as np

    from objtune_cli.method.choosing import Candidate
    from objtune_cli.models.detector import Detector
    from objtune_cli.models.segmenter import Hints, Proposal, Segmenter
    from objtune_cli.models.stack import Stack
    from objtune_cli.models.towers import Towers

SNAP = 0.02
"""Reach of an outline to the edges of the colours, fraction of the object's longer side."""
AGREED = 0.9
"""IoU from which a mask cut out by colour is the same object, more exactly."""
CHOOSING = 320
"""Longer side of the photo while proposals are compared, px."""
SHORTLIST = 6
"""Candidates of each word that are outlined exactly before one is chosen."""
DETECTED = 12
"""Boxes of a detector that are looked into."""
ADVICE = "give `--box x0,y0,x1,y1`, `--point x,y` or `--mask M.png`"


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
    beside: tuple[tuple[float, float], ...] = ()
    mask: Path | None = None
    rough: Path | None = None

    @property
    def blind(self) -> bool:
        """Whether the class word is all there is."""
        return not (self.box_xyxy or self.points or self.mask or self.rough)

    def hints(self) -> dict[str, Any]:
        """As records keep them."""
        return {"box": list(self.box_xyxy or ()), "points": [list(p) for p in self.points], "beside": [list(p) for p in self.beside]}


@dataclass(slots=True)
class Located:
    """Coverage of one object at the kept size, (H, W) uint8, and how it was found.

    Attributes:
        metrics: Likeness and margin where the class word chose. rivals: What else it might have been. advice: What would help if it is unusable.
    """

    cover: "np.ndarray"
    by: str
    metrics: dict[str, float] = field(default_factory=dict)
    rivals: list["np.ndarray"] = field(default_factory=list)
    advice: str = ADVICE


class Eyes:
    """What looks at photos: a segmenter and the base's CLIP, each loaded when it is first needed.

    Attributes:
        seen: The photo that the segmenter looks at. proposed: All that it proposes there, once asked.
    """

    def __init__(self, ctx: Context, config: Segment) -> None:
        self.ctx, self.config = ctx, config
        self.seen: np.ndarray | None = None
        self.proposed: list[Proposal] | None = None

    @functools.cached_property
    def segmenter(self) -> "Segmenter":
        from objtune_cli.models import segmenter

        return segmenter.load(self.config.segmenter, self.config.sam_checkpoint, bases.SEGMENTER)

    @functools.cached_property
    def detector(self) -> "Detector | None":
        """A zero-shot detector, where one is set."""
        from objtune_cli.models.detector import Detector

        return Detector(self.config.detector) if self.config.detector else None

    @functools.cached_property
    def clip(self) -> "tuple[Stack, Towers] | None":
        """The base and its CLIP; None where it has no image tower: then only the picture speaks."""
        from objtune_cli.models import towers

        if self.ctx.base.image_tower is None:
            return None
        stack = self.ctx.stack()
        return stack, towers.load(self.ctx.base.image_tower, stack)


def all_of(eyes: Eyes, picture: photo.Photo, rgb: "np.ndarray", targets: list[Target]) -> list[Located]:
    """Every target, each pixel to one of them.

    Raises:
        InputError: A hint outside the photo, a mask of another size, or two objects that claim one region.
    """
    search = _Search(eyes, picture, rgb)
    for target in targets:
        search.check(target)
    found: dict[int, Located] = {
        i: search.told(t, alone=len(targets) == 1) for i, t in enumerate(targets) if search.is_told(t, len(targets) == 1)
    }
    blind = [i for i in range(len(targets)) if i not in found]
    found |= dict(zip(blind, search.chosen([targets[i] for i in blind], [found[i].cover for i in found]), strict=True) if blind else {})
    located = [found[i] for i in range(len(targets))]
    _apart(targets, located)
    return located


class _Search:
    """One photo, embedded once however many hints there are."""

    def __init__(self, eyes: Eyes, picture: photo.Photo, rgb: "np.ndarray") -> None:
        self.eyes, self.picture, self.rgb, self.config = eyes, picture, rgb, eyes.config
        self.scale = rgb.shape[1] / picture.rgb.shape[1]

    @property
    def segmenter(self) -> "Segmenter":
        """The segmenter, looking at this photo."""
        found = self.eyes.segmenter
        if self.eyes.seen is not self.rgb:
            found.look(self.rgb)
            self.eyes.seen, self.eyes.proposed = self.rgb, None
        return found

    def check(self, target: Target) -> None:
        """Refuse hints outside the photo, before anything is loaded."""
        height, width = self.picture.rgb.shape[:2]
        if target.box_xyxy:
            x0, y0, x1, y1 = target.box_xyxy
            if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
                raise InputError(
                    f"the box {x0:g},{y0:g},{x1:g},{y1:g} is not inside the photo ({width}x{height})",
                    "x0,y0 is its upper left, x1,y1 its lower right corner",
                )
        for x, y in (*target.points, *target.beside):
            if not (0 <= x < width and 0 <= y < height):
                raise InputError(
                    f"the point {x:g},{y:g} is not inside the photo ({width}x{height})", "give pixels of the photo as it is shown"
                )

    def is_told(self, target: Target, alone: bool) -> bool:
        return not target.blind or (alone and self.picture.alpha is not None)

    def told(self, target: Target, *, alone: bool) -> Located:
        """An object that the user or the photo's transparency shows."""
        import cv2
        import numpy as np

        height, width = self.picture.rgb.shape[:2]
        size = (self.rgb.shape[1], self.rgb.shape[0])
        exact = photo.read_mask(target.mask, (width, height)) if target.mask else self.picture.alpha if target.blind else None
        if exact is not None:
            return Located(cv2.resize(exact, size, interpolation=cv2.INTER_AREA), "mask" if target.mask else "alpha")
        rough = None
        if target.rough:
            rough = cv2.resize(photo.read_mask(target.rough, (width, height)), size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
            if not (rough > 0.5).any():
                raise InputError(f"the rough mask {target.rough} is empty", "white is the object")
        return self._outlined(self.segmenter.find(self._hints(target, rough)), self.segmenter.name)

    def _hints(self, target: Target, rough: "np.ndarray | None") -> "Hints":
        from objtune_cli.models.segmenter import Hints

        scaled = lambda points: tuple((x * self.scale, y * self.scale) for x, y in points)  # noqa: E731
        box = tuple(v * self.scale for v in target.box_xyxy) if target.box_xyxy else None
        return Hints(box, scaled(target.points), scaled(target.beside), rough)  # type: ignore[arg-type]

    def _outlined(self, proposal: "Proposal", by: str) -> Located:
        """A mask with its specks removed and its outline soft."""
        from objtune_cli.models import matting

        mask = self._cut(self._snapped(proposal.mask))
        soft = matting.matte(self.rgb, mask, self.config.edge * _extent(mask))
        return Located((soft * 255).round().astype("uint8"), by, {"quality": round(proposal.quality, 4)})

    def _cut(self, mask: "np.ndarray") -> "np.ndarray":
        """A mask cut out by colour where that agrees with it: a small segmenter blurs legs and corners, colours alone lose whole parts."""
        import numpy as np

        from objtune_cli.models.grabcut import GrabCut
        from objtune_cli.models.segmenter import Hints
        from objtune_cli.numerics import masks

        if not mask.any():
            return mask
        cutter = GrabCut()
        cutter.look(self.rgb)
        found = self._snapped(cutter.find(Hints(rough=mask.astype(np.float32))).mask)
        return found if masks.iou(found, mask) > AGREED else mask

    def chosen(self, targets: list[Target], taken: list["np.ndarray"]) -> list[Located]:
        """Objects that only their class words tell, chosen together: no thing twice, and nothing that is another's already."""
        import numpy as np

        from objtune_cli.method import choosing

        words = list(dict.fromkeys(t.class_word for t in targets))
        near = self._smaller()
        proposals = [p for p in near._proposals(words) if _possible(p.mask, [_resized(t, near.rgb) for t in taken])]
        empty = Located(np.zeros(self.rgb.shape[:2], np.uint8), self.eyes.segmenter.name)
        if not proposals:
            return [empty for _ in targets]
        by_word = near._ranked(near._exactly(proposals, near._ranked(proposals, words)), words)
        choices = [self._ordered(by_word[t.class_word], sum(o.class_word == t.class_word for o in targets)) for t in targets]
        picks = choosing.assigned(choices)
        if picks is None:
            return [empty for _ in targets]
        best = _left_to_right(targets, [c[i] for c, i in zip(choices, picks, strict=True)])
        return [
            self._said(c, [r for r in by_word[t.class_word] if all(r is not b for b in best)]) for c, t in zip(best, targets, strict=True)
        ]

    def _smaller(self) -> "_Search":
        """The same photo at a size at which many proposals are quickly compared; the chosen one is outlined on the whole."""
        import cv2

        height, width = self.rgb.shape[:2]
        scale = CHOOSING / max(height, width)
        if scale >= 1:
            return self
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return _Search(self.eyes, self.picture, cv2.resize(self.rgb, size, interpolation=cv2.INTER_AREA))

    def _ranked(self, proposals: list["Proposal"], words: list[str]) -> dict[str, list["Candidate"]]:
        """For each word what it may mean, one candidate for each thing, best first."""
        from objtune_cli.method import choosing

        likely = self._likely(proposals, words)
        masks, qualities = [p.mask for p in proposals], [p.quality for p in proposals]
        return {w: choosing.rivals(choosing.ranked(self.rgb, masks, qualities, likely[:, i])) for i, w in enumerate(words)}

    def _exactly(self, proposals: list["Proposal"], found: dict[str, list["Candidate"]]) -> list["Proposal"]:
        """The best candidates of all words with exact outlines: what a cut-out shows depends on them."""
        from objtune_cli.models.segmenter import Proposal

        short = {id(c.mask): c.mask for candidates in found.values() for c in candidates[:SHORTLIST]}
        chosen = [self.segmenter.refined(p) for p in proposals if id(p.mask) in short]
        exact = [Proposal(self._snapped(p.mask), p.quality) for p in chosen]
        return [p for p in exact if _possible(p.mask, [])] or chosen

    def _snapped(self, mask: "np.ndarray") -> "np.ndarray":
        """A mask without specks, drawn to the edges of the colours."""
        from objtune_cli.models import matting

        mask = matting.without_specks(mask)
        return matting.without_specks(matting.snapped(self.rgb, mask, SNAP * _extent(mask)))

    def _proposals(self, words: list[str]) -> list["Proposal"]:
        """What may be an object: whatever lies in a detector's boxes for the words, or all that the segmenter proposes."""
        from objtune_cli.models.segmenter import Hints

        if self.eyes.detector is None:
            segmenter = self.segmenter
            if self.eyes.proposed is None:
                self.eyes.proposed = segmenter.everything()
            return self.eyes.proposed
        boxes = self.eyes.detector.boxes(self.rgb, words)[:DETECTED]
        return [self.segmenter.find(Hints(d.box)) for d in boxes]

    def _ordered(self, found: list["Candidate"], count: int) -> list["Candidate"]:
        """Candidates of one word; the one that `which` means where only one is asked for."""
        from objtune_cli.method import choosing

        if self.config.which != "best":
            return choosing.of_several(found, self.config.which)[:1] if count == 1 else found
        return found

    def _likely(self, proposals: list["Proposal"], words: list[str]) -> "np.ndarray":
        """Each proposal's probability of each word; 1 where there is no CLIP to ask."""
        import numpy as np

        from objtune_cli.method import choosing

        if self.eyes.clip is None:
            return np.ones((len(proposals), len(words)))
        return choosing.likeness(*self.eyes.clip, self.rgb, [p.mask for p in proposals], words, self.eyes.ctx.base.words)

    def _said(self, chosen: "Candidate", rivals: list["Candidate"]) -> Located:
        """The chosen one outlined exactly, with how sure that is."""
        from objtune_cli.models.segmenter import Proposal

        proposal = Proposal(_resized(chosen.mask * 255, self.rgb) > 127, chosen.quality)
        if chosen.mask.shape != self.rgb.shape[:2]:
            proposal = self.segmenter.refined(proposal)
        found = self._outlined(proposal, self.eyes.segmenter.name)
        if self.eyes.clip is not None:
            found.metrics["likeness"] = round(chosen.likeness, 4)
        if rivals and self.config.which == "best":
            found.metrics["margin"] = round(chosen.score - rivals[0].score, 4)
        found.metrics["score"] = round(chosen.score, 4)
        found.rivals = [_resized(r.mask * 255, self.rgb) > 127 for r in rivals[:3]]
        if found.metrics.get("margin", self.config.min_margin) < self.config.min_margin:
            found.advice = "say which: `--which largest`, `--which left`, or `--point x,y` on it"
        return found


def _left_to_right(targets: list[Target], best: list["Candidate"]) -> list["Candidate"]:
    """Several objects of one class in the order in which they were named, from left to right."""
    found = list(best)
    for word in {t.class_word for t in targets}:
        own = [i for i, t in enumerate(targets) if t.class_word == word]
        for i, candidate in zip(own, sorted((best[k] for k in own), key=lambda c: float(c.mask.nonzero()[1].mean())), strict=True):
            found[i] = candidate
    return found


def _possible(mask: "np.ndarray", taken: list["np.ndarray"]) -> bool:
    """Whether a proposal may be an object at all, and no other target's."""
    from objtune_cli.method import choosing
    from objtune_cli.numerics import masks

    area = float(mask.mean())
    if not gate.MIN_AREA <= area <= gate.MAX_AREA or choosing.on_border(mask) > gate.MAX_BORDER:
        return False
    return all(masks.iou(mask, other > 127) < choosing.SAME for other in taken)


def _resized(cover: "np.ndarray", rgb: "np.ndarray") -> "np.ndarray":
    """Coverage uint8 at the size of a picture."""
    import cv2

    size = (rgb.shape[1], rgb.shape[0])
    cover = cover.astype("uint8")
    return (
        cover
        if cover.shape == rgb.shape[:2]
        else cv2.resize(cover, size, interpolation=cv2.INTER_AREA if size[0] < cover.shape[1] else cv2.INTER_LINEAR)
    )


def _extent(mask: "np.ndarray") -> float:
    """Longer side of what a mask covers, px."""
    import numpy as np

    ys, xs = mask.nonzero()
    return float(max(np.ptp(ys), np.ptp(xs))) + 1 if len(ys) else 0.0


def _apart(targets: list[Target], located: list[Located]) -> None:
    """Give each pixel to one object: to one whose mask was given, else to the smaller one, which is in front.

    Raises:
        InputError: Two are the same thing.
    """
    import numpy as np

    from objtune_cli.method import choosing
    from objtune_cli.numerics import masks

    order = sorted(range(len(located)), key=lambda i: (located[i].by != "mask", int((located[i].cover > 127).sum())))
    for n, i in enumerate(order):
        for j in order[n + 1 :]:
            a, b = located[i].cover, located[j].cover
            if (a > 127).any() and masks.iou(a > 127, b > 127) > choosing.SAME:
                raise InputError(
                    f"{targets[i].name} and {targets[j].name} claim the same region", "give each a box, a point or a mask of its own"
                )
            located[j].cover = np.minimum(b, 255 - a)
