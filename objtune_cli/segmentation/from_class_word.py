"""Where each object is: from a mask, the photo's own transparency, hints, or the class word alone."""

from typing import TYPE_CHECKING

from objtune_cli.errors import InputError
from objtune_cli.images import photo
from objtune_cli.segmentation import quality_gate
from objtune_cli.segmentation.from_hints import Eyes, Located, Sight, Target
from objtune_cli.workflow import class_words

if TYPE_CHECKING:
    import numpy as np

    from objtune_cli.segmentation.ranking import Candidate
    from objtune_cli.segmentation.types import Proposal

CHOOSING = 320
"""Longer side of the photo while proposals are compared, px."""
SHORTLIST = 6
"""Candidates of each word that are outlined exactly before one is chosen."""
DETECTED = 12
"""Boxes of a detector that are looked into."""


def all_of(eyes: Eyes, picture: photo.Photo, rgb: "np.ndarray", targets: list[Target]) -> list[Located]:
    """Every target, each pixel to one of them.

    Raises:
        InputError: An unusable mask, or two objects that claim one region.
    """
    search = _Choice(eyes, picture, rgb)
    found: dict[int, Located] = {
        i: search.told(t, alone=len(targets) == 1)
        for i, t in enumerate(targets)
        if search.is_told(t, len(targets) == 1)
    }
    blind = [i for i in range(len(targets)) if i not in found]
    found |= dict(
        zip(blind, search.chosen([targets[i] for i in blind], [found[i].cover for i in found]), strict=True)
        if blind
        else {}
    )
    located = [found[i] for i in range(len(targets))]
    _apart(targets, located)
    return located


class _Choice(Sight):
    """One photo in which class words choose among what is proposed."""

    def told(self, target: Target, *, alone: bool) -> Located:
        """What the user shows; where a lone point may mean several things, the class word chooses, if the base knows it."""
        if not (target.lone and self.eyes.knows(target.class_word)):
            return super().told(target, alone=alone)
        near = self._smaller()
        proposals = [p for p in near.segmenter.under(near._hints(target, None)) if _possible(p.mask, [])]
        if not proposals:
            return super().told(target, alone=alone)
        words = [target.class_word]
        found = near._ranked(near._exactly(proposals, near._ranked(proposals, words)), words)[target.class_word]
        located = self._said(found[0], [])
        located.advice = "give `--box x0,y0,x1,y1`, or more points on it"
        return located

    def chosen(self, targets: list[Target], taken: list["np.ndarray"]) -> list[Located]:
        """Objects that only their class words tell, chosen together: no thing twice, and nothing that is another's already."""
        import numpy as np

        from objtune_cli.segmentation import ranking

        words = list(dict.fromkeys(t.class_word for t in targets))
        near = self._smaller()
        proposals = [p for p in near._proposals(words) if _possible(p.mask, [_resized(t, near.rgb) for t in taken])]
        empty = Located(np.zeros(self.rgb.shape[:2], np.uint8), self.eyes.segmenter.name)
        if not proposals:
            return [empty for _ in targets]
        by_word = near._ranked(near._exactly(proposals, near._ranked(proposals, words)), words)
        choices = [
            self._ordered(by_word[t.class_word], sum(o.class_word == t.class_word for o in targets)) for t in targets
        ]
        picks = ranking.assigned(choices)
        if picks is None:
            return [empty for _ in targets]
        best = _left_to_right(targets, [c[i] for c, i in zip(choices, picks, strict=True)])
        return [
            self._said(c, [r for r in by_word[t.class_word] if all(r is not b for b in best)])
            for c, t in zip(best, targets, strict=True)
        ]

    def _smaller(self) -> "_Choice":
        """The same photo at a size at which many proposals are quickly compared; the chosen one is outlined on the whole."""
        import cv2

        height, width = self.rgb.shape[:2]
        scale = CHOOSING / max(height, width)
        if scale >= 1:
            return self
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return _Choice(self.eyes, self.picture, cv2.resize(self.rgb, size, interpolation=cv2.INTER_AREA))

    def _ranked(self, proposals: list["Proposal"], words: list[str]) -> dict[str, list["Candidate"]]:
        """For each word what it may mean, one candidate for each thing, best first."""
        from objtune_cli.segmentation import ranking

        likely = self._likely(proposals, words)
        masks, qualities = [p.mask for p in proposals], [p.quality for p in proposals]
        return {
            w: ranking.rivals(ranking.ranked(self.rgb, masks, qualities, likely[:, i])) for i, w in enumerate(words)
        }

    def _exactly(self, proposals: list["Proposal"], found: dict[str, list["Candidate"]]) -> list["Proposal"]:
        """The best candidates of all words with exact outlines: what a cut-out shows depends on them."""
        from objtune_cli.segmentation.types import Proposal

        short = {id(c.mask): c.mask for candidates in found.values() for c in candidates[:SHORTLIST]}
        chosen = [self.segmenter.refined(p) for p in proposals if id(p.mask) in short]
        exact = [Proposal(self.snapped(p.mask), p.quality) for p in chosen]
        return [p for p in exact if _possible(p.mask, [])] or chosen

    def _proposals(self, words: list[str]) -> list["Proposal"]:
        """What may be an object: whatever lies in a detector's boxes for the words, or all that the segmenter proposes."""
        from objtune_cli.segmentation.types import Hints

        if self.eyes.detector is None:
            segmenter = self.segmenter
            if self.eyes.proposed is None:
                self.eyes.proposed = segmenter.everything()
            return self.eyes.proposed
        boxes = self.eyes.detector.boxes(self.rgb, words)[:DETECTED]
        return [self.segmenter.find(Hints(d.box)) for d in boxes]

    def _ordered(self, found: list["Candidate"], count: int) -> list["Candidate"]:
        """Candidates of one word; the one that `which` means where only one is asked for."""
        from objtune_cli.segmentation import ranking

        if self.config.which != "best":
            return ranking.of_several(found, self.config.which)[:1] if count == 1 else found
        return found

    def _likely(self, proposals: list["Proposal"], words: list[str]) -> "np.ndarray":
        """Each proposal's probability of each word; 1 where there is no CLIP to ask."""
        import numpy as np

        from objtune_cli.segmentation import ranking

        if self.eyes.clip is None:
            return np.ones((len(proposals), len(words)))
        known = self.eyes.ctx.base.words
        heads = {class_words.head(word, known) for word in words}  # a mug is no rival of a red mug
        others = [word for word in known if word not in heads]
        return ranking.likeness(*self.eyes.clip, self.rgb, [p.mask for p in proposals], words, others)

    def _said(self, chosen: "Candidate", rivals: list["Candidate"]) -> Located:
        """The chosen one outlined exactly, with how sure that is."""
        from objtune_cli.segmentation.types import Proposal

        proposal = Proposal(_resized(chosen.mask * 255, self.rgb) > 127, chosen.quality)
        if chosen.mask.shape != self.rgb.shape[:2]:
            proposal = self.segmenter.refined(proposal)
        found = self.outlined(proposal, self.eyes.segmenter.name)
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
        for i, candidate in zip(
            own, sorted((best[k] for k in own), key=lambda c: float(c.mask.nonzero()[1].mean())), strict=True
        ):
            found[i] = candidate
    return found


def _possible(mask: "np.ndarray", taken: list["np.ndarray"]) -> bool:
    """Whether a proposal may be an object at all, and no other target's."""
    from objtune_cli.numerics import masks
    from objtune_cli.segmentation import ranking

    area = float(mask.mean())
    if not quality_gate.MIN_AREA <= area <= quality_gate.MAX_AREA or ranking.on_border(mask) > quality_gate.MAX_BORDER:
        return False
    return all(masks.iou(mask, other > 127) < ranking.SAME for other in taken)


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


def _apart(targets: list[Target], located: list[Located]) -> None:
    """Give each pixel to one object: to one whose mask was given, else to the smaller one, which is in front.

    Raises:
        InputError: Two are the same thing.
    """
    import numpy as np

    from objtune_cli.numerics import masks
    from objtune_cli.segmentation import ranking

    order = sorted(range(len(located)), key=lambda i: (located[i].by != "mask", int((located[i].cover > 127).sum())))
    for n, i in enumerate(order):
        for j in order[n + 1 :]:
            a, b = located[i].cover, located[j].cover
            if (a > 127).any() and masks.iou(a > 127, b > 127) > ranking.SAME:
                raise InputError(
                    f"{targets[i].name} and {targets[j].name} claim the same region",
                    "give each a box, a point or a mask of its own",
                )
            located[j].cover = np.minimum(b, 255 - a)
