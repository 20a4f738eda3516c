"""Loads a segmenter: the embedded segment-anything model, an official checkpoint, or GrabCut."""

from pathlib import Path

from objtune_cli.segmentation.types import Segmenter


def load_segmenter(kind: str, checkpoint: str, embedded: Path, device: str = "cpu") -> Segmenter:
    """Load a segmenter from a checkpoint, or "sam" from the embedded weights, or "grabcut".

    Args:
        device: Device of a checkpoint's model; the embedded model is small and stays on the CPU.

    Raises:
        InputError: The file is not a segment-anything checkpoint.
    """
    if checkpoint:
        from objtune_cli.segmentation.sam import SegmentAnything
        from objtune_cli.segmentation.sam_models import load_official

        return SegmentAnything(*load_official(Path(checkpoint)), device)
    if kind == "grabcut":
        from objtune_cli.segmentation.grabcut import GrabCut

        return GrabCut()
    from objtune_cli.segmentation.sam import SegmentAnything
    from objtune_cli.segmentation.sam_models import load_embedded

    return SegmentAnything(*load_embedded(embedded))
