"""Makes torchvision importable with a torch build that cannot load its compiled operators.

The package index has torchvision built for CUDA. With a CPU-only torch its library does not load, and
`import torchvision` fails ("operator torchvision::nms does not exist"); so do segment-anything and parts of
transformers. If the library loads, nothing is changed.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from objtune_cli.runtime import lazy_modules

_MISSING = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
"""The operators for which torchvision registers shapes during its import."""

_declared: list[torch.library.Library] = []
"""Keeps the Library alive; its operators vanish when it is collected."""


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    r"""Greedy non-maximum suppression: drop a box if a better box that stays has IoU > threshold.

    Args:
        boxes: (N, 4) as x0, y0, x1, y1, any one unit.
        scores: (N,).
        iou_threshold: In [0, 1].

    Returns:
        Indices of the kept boxes by falling score, (K,) int64; ties keep the earlier box first.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    selected = []
    while order.numel():
        best, rest = order[0], order[1:]
        selected.append(best)
        low = torch.maximum(boxes[best, :2], boxes[rest, :2])
        high = torch.minimum(boxes[best, 2:], boxes[rest, 2:])
        overlap = (high - low).clamp_min(0).prod(dim=1)
        iou = overlap / (area[best] + area[rest] - overlap)
        order = rest[~(iou > iou_threshold)]
    return torch.stack(selected) if selected else order


def complete() -> bool:
    """Declare the operators if they are missing, and return whether that was necessary; torchvision is not imported."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _declared:
        return bool(_declared)
    lazy_modules.install()
    for library in Path(spec.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return False
    _declare()
    return True


def _declare() -> None:
    library = torch.library.Library("torchvision", "DEF")
    for name, schema in _MISSING.items():
        library.define(schema)
        library.impl(name, nms, "CPU")
    _declared.append(library)
    lazy_modules.install({"torchvision.ops.boxes": _replace_nms})


def _replace_nms(module: ModuleType, execute: Callable[[], None]) -> None:
    """Execute torchvision's module, and put `nms` in place of its wrapper, which requires the library."""
    execute()
    module.nms = nms  # type: ignore[attr-defined]
