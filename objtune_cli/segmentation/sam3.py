"""Masks by SAM 3 of transformers: its detector finds every object of a word, its tracker takes points, boxes and masks."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from objtune_cli.segmentation.promptable import suppress_duplicates
from objtune_cli.segmentation.transformers_sam import TransformersSam, load_model, load_processor
from objtune_cli.segmentation.types import Proposal

WORD_THRESHOLD = 0.3
"""Smallest score of an object of a word, SAM 3's own default; the base's CLIP chooses among the objects."""
MAX_TOKENS = 32
"""Number of tokens of SAM 3's text encoder."""


class Sam3(TransformersSam):
    """Segmenter with SAM 3 (arXiv:2511.16719), from a folder with its detector and its tracker."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """Load the tracker; the detector is loaded for the first word.

        Raises:
            InputError, DamagedError: See `load_model`.
        """
        super().__init__(
            "sam3", load_model("Sam3TrackerModel", folder, device), load_processor("Sam3TrackerProcessor", folder)
        )
        self.folder = folder

    @functools.cached_property
    def detector(self) -> tuple[Any, Any]:
        """SAM 3's detector and its processor; it shares the image encoder with the tracker."""
        model = load_model("Sam3Model", self.folder, str(self.model.device))
        model.vision_encoder.backbone = self.model.vision_encoder.backbone
        return model, load_processor("Sam3Processor", self.folder)

    @torch.no_grad()
    def propose_words(self, words: list[str]) -> list[Proposal]:
        """Every object of the words in the image, without duplicates."""
        from PIL import Image

        model, processor = self.detector
        inputs = processor(images=Image.fromarray(self.rgb), return_tensors="pt").to(model.device)
        features = model.get_vision_features(pixel_values=inputs["pixel_values"])
        proposals: list[Proposal] = []
        for word in words:
            text = processor.tokenizer(
                word, return_tensors="pt", padding="max_length", truncation=True, max_length=MAX_TOKENS
            ).to(model.device)
            outputs = model(vision_embeds=features, input_ids=text["input_ids"], attention_mask=text["attention_mask"])
            detections = processor.post_process_instance_segmentation(
                outputs, threshold=WORD_THRESHOLD, target_sizes=[self.rgb.shape[:2]]
            )[0]
            masks: np.ndarray = detections["masks"].cpu().numpy().astype(bool)
            proposals += [Proposal(m, float(q)) for m, q in zip(masks, detections["scores"], strict=True)]
        return suppress_duplicates(proposals)
