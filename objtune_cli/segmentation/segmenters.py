"""Chooses and loads a segmenter: SAM 3, SAM 2.1, a segment-anything checkpoint, the embedded model, or GrabCut."""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from objtune_cli.config.sections import Segment
from objtune_cli.errors import InputError, ObjtuneError, UsageError
from objtune_cli.models import registry, segmenter_lookup
from objtune_cli.store import regular_files
from objtune_cli.workflow.context import StageContext

if TYPE_CHECKING:
    from objtune_cli.segmentation.types import Segmenter


@dataclass(frozen=True)
class SegmenterChoice:
    """A segmenter that is on this machine.

    Attributes:
        kind: sam, sam2, sam3 or grabcut. weights: A checkpoint, or a model's folder; None for GrabCut.
        note: What `auto` chose, for the user; "" if the user or the toybox chose.
    """

    kind: str
    weights: Path | None = None
    note: str = ""

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of the weights, "" for GrabCut.

        Raises:
            InputError: There is no such file.
        """
        if self.weights is None:
            return ""
        try:
            if self.weights.is_dir() and self.weights != registry.TOYBOX_SEGMENTER:
                return digest_folder(self.weights)
            embedded = self.weights / "model.safetensors"
            return regular_files.file_sha256(embedded if self.weights.is_dir() else self.weights)
        except OSError:
            raise InputError(
                f"there is no file {self.weights}", "give a segment-anything checkpoint, or none for the embedded model"
            ) from None


def choose_segmenter(ctx: StageContext, config: Segment) -> SegmenterChoice:
    """Choose the segmenter of these settings; `auto` takes the best on this machine.

    Raises:
        ResourceError: The model is not on this machine. InputError: The folder has another kind of model.
        UsageError: `segment.sam_model` is set, and the segmenter is another kind.
    """
    kind = config.segmenter
    if config.sam_model and kind in ("sam", "grabcut"):
        raise UsageError(
            f"`segment.sam_model` has no meaning for the segmenter {kind}", "`--segmenter auto`, sam2 or sam3"
        )
    if kind in segmenter_lookup.TITLES or config.sam_model:
        found = segmenter_lookup.find_segmenter("" if kind == "auto" else kind, config.sam_model)
        return SegmenterChoice(found.kind, found.folder)
    if config.sam_checkpoint:
        return SegmenterChoice("sam", Path(config.sam_checkpoint))
    if kind == "grabcut":
        return SegmenterChoice("grabcut")
    if kind == "auto" and not is_drawn_world(ctx):
        best = segmenter_lookup.find_best()
        if best is not None:
            return SegmenterChoice(best.kind, best.folder, f"the segmenter is {best.label}")
        note = (
            "the segmenter is the embedded model, which knows drawings; "
            f"`objtune fetch --model {segmenter_lookup.RECOMMENDED['sam2']}` brings one for photographs"
        )
        return SegmenterChoice("sam", registry.TOYBOX_SEGMENTER, note)
    return SegmenterChoice("sam", registry.TOYBOX_SEGMENTER)


def load_segmenter(choice: SegmenterChoice, device: str = "cpu") -> "Segmenter":
    """Load a segmenter.

    Args:
        device: Device of a large model; the embedded model is small and stays on the CPU.

    Raises:
        InputError: The weights cannot be opened. DamagedError: Weights are missing in a folder.
    """
    if choice.weights is None:
        from objtune_cli.segmentation.grabcut import GrabCut

        return GrabCut()
    if choice.kind == "sam3":
        from objtune_cli.segmentation.sam3 import Sam3

        return Sam3(choice.weights, device)
    if choice.kind == "sam2":
        from objtune_cli.segmentation.transformers_sam import load_sam2

        return load_sam2(choice.weights, device)
    from objtune_cli.segmentation import sam_models
    from objtune_cli.segmentation.sam import SegmentAnything

    if choice.weights == registry.TOYBOX_SEGMENTER:
        return SegmentAnything(*sam_models.load_embedded(choice.weights))
    return SegmentAnything(*sam_models.load_official(choice.weights), device)


def is_drawn_world(ctx: StageContext) -> bool:
    """Whether the base model was trained on the drawn world; a base that is not on this machine was not."""
    try:
        return bool(ctx.base.toybox_dial)
    except ObjtuneError:
        return False


def digest_folder(folder: Path) -> str:
    """SHA-256 over the configs and weights of a model's folder."""
    files = sorted(file for file in folder.iterdir() if file.suffix in (".json", ".txt", ".safetensors"))
    return hashlib.sha256(
        "".join(f"{file.name} {regular_files.file_sha256(file)}\n" for file in files).encode()
    ).hexdigest()
