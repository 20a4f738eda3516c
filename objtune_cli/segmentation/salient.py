"""Masks by a salient-object network (U2-Net, IS-Net, BiRefNet, …) in ONNX: the object that stands out, without a word."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from objtune_cli.errors import InputError, ResourceError
from objtune_cli.models import segmenter_lookup
from objtune_cli.numerics.masks import iou
from objtune_cli.segmentation.promptable import mask_box, suppress_duplicates
from objtune_cli.segmentation.types import Box, Hints, Point, Proposal

THRESHOLD = 0.5
"""Saliency from which a pixel belongs to the object."""
MIN_PIECE_SHARE = 0.05
"""Pieces below this fraction of the largest one are specks."""
CROP_MARGIN = 0.15
"""Margin of a crop around a box, fraction of its longer side."""
SAME_IOU = 0.7
"""IoU from which a mask from a crop replaces the one from the whole image."""


class SalientSegmenter:
    """Segmenter with a network from an image to one map of saliency.

    A hint says where to look: the network sees a crop around a box, and points choose among the pieces.
    Sources: U2-Net (arXiv:2005.09007), IS-Net (arXiv:2203.03041), BiRefNet (arXiv:2401.03407).
    """

    name = "salient"

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """Load the network of a folder.

        Raises:
            ResourceError: onnxruntime is not installed. InputError: A file cannot be read, or the network has other inputs or outputs.
        """
        self.network = SaliencyNetwork(folder, device)

    def set_image(self, rgb: np.ndarray) -> None:
        """Set the image (H, W, 3) uint8 for the following calls."""
        self.rgb = rgb

    def predict(self, hints: Hints) -> Proposal:
        """Segment what stands out in the box or around the rough mask; else the piece at the points, or the best one."""
        return self.predict_all(hints)[0]

    def predict_all(self, hints: Hints) -> list[Proposal]:
        """Pieces that the hints allow, best first; an empty mask if there are none."""
        box = hints.box_xyxy
        if box is None and hints.rough_mask is not None:
            box = mask_box(hints.rough_mask > 0.5)
        pieces = self.propose_all() if box is None else [self._segment_crop(box)]
        points = _points_inside(hints.points, self.rgb)
        negative_points = _points_inside(hints.negative_points, self.rgb)
        allowed = [
            piece
            for piece in pieces
            if all(piece.mask[y, x] for x, y in points) and not any(piece.mask[y, x] for x, y in negative_points)
        ]
        return allowed or [Proposal(np.zeros(self.rgb.shape[:2], bool), 0.0)]

    def refine(self, proposal: Proposal) -> Proposal:
        """Predict the object again from a crop around it; keep the old mask if they differ."""
        if not proposal.mask.any():
            return proposal
        again = self._segment_crop(mask_box(proposal.mask))
        return again if iou(again.mask, proposal.mask) > SAME_IOU else proposal

    def propose_all(self) -> list[Proposal]:
        """Propose everything that stands out together, and each of its pieces, by their mean saliency."""
        saliency = self.network.predict(self.rgb)
        pieces = _split_pieces(saliency > THRESHOLD)
        whole = np.any(pieces, axis=0) if len(pieces) > 1 else None
        masks = [*pieces, *([] if whole is None else [whole])]
        return suppress_duplicates([Proposal(mask, float(saliency[mask].mean())) for mask in masks])

    def _segment_crop(self, box: Box) -> Proposal:
        """Segment what stands out in a box (x0, y0, x1, y1), px; nothing outside it belongs to the mask."""
        height, width = self.rgb.shape[:2]
        x0, y0, x1, y1 = box
        margin = CROP_MARGIN * max(x1 - x0, y1 - y0)
        left, top = max(0, round(x0 - margin)), max(0, round(y0 - margin))
        right, bottom = min(width, round(x1 + margin)), min(height, round(y1 + margin))
        mask = np.zeros((height, width), bool)
        if right - left < 2 or bottom - top < 2:
            return Proposal(mask, 0.0)
        saliency = self.network.predict(np.ascontiguousarray(self.rgb[top:bottom, left:right]))
        pieces = _split_pieces(saliency > THRESHOLD)
        if not pieces:
            return Proposal(mask, 0.0)
        salient = np.any(pieces, axis=0)
        mask[top:bottom, left:right] = salient
        inside = np.zeros_like(mask)
        inside[max(0, round(y0)) : max(0, round(y1)), max(0, round(x0)) : max(0, round(x1))] = True
        return Proposal(mask & inside, float(saliency[salient].mean()))


class SaliencyNetwork:
    """A network in ONNX with its preprocessing, in the layout of the hub: `onnx/model.onnx`, `preprocessor_config.json`."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """Load the network.

        Raises:
            ResourceError: onnxruntime is not installed. InputError: A file cannot be read, or the network has other inputs or outputs.
        """
        try:
            import onnxruntime
        except ImportError:
            raise ResourceError(
                "a salient-object network needs another package", "`pip install 'objtune[salient]'`"
            ) from None
        self.folder = folder
        self._read_preprocessing()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        wanted = ["CUDAExecutionProvider"] if device == "cuda" else []
        providers = [p for p in wanted if p in onnxruntime.get_available_providers()] + ["CPUExecutionProvider"]
        path = segmenter_lookup.find_onnx_file(folder)
        if path is None:
            raise InputError(f"{folder} has no onnx/model.onnx", "download it again")
        try:
            self.session: Any = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # each kind of damage raises its own error
            raise InputError(f"{path} cannot be opened: {str(error).splitlines()[0]}", "download it again") from None
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise InputError(
                f"{path} is not a salient-object network: it has {len(inputs)} inputs, not one image",
                f"for example `objtune fetch --model {segmenter_lookup.RECOMMENDED['salient']}`",
            )
        self.input = inputs[0]
        fixed = [side for side in self.input.shape[2:] if isinstance(side, int)]
        if len(fixed) == 2:
            self.size = (fixed[0], fixed[1])

    def predict(self, rgb: np.ndarray) -> np.ndarray:
        """Saliency (H, W) float32 in [0, 1] of an image (H, W, 3) uint8.

        The map of the network, through a sigmoid if it is logits, and scaled back bilinearly.

        Raises:
            InputError: The network's first output is not one map.
        """
        from PIL import Image

        height, width = self.size
        small = np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR), np.float32)
        pixels = ((small * self.scale - self.mean) / self.std).transpose(2, 0, 1)[None].astype(np.float32)
        dtype = np.float16 if self.input.type == "tensor(float16)" else np.float32
        output = np.asarray(self.session.run(None, {self.input.name: pixels.astype(dtype)})[0], np.float32)
        if output.size != np.prod(output.shape[-2:]) or output.ndim < 2:
            raise InputError(
                f"{self.folder} is not a salient-object network: its output has the shape {output.shape}, not one map",
                f"for example `objtune fetch --model {segmenter_lookup.RECOMMENDED['salient']}`",
            )
        saliency: np.ndarray = output.reshape(output.shape[-2:])
        if saliency.min() < 0 or saliency.max() > 1:  # a network that ends in a sigmoid never leaves [0, 1]
            saliency = np.reciprocal(1 + np.exp(-np.clip(saliency, -60, 60)))
        size = (rgb.shape[1], rgb.shape[0])
        return np.asarray(cv2.resize(saliency, size, interpolation=cv2.INTER_LINEAR))

    def _read_preprocessing(self) -> None:
        """Read mean, standard deviation, scale and size of `preprocessor_config.json`.

        Raises:
            InputError: The file cannot be read, or lacks a value.
        """
        path = self.folder / "preprocessor_config.json"
        try:
            config = json.loads(path.read_bytes())
            self.mean = np.array(config["image_mean"], np.float32)
            self.std = np.array(config["image_std"], np.float32)
            self.scale = float(config.get("rescale_factor", 1 / 255))
            size = config["size"]
            self.size = (int(size["height"]), int(size["width"])) if isinstance(size, dict) else (int(size),) * 2
            if self.mean.shape != (3,) or self.std.shape != (3,) or not (self.std > 0).all() or min(self.size) < 8:
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(
                f"{path} does not describe the network's input",
                "it needs image_mean, image_std and size, as the hub's ONNX repositories have them",
            ) from None


def _points_inside(points: tuple[Point, ...], rgb: np.ndarray) -> list[tuple[int, int]]:
    """Pixels (x, y) of points; one beyond the right or lower border counts as on it."""
    height, width = rgb.shape[:2]
    return [(min(int(x), width - 1), min(int(y), height - 1)) for x, y in points]


def _split_pieces(mask: np.ndarray) -> list[np.ndarray]:
    """Connected pieces (H, W) bool of a mask without specks, largest first."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count < 2:
        return []
    areas = stats[1:, cv2.CC_STAT_AREA]
    order = [1 + int(i) for i in np.argsort(-areas, kind="stable") if areas[i] >= MIN_PIECE_SHARE * areas.max()]
    return [labels == label for label in order]
