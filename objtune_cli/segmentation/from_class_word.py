"""Segments every object of a photo by its mask, the photo's transparency, hints, or the class word only."""

from typing import TYPE_CHECKING

from objtune_cli.errors import InputError
from objtune_cli.images import photo
from objtune_cli.segmentation import quality_gate
from objtune_cli.segmentation.from_hints import PhotoSegmenter, SegmentationModels, SegmentedObject, Target
from objtune_cli.workflow import class_words

if TYPE_CHECKING:
    import numpy as np

    from objtune_cli.segmentation.ranking import Candidate
    from objtune_cli.segmentation.types import Proposal

RANKING_SIDE = 320
"""Longer side of the photo for the ranking of proposals, px."""
SHORTLIST = 6
"""Candidates per word that are refined before the final ranking."""
MAX_DETECTIONS = 12
"""Largest number of a detector's boxes that are segmented."""


def segment_objects(
    models: SegmentationModels, picture: photo.Photo, rgb: "np.ndarray", targets: list[Target]
) -> list[SegmentedObject]:
    """Segment every target; each pixel belongs to one of them at most.

    Raises:
        InputError: A mask is unusable, or two objects claim one region.
    """
    search = _ClassWordSegmenter(models, picture, rgb)
    segmented: dict[int, SegmentedObject] = {
        i: search.from_hints(t, is_only=len(targets) == 1)
        for i, t in enumerate(targets)
        if search.has_hints(t, len(targets) == 1)
    }
    blind = [i for i in range(len(targets)) if i not in segmented]
    segmented |= dict(
        zip(
            blind,
            search.by_class_word([targets[i] for i in blind], [segmented[i].cover for i in segmented]),
            strict=True,
        )
        if blind
        else {}
    )
    located = [segmented[i] for i in range(len(targets))]
    _separate_objects(targets, located)
    return located


class _ClassWordSegmenter(PhotoSegmenter):
    """Segments one photo by ranking proposals with class words.

    Attributes:
        full: The same photo at the stored size.
    """

    def __init__(
        self,
        models: SegmentationModels,
        picture: photo.Photo,
        rgb: "np.ndarray",
        full: "_ClassWordSegmenter | None" = None,
    ) -> None:
        super().__init__(models, picture, rgb)
        self.full = full or self

    def from_hints(self, target: Target, *, is_only: bool) -> SegmentedObject:
        """Segment by hints; the class word disambiguates a single point if the base knows the word."""
        if not (target.is_single_point and self.models.knows_class(target.class_word)):
            return super().from_hints(target, is_only=is_only)
        near = self._downscale()
        proposals = [p for p in near.segmenter.predict_all(near._hints(target, None)) if _is_plausible(p.mask, [])]
        if not proposals:
            return super().from_hints(target, is_only=is_only)
        words = [target.class_word]
        candidates = near._rank(near._refine_best(proposals, near._rank(proposals, words)), words)[target.class_word]
        located = self._finish(candidates[0], [])
        located.advice = "give `--box x0,y0,x1,y1`, or more points on it"
        return located

    def by_class_word(self, targets: list[Target], others: list["np.ndarray"]) -> list[SegmentedObject]:
        """Choose masks for targets without hints jointly, without overlaps with each other or with the masks in `taken`."""
        import numpy as np

        from objtune_cli.segmentation import ranking

        words = list(dict.fromkeys(t.class_word for t in targets))
        near = self._downscale()
        proposals = [p for p in near._propose(words) if _is_plausible(p.mask, [_resize(t, near.rgb) for t in others])]
        empty = SegmentedObject(np.zeros(self.rgb.shape[:2], np.uint8), self.models.segmenter.name)
        if not proposals:
            return [empty for _ in targets]
        ranked = near._rank(proposals, words)
        by_word = near._rank(near._refine_best(proposals, ranked, again=self.models.word_segmenter is None), words)
        choices = [
            self._apply_selection(by_word[t.class_word], sum(o.class_word == t.class_word for o in targets))
            for t in targets
        ]
        picks = ranking.assign(choices)
        if picks is None:
            return [empty for _ in targets]
        best = _sort_left_to_right(targets, [c[i] for c, i in zip(choices, picks, strict=True)])
        return [
            self._finish(c, [r for r in by_word[t.class_word] if all(r is not b for b in best)])
            for c, t in zip(best, targets, strict=True)
        ]

    def _downscale(self) -> "_ClassWordSegmenter":
        """The photo at a size for fast ranking; the chosen mask is refined at full size."""
        import cv2

        height, width = self.rgb.shape[:2]
        scale = RANKING_SIDE / max(height, width)
        if scale >= 1:
            return self
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(self.rgb, size, interpolation=cv2.INTER_AREA)
        return _ClassWordSegmenter(self.models, self.picture, small, self)

    def _rank(self, proposals: list["Proposal"], words: list[str]) -> dict[str, list["Candidate"]]:
        """Sorted candidates of each word, one per object."""
        from objtune_cli.segmentation import ranking

        likely = self._class_probabilities(proposals, words)
        masks, qualities = [p.mask for p in proposals], [p.quality for p in proposals]
        return {
            w: ranking.suppress_duplicates(ranking.rank(self.rgb, masks, qualities, likely[:, i]))
            for i, w in enumerate(words)
        }

    def _refine_best(
        self, proposals: list["Proposal"], ranked: dict[str, list["Candidate"]], *, again: bool = True
    ) -> list["Proposal"]:
        """Refine the best candidates of all words, because their cut-outs depend on the outline.

        Args:
            again: Whether the segmenter predicts them again.
        """
        from objtune_cli.segmentation.types import Proposal

        short = {id(c.mask): c.mask for candidates in ranked.values() for c in candidates[:SHORTLIST]}
        refined = [self.segmenter.refine(p) if again else p for p in proposals if id(p.mask) in short]
        exact = [Proposal(self.snap_to_edges(p.mask), p.quality) for p in refined]
        return [p for p in exact if _is_plausible(p.mask, [])] or refined

    def _propose(self, words: list[str]) -> list["Proposal"]:
        """Proposals from a detector's boxes for the words, from a segmenter that reads words, else from the segmenter."""
        from objtune_cli.segmentation.types import Hints, Proposal

        reader = self.models.word_segmenter
        if reader is not None:
            self.full.set_image()
            return [Proposal(_resize(p.mask * 255, self.rgb) > 127, p.quality) for p in reader.propose_words(words)]
        if self.models.detector is None:
            segmenter = self.segmenter
            if self.models.proposals is None:
                self.models.proposals = segmenter.propose_all()
            return self.models.proposals
        boxes = self.models.detector.detect(self.rgb, words)[:MAX_DETECTIONS]
        return [self.segmenter.predict(Hints(d.box)) for d in boxes]

    def _apply_selection(self, candidates: list["Candidate"], count: int) -> list["Candidate"]:
        """Candidates of one word; a single target gets the one that the setting `which` selects."""
        from objtune_cli.segmentation import ranking

        if self.config.select != "best":
            return ranking.select(candidates, self.config.select)[:1] if count == 1 else candidates
        return candidates

    def _class_probabilities(self, proposals: list["Proposal"], words: list[str]) -> "np.ndarray":
        """Probability (N, W) of each word for each proposal; 1 without CLIP."""
        import numpy as np

        from objtune_cli.segmentation import ranking

        if self.models.clip is None:
            return np.ones((len(proposals), len(words)))
        known_words = self.models.ctx.base.known_classes
        heads = {class_words.match_last_word(word, known_words) for word in words}  # a red mug is also a mug
        others = [word for word in known_words if word not in heads]
        return ranking.class_probabilities(*self.models.clip, self.rgb, [p.mask for p in proposals], words, others)

    def _finish(self, candidate: "Candidate", rivals: list["Candidate"]) -> SegmentedObject:
        """Refine the candidate that was chosen and record its probability, margin and score."""
        from objtune_cli.segmentation.types import Proposal

        proposal = Proposal(_resize(candidate.mask * 255, self.rgb) > 127, candidate.quality)
        if candidate.mask.shape != self.rgb.shape[:2]:
            proposal = self.segmenter.refine(proposal)
        segmented = self.finish_mask(proposal, self.models.segmenter.name)
        if self.models.clip is not None:
            segmented.metrics["likeness"] = round(candidate.class_probability, 4)
        if rivals and self.config.select == "best":
            segmented.metrics["margin"] = round(candidate.score - rivals[0].score, 4)
        segmented.metrics["score"] = round(candidate.score, 4)
        segmented.alternatives = [_resize(r.mask * 255, self.rgb) > 127 for r in rivals[:3]]
        if segmented.metrics.get("margin", self.config.min_score_margin) < self.config.min_score_margin:
            segmented.advice = "say which: `--select largest`, `--select left`, or `--point x,y` on it"
        return segmented


def _sort_left_to_right(targets: list[Target], best: list["Candidate"]) -> list["Candidate"]:
    """Assign several objects of one class from left to right, in the order of their names."""
    in_order = list(best)
    for word in {t.class_word for t in targets}:
        own = [i for i, t in enumerate(targets) if t.class_word == word]
        for i, candidate in zip(
            own, sorted((best[k] for k in own), key=lambda c: float(c.mask.nonzero()[1].mean())), strict=True
        ):
            in_order[i] = candidate
    return in_order


def _is_plausible(mask: "np.ndarray", others: list["np.ndarray"]) -> bool:
    """Whether a proposal has a plausible size and border contact, and is not another target's object."""
    from objtune_cli.numerics import masks
    from objtune_cli.segmentation import ranking

    area = float(mask.mean())
    if (
        not quality_gate.MIN_AREA <= area <= quality_gate.MAX_AREA
        or ranking.border_share(mask) > quality_gate.MAX_BORDER
    ):
        return False
    return all(masks.iou(mask, other > 127) < ranking.SAME_IOU for other in others)


def _resize(cover: "np.ndarray", rgb: "np.ndarray") -> "np.ndarray":
    """Resize coverage to the size of an image, uint8."""
    import cv2

    size = (rgb.shape[1], rgb.shape[0])
    cover = cover.astype("uint8")
    return (
        cover
        if cover.shape == rgb.shape[:2]
        else cv2.resize(cover, size, interpolation=cv2.INTER_AREA if size[0] < cover.shape[1] else cv2.INTER_LINEAR)
    )


def _separate_objects(targets: list[Target], located: list[SegmentedObject]) -> None:
    """Assign each pixel to one object: first to objects with a user's mask, then to smaller ones, which are in front.

    Raises:
        InputError: Two masks cover the same object.
    """
    import numpy as np

    from objtune_cli.numerics import masks
    from objtune_cli.segmentation import ranking

    order = sorted(
        range(len(located)), key=lambda i: (located[i].found_by != "mask", int((located[i].cover > 127).sum()))
    )
    for n, i in enumerate(order):
        for j in order[n + 1 :]:
            a, b = located[i].cover, located[j].cover
            if (a > 127).any() and masks.iou(a > 127, b > 127) > ranking.SAME_IOU:
                raise InputError(
                    f"{targets[i].name} and {targets[j].name} claim the same region",
                    "give each a box, a point or a mask of its own",
                )
            located[j].cover = np.minimum(b, 255 - a)
