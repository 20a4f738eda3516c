"""Encodes images as JPEG, WebP or AVIF with generation parameters in EXIF."""

import io
from typing import TYPE_CHECKING

from objtune_cli.errors import InputError, ResourceError
from objtune_cli.images import exif

if TYPE_CHECKING:
    import numpy as np

FORMATS = {"jpg": "JPEG", "webp": "WEBP", "avif": "AVIF"}
"""Formats besides PNG, by the suffix of their files, to Pillow's names."""
QUALITY = {"jpg": 95, "webp": 90, "avif": 80}
"""Quality where the user chooses none, 1 to 100."""


def check_format(suffix: str) -> None:
    """Refuse a format that Pillow was built without.

    Raises:
        ResourceError: It was.
    """
    from PIL import features

    if suffix in ("webp", "avif") and not features.check(suffix):
        raise ResourceError(
            f"this Pillow cannot write {suffix.upper()} files", "`pip install --upgrade pillow`, or use `--format jpg`"
        )


def encode_image(rgb: "np.ndarray", suffix: str, quality: int, parameters: str, software: str) -> bytes:
    """Encode an image (H, W, 3) uint8.

    Args:
        quality: 1 to 100; 0 for the format's own.
        parameters: Text for EXIF; "" for no metadata. software: Name and version of this program.

    Raises:
        InputError: The parameters are too long for a JPEG file.
    """
    from PIL import Image

    options: dict[str, object] = {"quality": quality or QUALITY[suffix]}
    if parameters:
        block = exif.encode_parameters(parameters, software)
        if suffix == "jpg" and len(block) > exif.MAX_BYTES:
            raise InputError("the parameters are too long for a JPEG file", "use `--format png`, or `--no-metadata`")
        options["exif"] = exif.HEADER + block if suffix == "jpg" else block
    if suffix == "jpg":
        options |= {"subsampling": 0, "optimize": True}
    elif suffix == "avif":
        options["subsampling"] = "4:4:4"
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, FORMATS[suffix], **options)
    return out.getvalue()
