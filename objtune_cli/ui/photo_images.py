"""Photos and masks as pictures that a browser shows."""

import base64
import io
from typing import TYPE_CHECKING

from objtune_cli.ui.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np

SHADE = (15, 17, 22)
"""Colour that dims what is outside of a mask."""
OPACITY = 150
QUALITY = 88


def encode(workspace: Workspace, name: str) -> bytes:
    """A photo as JPEG, upright and at the size at which it is stored.

    Raises:
        InputError: There is no such photo.
    """
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(workspace.open_photo(name).rgb).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def mask_address(mask: "np.ndarray") -> str:
    """A mask (H, W) uint8 as a data address: transparent on the object, with a white outline, and dark elsewhere."""
    import cv2
    import numpy as np
    from PIL import Image

    hard = (mask > 127).astype(np.uint8)
    width = max(1, round(max(mask.shape) / 300))
    rim = cv2.dilate(hard, np.ones((2 * width + 1,) * 2, np.uint8)) - hard
    picture = np.zeros((*mask.shape, 4), np.uint8)
    picture[..., :3] = SHADE
    picture[..., 3] = ((255 - mask.astype(np.uint16)) * OPACITY // 255).astype(np.uint8)
    picture[rim > 0] = (255, 255, 255, 255)
    out = io.BytesIO()
    Image.fromarray(picture, "RGBA").save(out, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
