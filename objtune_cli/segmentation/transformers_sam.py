"""Masks by SAM 2.1 or by the tracker of SAM 3, both of transformers' classes. Only local files are opened."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from objtune_cli.errors import DamagedError, InputError
from objtune_cli.models.families.component_loading import first_line, load_complete
from objtune_cli.models.loading import silence_library_logging
from objtune_cli.runtime import cpu, torchvision_compat
from objtune_cli.runtime.load_lock import LOAD_LOCK
from objtune_cli.segmentation.promptable import (
    GRID_POINTS,
    HINTS_PER_BATCH,
    MASK_LOGIT,
    MAX_BOX_IOU,
    MIN_QUALITY,
    MIN_STABILITY,
    EmbeddedImage,
    PromptableSegmenter,
)
from objtune_cli.segmentation.types import Hints, Proposal

torchvision_compat.complete()  # the image processors import torchvision


def load_model(kind: str, folder: Path, device: str) -> Any:
    """Load a network of transformers in float32.

    Args:
        kind: Name of the class.

    Raises:
        InputError: The folder cannot be opened as that class. DamagedError: A weight is missing or has another shape.
    """
    import transformers

    silence_library_logging()
    try:
        with LOAD_LOCK:
            network: Any = load_complete(
                getattr(transformers, kind),
                folder,
                f"the segmenter in {folder}",
                use_safetensors=True,
                dtype=torch.float32,
            )
    except DamagedError:
        raise
    except Exception as error:  # each kind of damage raises its own error
        raise InputError(f"{folder} cannot be opened as a {kind}: {first_line(error)}", "download it again") from None
    network.requires_grad_(False)
    if device == "cpu":
        cpu.set_threads_for(sum(p.numel() for p in network.parameters()))
    return network.eval().to(device)


def load_processor(kind: str, folder: Path) -> Any:
    """Load a processor of transformers.

    Args:
        kind: Name of the class.

    Raises:
        InputError: Its files are missing or damaged.
    """
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # each kind of damage raises its own error
        raise InputError(f"{folder} has no readable {kind}: {first_line(error)}", "download it again") from None


class TransformersSam(PromptableSegmenter):
    """Segmenter with a model of transformers that takes points, boxes and masks.

    Sources: SAM 2 (arXiv:2408.00714), SAM 3 (arXiv:2511.16719).
    """

    def __init__(self, name: str, model: Any, processor: Any) -> None:
        self.name, self.model, self.processor = name, model, processor

    def embed(self, rgb: np.ndarray) -> "TransformersImage":
        """Embed an image (H, W, 3) uint8."""
        return TransformersImage(self.model, self.processor, rgb)


def load_sam2(folder: Path, device: str = "cpu") -> TransformersSam:
    """Load SAM 2.1.

    Raises:
        InputError, DamagedError: See `load_model`.
    """
    return TransformersSam("sam2", load_model("Sam2Model", folder, device), load_processor("Sam2Processor", folder))


class TransformersImage(EmbeddedImage):
    """One image in a model of transformers."""

    def __init__(self, model: Any, processor: Any, rgb: np.ndarray) -> None:
        from PIL import Image

        self.model, self.processor = model, processor
        self.size = [int(side) for side in rgb.shape[:2]]
        pixels = processor.image_processor(Image.fromarray(rgb), return_tensors="pt")["pixel_values"]
        self.embeddings = model.get_image_embeddings(pixels.to(model.device, torch.float32))

    @torch.no_grad()
    def decode(self, *, multimask: bool, mask: np.ndarray | None = None, **prompts: Any) -> tuple[Any, torch.Tensor]:
        """Mask logits (1, N, M, h, w) and predicted IoU (1, N, M) of N prompts, with M masks each.

        Args:
            mask: Logits of a rough mask at the decoder's size. prompts: Arguments of the processor, in px of the image.
        """
        inputs = {}
        if prompts:
            encoded = self.processor(original_sizes=[self.size], return_tensors="pt", **prompts)
            inputs = {key: encoded[key].to(self.model.device) for key in prompts}
        if mask is not None:
            inputs["input_masks"] = torch.from_numpy(mask)[None, None].to(self.model.device)
        outputs = self.model(image_embeddings=self.embeddings, multimask_output=multimask, **inputs)
        return outputs.pred_masks.cpu(), outputs.iou_scores.cpu()

    def predict_masks(self, hints: Hints) -> list[Proposal]:
        """Predict masks for combined hints: three for a single point, which is ambiguous, else one."""
        points = [*hints.points, *hints.negative_points]
        prompts: dict[str, Any] = {}
        if points:
            labels = [1] * len(hints.points) + [0] * len(hints.negative_points)
            prompts = {"input_points": [[[list(p) for p in points]]], "input_labels": [[labels]]}
        if hints.box_xyxy:
            prompts["input_boxes"] = [[list(hints.box_xyxy)]]
        mask = None if hints.rough_mask is None else self._mask_logits(hints.rough_mask)
        logits, scores = self.decode(multimask=hints.is_single_point and len(points) == 1, mask=mask, **prompts)
        return self._proposals(logits, scores)

    def predict_boxes(self, boxes: np.ndarray) -> list[Proposal]:
        """Predict the object in each box (N, 4), px."""
        proposals: list[Proposal] = []
        for start in range(0, len(boxes), HINTS_PER_BATCH):
            batch = boxes[start : start + HINTS_PER_BATCH].tolist()
            proposals += self._proposals(*self.decode(multimask=False, input_boxes=[batch]))
        return proposals

    def propose_from_grid(self) -> list[Proposal]:
        """Propose objects at a grid of points, filtered as transformers' mask generation does."""
        height, width = self.size
        steps = (np.arange(GRID_POINTS) + 0.5) / GRID_POINTS
        points = [[x * width, y * height] for y in steps for x in steps]
        images = self.processor.image_processor
        masks: list[Any] = []
        scores, boxes = [], []
        for start in range(0, len(points), HINTS_PER_BATCH):
            batch = [[point] for point in points[start : start + HINTS_PER_BATCH]]
            logits, quality = self.decode(multimask=True, input_points=[batch], input_labels=[[[1]] * len(batch)])
            large = self.processor.post_process_masks(logits, [self.size], binarize=False)[0]
            filtered = images.filter_masks(
                large, quality[0], self.size, [0, 0, width, height], MIN_QUALITY, MIN_STABILITY
            )
            masks += filtered[0]
            scores.append(filtered[1])
            boxes.append(filtered[2])
        if not masks:
            return []
        distinct = images.post_process_for_mask_generation(masks, torch.cat(scores), torch.cat(boxes), MAX_BOX_IOU)
        return [Proposal(np.asarray(m).astype(bool), float(q)) for m, q in zip(distinct[0], distinct[1], strict=True)]

    def _proposals(self, logits: Any, scores: torch.Tensor) -> list[Proposal]:
        masks = self.processor.post_process_masks(logits, [self.size])[0].flatten(0, 1).numpy()
        return [Proposal(m, float(q)) for m, q in zip(masks, scores.flatten(), strict=True)]

    def _mask_logits(self, rough: np.ndarray) -> np.ndarray:
        """Convert a rough mask to decoder input: logits at the decoder's own size, stretched as the image is."""
        height, width = self.model.prompt_encoder.mask_input_size
        small = cv2.resize(rough.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
        return (small * 2 - 1) * MASK_LOGIT
