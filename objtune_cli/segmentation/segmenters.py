"""Loads a segmenter: the embedded segment-anything model, an official checkpoint, or GrabCut."""

from pathlib import Path

from objtune_cli.segmentation.types import Segmenter


def load_segmenter(kind: str, checkpoint: str, embedded: Path, device: str = "cpu") -> Segmenter:
    """A segmenter: of a checkpoint where one is given, else "sam" from the embedded weights, or "grabcut".

    Args:
        device: Where a checkpoint's model computes; the embedded one is small and stays with the processor.

    Raises:
        InputError: No segment-anything checkpoint.
    """
    if checkpoint:
        from objtune_cli.segmentation.sam import SegmentAnything, load_official

        return SegmentAnything(*load_official(Path(checkpoint)), device)
    if kind == "grabcut":
        from objtune_cli.segmentation.grabcut import GrabCut

        return GrabCut()
    from objtune_cli.segmentation.sam import SegmentAnything, load_embedded

    return SegmentAnything(*load_embedded(embedded))
