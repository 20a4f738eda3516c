"""Chooses and loads a segmenter: SAM 3, SAM 2.1, a salient-object network, segment-anything, or GrabCut."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from objtune_cli.config.sections import Segment
from objtune_cli.errors import GateError, InputError, ObjtuneError, UsageError
from objtune_cli.images import photo_or_drawing
from objtune_cli.models import hub_cache, registry, segmenter_lookup
from objtune_cli.store import regular_files
from objtune_cli.workflow.context import StageContext

if TYPE_CHECKING:
    import numpy as np

    from objtune_cli.segmentation.from_hints import Target
    from objtune_cli.segmentation.types import Segmenter

FETCH = f"objtune fetch --model {segmenter_lookup.RECOMMENDED['sam2']}"


@dataclass(frozen=True)
class SegmenterChoice:
    """A segmenter that is on this machine.

    Attributes:
        kind: sam, sam2, sam3, salient or grabcut. weights: A checkpoint, or a model's folder; None for GrabCut.
        note: What `auto` chose, for the user; "" if the user or the toybox chose.
        is_fallback: Whether `auto` chose a segmenter that knows no photographs.
        ignores_word: Whether the class word chooses nothing, because neither segmenter nor base knows it on photographs.
    """

    kind: str
    weights: Path | None = None
    note: str = ""
    is_fallback: bool = False
    ignores_word: bool = False

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
            f"`segment.sam_model` has no effect with the segmenter {kind}", "`--segmenter auto`, sam2, sam3 or salient"
        )
    if kind in segmenter_lookup.TITLES or config.sam_model:
        segmenter = segmenter_lookup.find_segmenter("" if kind == "auto" else kind, config.sam_model)
        return SegmenterChoice(segmenter.kind, segmenter.folder)
    if config.sam_checkpoint:
        return SegmenterChoice("sam", Path(config.sam_checkpoint))
    if kind == "grabcut":
        return SegmenterChoice("grabcut")
    if kind == "auto" and not is_drawn_world(ctx):
        best = segmenter_lookup.find_best()
        if best is not None:
            return SegmenterChoice(best.kind, best.folder, f"the segmenter is {best.label}")
        note = (
            f"the segmenter is the embedded model, which knows only drawings; `{FETCH}` downloads one for photographs"
        )
        return SegmenterChoice("sam", registry.TOYBOX_SEGMENTER, note, is_fallback=True)
    return SegmenterChoice("sam", registry.TOYBOX_SEGMENTER, is_fallback=kind == "auto")


def adapt_to_photograph(
    choice: SegmenterChoice, rgb: "np.ndarray", targets: Sequence["Target"], *, has_detector: bool = False
) -> SegmenterChoice:
    """Replace the embedded model in a photograph (H, W, 3) uint8: by the best model on this machine, else by GrabCut for boxes and rough masks.

    Measured in docs/experiments/masks.md: there GrabCut is nearer to the object than the embedded model.

    Args:
        has_detector: Whether a detector makes a box from the class word.
    """
    if not choice.is_fallback or not photo_or_drawing.looks_like_photograph(rgb):
        return choice
    by_word = not has_detector and any(target.has_no_hint for target in targets)
    best = segmenter_lookup.find_best()
    if best is not None and best.kind != "salient" and (best.kind == "sam3" or not by_word):
        return SegmenterChoice(best.kind, best.folder, f"the segmenter is {best.label}")
    salient = segmenter_lookup.find_cached("salient")  # the CLIP of such a base knows drawings, too
    if salient is not None and (by_word or not any(map(_has_box, targets))):
        note = f"the segmenter is {salient.label}: it selects what stands out and ignores the class word"
        return SegmenterChoice(salient.kind, salient.folder, note, ignores_word=True)
    if by_word or any(map(_has_points_only, targets)):
        return choice
    note = f"the segmenter is GrabCut, because the embedded model knows only drawings; `{FETCH}` downloads one for photographs"
    return SegmenterChoice("grabcut", note=note, is_fallback=True)


def require_place(
    ctx: StageContext, path: Path, choice: SegmenterChoice | None, rgb: "np.ndarray", target: "Target"
) -> None:
    """Refuse to look for an object in a photograph by its class word or points with a model that knows drawings.

    Raises:
        GateError: Only such a model is here, and the object has no box and no mask.
        ResourceError: The base model is not here, either.
    """
    if choice is None or not choice.is_fallback or not (target.has_no_hint or _has_points_only(target)):
        return
    if ctx.force or not photo_or_drawing.looks_like_photograph(rgb):
        return
    ctx.base  # noqa: B018  (a base that is not on this machine is the first thing to bring)
    raise GateError(
        f"no usable mask of the {target.class_word}: {path.name} looks like a photograph, and the segmenter here knows only drawings",
        f"put a box around it: `--box x0,y0,x1,y1`; or download a segmenter for photographs: `{FETCH}`; `--segmenter sam` tries the embedded one anyway",
    )


def _has_box(target: "Target") -> bool:
    return bool(target.box_xyxy or target.rough_mask)


def _has_points_only(target: "Target") -> bool:
    return bool(target.points) and not (target.box_xyxy or target.mask or target.rough_mask)


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
    if choice.kind == "salient":
        from objtune_cli.segmentation.salient import SalientSegmenter

        return SalientSegmenter(choice.weights, device)
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
    files = {file.name: file for file in folder.iterdir() if file.suffix in (".json", ".txt", ".safetensors")}
    files |= {name: folder / name for name in hub_cache.ONNX_FILES if (folder / name).is_file()}
    return hashlib.sha256(
        "".join(f"{name} {regular_files.file_sha256(file)}\n" for name, file in sorted(files.items())).encode()
    ).hexdigest()
