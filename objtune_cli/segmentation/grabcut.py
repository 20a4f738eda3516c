"""GrabCut with its own seeding; it needs no weights and works well on photos with a box."""

import cv2
import numpy as np

from objtune_cli.segmentation.types import Hints, Proposal

DEFAULT_QUALITY = 0.85
"""Quality of every mask, the mean of correct masks of the embedded model; class probability and outline then decide the score."""
DISTINCT_COLOR = 14.0
"""Distance in Lab (8 bits per channel) above which two colours always differ."""


class GrabCut:
    """OpenCV's GrabCut seeded by a rough mask, a box, points, or the centre of the image."""

    name = "grabcut"
    iterations = 6
    max_side = 512
    """Longer side at which images are segmented, px; the mask is scaled back."""
    max_proposals = 6
    core_radius = 0.39
    """An ellipse around the middle of a user's box belongs to the object: its half axes, fraction of the box's."""
    min_piece_share = 1.0
    """Pieces of at least this fraction of the largest one also belong to the object."""

    def set_image(self, rgb: np.ndarray) -> None:
        """Set the image (H, W, 3) uint8 for the following calls."""
        self.rgb = rgb

    def predict(self, hints: Hints) -> Proposal:
        """Segment the object; without a box, again in the box of the first result."""
        has_core = hints.box_xyxy is not None and not (hints.points or hints.negative_points)
        return self._predict(hints, has_core=has_core)

    def _predict(self, hints: Hints, *, has_core: bool = False) -> Proposal:
        first = self._run_grabcut(self.rgb, hints, has_core=has_core)
        if hints.box_xyxy or hints.rough_mask is not None or not first.any():
            return Proposal(first, DEFAULT_QUALITY)
        ys, xs = first.nonzero()
        height, width = self.rgb.shape[:2]
        room = 0.02 * max(self.rgb.shape)
        box = (
            max(xs.min() - room, 0),
            max(ys.min() - room, 0),
            min(xs.max() + room, width),
            min(ys.max() + room, height),
        )
        second = self._run_grabcut(self.rgb, Hints(box, hints.points, hints.negative_points))
        return Proposal(second if second.sum() > 0.5 * first.sum() else first, DEFAULT_QUALITY)

    def predict_all(self, hints: Hints) -> list[Proposal]:
        """The single result of `predict`."""
        return [self.predict(hints)]

    def refine(self, proposal: Proposal) -> Proposal:
        """Return the proposal unchanged; its outline already follows the colours."""
        return proposal

    def propose_all(self) -> list[Proposal]:
        """Segment up to `max_proposals` regions whose colours differ from those along the border."""
        height, width = self.rgb.shape[:2]
        scale = min(1.0, self.max_side / max(height, width))
        small = cv2.resize(self.rgb, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
        size = max(3, round(max(small.shape) / 100)) | 1
        closed = cv2.morphologyEx(
            _differs_from_border(small).astype(np.uint8), cv2.MORPH_OPEN, np.ones((size, size), np.uint8)
        )
        count, _, stats, _ = cv2.connectedComponentsWithStats(closed)
        proposals = [self._predict(Hints())]
        for i in sorted(range(1, count), key=lambda i: -stats[i, cv2.CC_STAT_AREA])[: self.max_proposals]:
            x, y, w, h = (float(v) for v in stats[i, :4])
            if w * h > 0.004 * small.shape[0] * small.shape[1]:
                room = 0.05 * max(w, h)
                box = (
                    max(0.0, x - room) / scale,
                    max(0.0, y - room) / scale,
                    min(width, (x + w + room) / scale),
                    min(height, (y + h + room) / scale),
                )
                proposals.append(self._predict(Hints(box)))
        return [p for p in proposals if p.mask.any()]

    def _run_grabcut(self, rgb: np.ndarray, hints: Hints, *, has_core: bool = False) -> np.ndarray:
        height, width = rgb.shape[:2]
        scale = min(1.0, self.max_side / max(height, width))
        small = cv2.resize(rgb, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
        labels = self._seed_labels(small, hints, scale)
        core = None
        if has_core and hints.box_xyxy is not None and self.core_radius:
            core = _ellipse_in(hints.box_xyxy, scale, self.core_radius, labels.shape)
            labels[core] = cv2.GC_FGD
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.setRNGSeed(0)
        try:
            cv2.grabCut(small[:, :, ::-1].copy(), labels, None, *models, self.iterations, cv2.GC_INIT_WITH_MASK)  # type: ignore[call-overload]
            if core is not None:  # a hole in it, of the background's colours, is background again
                labels[core] = cv2.GC_PR_FGD
                cv2.grabCut(small[:, :, ::-1].copy(), labels, None, *models, 1, cv2.GC_EVAL_FREEZE_MODEL)  # type: ignore[call-overload]
        except cv2.error:
            return np.zeros((height, width), bool)
        mask = _main_pieces(np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)), hints, scale, self.min_piece_share)
        soft = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
        return soft > 0.5

    def _seed_labels(self, small: np.ndarray, hints: Hints, scale: float) -> np.ndarray:
        """Initial GrabCut labels (H, W): background outside the box, a colour-based guess inside, fixed labels at points."""
        height, width = small.shape[:2]
        labels = np.full((height, width), cv2.GC_BGD, np.uint8)
        if hints.rough_mask is not None:
            rough = cv2.resize(hints.rough_mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
            room = np.ones((max(3, round(0.04 * max(height, width))),) * 2, np.uint8)
            near = cv2.dilate((rough > 0.5).astype(np.uint8), room) > 0
            labels[near] = cv2.GC_PR_BGD
            labels[rough > 0.5] = cv2.GC_PR_FGD
            labels[cv2.erode((rough > 0.5).astype(np.uint8), room) > 0] = cv2.GC_FGD
        elif hints.box_xyxy:
            x0, y0, x1, y1 = (round(v * scale) for v in hints.box_xyxy)
            labels[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = cv2.GC_PR_FGD
        else:
            x0, x1 = round(0.04 * width), round(0.96 * width)
            y0, y1 = round(0.04 * height), round(0.96 * height)
            guess = np.full((height, width), cv2.GC_BGD, np.uint8)
            guess[y0:y1, x0:x1] = cv2.GC_PR_BGD
            guess[_central_piece(_differs_from_border(small), hints, scale)] = cv2.GC_PR_FGD
            labels[y0:y1, x0:x1] = guess[y0:y1, x0:x1]
        radius = max(2, round(0.02 * max(height, width)))
        for x, y in hints.points:
            cv2.circle(labels, (round(x * scale), round(y * scale)), radius, cv2.GC_FGD, -1)
        for x, y in hints.negative_points:
            cv2.circle(labels, (round(x * scale), round(y * scale)), radius, cv2.GC_BGD, -1)
        return labels


def _ellipse_in(
    box: tuple[float, float, float, float], scale: float, radius: float, shape: tuple[int, ...]
) -> np.ndarray:
    """Pixels (H, W) bool of the ellipse around the middle of a box; `radius`: its half axes, fraction of the box's."""
    x0, y0, x1, y1 = (value * scale for value in box)
    y, x = np.mgrid[: shape[0], : shape[1]]
    across, down = (x - (x0 + x1) / 2) / max((x1 - x0) / 2, 1), (y - (y0 + y1) / 2) / max((y1 - y0) / 2, 1)
    inside: np.ndarray = across**2 + down**2 < radius**2
    return inside


def _differs_from_border(rgb: np.ndarray, clusters: int = 10) -> np.ndarray:
    """Pixels (H, W) bool whose colours differ from all colours along the border, by Otsu's threshold."""
    lab = cv2.cvtColor(cv2.GaussianBlur(rgb, (0, 0), 1.5), cv2.COLOR_RGB2LAB).astype(np.float32)
    band = max(2, round(0.05 * min(lab.shape[:2])))
    rim = np.concatenate([part.reshape(-1, 3) for part in (lab[:band], lab[-band:], lab[:, :band], lab[:, -band:])])
    rim = rim[:: max(1, len(rim) // 4000)]
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    cv2.setRNGSeed(0)
    _, _, centres = cv2.kmeans(  # type: ignore[call-overload]
        rim, min(clusters, len(rim)), None, stop, 2, cv2.KMEANS_PP_CENTERS
    )
    distance = np.min([np.linalg.norm(lab - c, axis=2) for c in centres], axis=0)
    split, _ = cv2.threshold(
        np.clip(distance * 3, 0, 255).astype(np.uint8), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU
    )
    is_strange: np.ndarray = distance * 3 > min(split, 3 * DISTINCT_COLOR)
    return is_strange


def _central_piece(strange: np.ndarray, hints: Hints, scale: float) -> np.ndarray:
    """The piece under the points, else the one with the largest area near the centre."""
    height, width = strange.shape
    size = max(3, round(max(height, width) / 100)) | 1
    closed = cv2.morphologyEx(strange.astype(np.uint8), cv2.MORPH_OPEN, np.ones((size, size), np.uint8))
    count, pieces = cv2.connectedComponents(closed)
    if count < 2:
        return strange
    y, x = np.mgrid[:height, :width]
    near = np.exp(-(((x / width - 0.5) / 0.25) ** 2 + ((y / height - 0.53) / 0.25) ** 2))
    scores = np.bincount(pieces.ravel(), near.ravel(), count)
    scores[0] = -1
    under = [pieces[min(round(v * scale), height - 1), min(round(u * scale), width - 1)] for u, v in hints.points]
    best = next((int(p) for p in under if p), int(np.argmax(scores)))
    piece: np.ndarray = pieces == best
    return piece


def _main_pieces(mask: np.ndarray, hints: Hints, scale: float, apart: float) -> np.ndarray:
    """The piece under the points, else the largest pieces; holes below 0.5 % of the area are filled."""
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count < 2:
        return mask
    areas = stats[1:, cv2.CC_STAT_AREA]
    keep = {1 + int(i) for i in np.flatnonzero(areas >= apart * areas.max())}
    under = {
        int(pieces[min(round(y * scale), mask.shape[0] - 1), min(round(x * scale), mask.shape[1] - 1)])
        for x, y in hints.points
    }
    keep = (under - {0}) or keep
    main = np.isin(pieces, list(keep))
    count, holes, stats, _ = cv2.connectedComponentsWithStats((~main).astype(np.uint8))
    small = [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] < 0.005 * main.sum()]
    return main | np.isin(holes, small)
