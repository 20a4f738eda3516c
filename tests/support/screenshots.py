"""Screenshots of pages as numbers: their size, and where on them something is drawn."""

import io
from typing import Any

import numpy as np
from PIL import Image

CELL = 20
"""Side of a cell of the structure, px."""


def take(view: Any, path: Any = None) -> np.ndarray:
    """A screenshot of what is visible (H, W) of luminance, float32 from 0 to 1; also written to `path`."""
    data = view.screenshot(path=path, animations="disabled")
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"), np.float32) / 255


def structure(shot: np.ndarray) -> np.ndarray:
    """The share of edges in each cell (H / CELL, W / CELL), the same on dark and on light paper."""
    across, down = np.abs(np.diff(shot, axis=1))[:-1], np.abs(np.diff(shot, axis=0))[:, :-1]
    edges = np.maximum(across, down) > 0.06
    height, width = (side // CELL * CELL for side in edges.shape)
    return edges[:height, :width].reshape(height // CELL, CELL, width // CELL, CELL).mean((1, 3))


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """How much of what two screenshots of one size draw is in the same cells, from 0 to 1."""
    assert first.shape == second.shape, (first.shape, second.shape)
    drawn = [structure(shot) > 0.02 for shot in (first, second)]
    return float((drawn[0] & drawn[1]).sum() / max(1, (drawn[0] | drawn[1]).sum()))


def crop(shot: np.ndarray, box: dict[str, float]) -> np.ndarray:
    """The part of a screenshot inside a bounding box as Playwright gives it."""
    x, y = max(0, round(box["x"])), max(0, round(box["y"]))
    return shot[y : y + round(box["height"]), x : x + round(box["width"])]
