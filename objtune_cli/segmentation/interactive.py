"""One photo in a page or a notebook: hints come one after another, and the image is embedded only once."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from objtune_cli.config.sections import Segment
from objtune_cli.images import photo
from objtune_cli.models import registry
from objtune_cli.segmentation import from_class_word, quality_gate, segmenters
from objtune_cli.segmentation import segment as stage
from objtune_cli.segmentation.from_hints import (
    MASK_ADVICE,
    PhotoSegmenter,
    SegmentationModels,
    SegmentedObject,
    Target,
)
from objtune_cli.workflow import class_words
from objtune_cli.workflow.context import StageContext

if TYPE_CHECKING:
    import numpy as np

    from objtune_cli.segmentation.segmenters import SegmenterChoice


class ModelPool:
    """Loaded models by the segmenter that was chosen; each serves one call at a time.

    The embedded segmenter is small. It is loaded twice, so that a sketch need not wait for a finished outline.
    """

    def __init__(self) -> None:
        self._models: dict[tuple[SegmenterChoice, bool], tuple[SegmentationModels, threading.Lock]] = {}
        self._loading = threading.Lock()

    @contextlib.contextmanager
    def use(
        self, ctx: StageContext, config: Segment, choice: "SegmenterChoice", *, is_sketch: bool
    ) -> Iterator[SegmentationModels]:
        """The models of a choice, locked."""
        key = (choice, is_sketch and choice.weights == registry.TOYBOX_SEGMENTER)
        with self._loading:
            if key not in self._models:
                self._models[key] = (SegmentationModels(ctx, config, choice), threading.Lock())
            models, lock = self._models[key]
        with lock:
            yield models


@dataclass(slots=True)
class InteractivePhoto:
    """A photo with the models that segment its object; `segment` finds the same masks by the same models.

    Attributes:
        rgb: (H, W, 3) uint8 at the stored size, to which masks belong. pool: Loaded models, which photos may share.
    """

    ctx: StageContext
    path: Path
    config: Segment
    picture: photo.Photo
    rgb: "np.ndarray"
    pool: ModelPool = field(default_factory=ModelPool)

    @classmethod
    def open(cls, ctx: StageContext, path: Path, pool: ModelPool | None = None) -> "InteractivePhoto":
        """Read a photo.

        Raises:
            InputError: It is no photo that `segment` takes.
        """
        config = ctx.settings.resolve(Segment)
        picture = photo.read(path)
        return cls(ctx, path, config, picture, stage.downscale(picture, config), pool or ModelPool())

    def sketch(self, target: Target) -> "np.ndarray":
        """The mask (H, W) uint8 of some boxes and points at once, before its outline is refined.

        Raises:
            GateError: Only a model of drawings is here, and this is a photograph.
        """
        with self.pool.use(self.ctx, self.config, self._choose(target), is_sketch=True) as models:
            return PhotoSegmenter(models, self.picture, self.rgb).sketch(target).astype("uint8") * 255

    def segment(self, target: Target) -> tuple["np.ndarray", stage.MaskVerdict]:
        """The mask (H, W) uint8 as the command `segment` makes it, and the verdict of the quality gate.

        Raises:
            GateError: As of `sketch`. InputError: The base does not know the class, and there is no hint.
        """
        (target,) = class_words.use_known_spelling(self.ctx, [target])
        choice = self._choose(target)
        is_word_only = target.has_no_hint and self.picture.alpha is None
        class_words.check_known(self.ctx, target, chooses=is_word_only and self.config.min_class_probability > 0)
        with self.pool.use(self.ctx, self.config, choice, is_sketch=False) as models:
            (located,) = from_class_word.segment_objects(models, self.picture, self.rgb, [target])
        return located.cover, stage.judge_mask(self.ctx, self.picture, located, target, self.config)

    def judge(self, mask: "np.ndarray", target: Target) -> stage.MaskVerdict:
        """The verdict of the quality gate on a mask (H, W) uint8 that the user has mended by hand."""
        own = Target(target.class_word, target.name, mask=self.path)  # a mask of the user's own: no hint contradicts it
        mended = SegmentedObject(mask, "mask", advice=MASK_ADVICE, outline=quality_gate.explain_outline(mask))
        return stage.judge_mask(self.ctx, self.picture, mended, own, self.config)

    def prepare(self) -> None:
        """Load the segmenter and embed the photo before the first hint comes."""
        choice = segmenters.choose_segmenter(self.ctx, self.config)
        with self.pool.use(self.ctx, self.config, choice, is_sketch=True) as models:
            PhotoSegmenter(models, self.picture, self.rgb).set_image()

    def _choose(self, target: Target) -> "SegmenterChoice":
        """The segmenter that the command would use for these hints."""
        choice = segmenters.choose_segmenter(self.ctx, self.config)
        has_detector = bool(self.config.detector)
        choice = segmenters.adapt_to_photograph(choice, self.rgb, [target], has_detector=has_detector)
        if self.picture.alpha is None or not target.has_no_hint:
            segmenters.require_place(self.ctx, self.path, choice, self.rgb, target)
        return choice
