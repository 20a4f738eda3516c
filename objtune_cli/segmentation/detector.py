"""Zero-shot detector of transformers (OWLv2, Grounding DINO): words to boxes. Only local files are opened."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from objtune_cli.errors import DamagedError, ResourceError
from objtune_cli.models.families.component_loading import load_complete
from objtune_cli.models.loading import silence_library_logging
from objtune_cli.runtime import torchvision_compat
from objtune_cli.runtime.load_lock import LOAD_LOCK
from objtune_cli.segmentation.types import Box

THRESHOLD = 0.05
"""Smallest score of a box; the segmenter and the class word choose among the boxes."""


@dataclass(frozen=True, slots=True)
class Detection:
    """A box (x0, y0, x1, y1) in px, its word, and the detector's score in [0, 1]."""

    box: Box
    word: str
    score: float


class Detector:
    """Detects objects by words."""

    def __init__(self, model: str, device: str = "cpu") -> None:
        """`model`: a folder, or a hub id that is in the cache.

        Raises:
            ResourceError: The model is not on this machine, or is no zero-shot detector. DamagedError: Weights are missing.
        """
        torchvision_compat.complete()
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor, pipeline

        silence_library_logging()
        try:
            folder = _find_folder(model)
            with LOAD_LOCK:
                network: Any = load_complete(AutoModelForZeroShotObjectDetection, folder, f"the detector {model}")
            loader: Any = AutoProcessor  # its methods have no types
            processor = loader.from_pretrained(folder, local_files_only=True)
        except DamagedError:
            raise
        except Exception as error:  # each kind of wrong model raises its own error
            raise ResourceError(
                f"the detector {model} cannot be opened: {str(error).splitlines()[0]}",
                "give a folder of OWLv2 or Grounding DINO, or download one: `hf download google/owlv2-base-patch16-ensemble`",
            ) from None
        self._pipeline: Any = pipeline(
            "zero-shot-object-detection",
            model=network.eval(),
            tokenizer=processor.tokenizer,
            image_processor=processor.image_processor,
            device=device,
        )

    def detect(self, rgb: np.ndarray, words: list[str]) -> list[Detection]:
        """Detect the words in an image (H, W, 3) uint8; boxes are clipped to the image and sorted by score."""
        from PIL import Image

        height, width = rgb.shape[:2]
        detections = []
        for item in self._pipeline(Image.fromarray(rgb), candidate_labels=words, threshold=THRESHOLD):
            x0, y0, x1, y1 = (float(item["box"][k]) for k in ("xmin", "ymin", "xmax", "ymax"))
            box = max(0.0, x0), max(0.0, y0), min(float(width), x1), min(float(height), y1)
            if box[2] - box[0] >= 2 and box[3] - box[1] >= 2:
                detections.append(Detection(box, str(item["label"]), float(item["score"])))
        return sorted(detections, key=lambda d: -d.score)


def _find_folder(model: str) -> str:
    """Cached folder of a hub id. With an id, transformers would query the hub for an adapter config in spite of `local_files_only`."""
    if Path(model).is_dir():
        return model
    from huggingface_hub import snapshot_download

    return snapshot_download(model, local_files_only=True)
