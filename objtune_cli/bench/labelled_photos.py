"""Photographs from scikit-image with outlines drawn by hand, to test segmenters on real images.

The outlines are ours, in photo pixels, accurate to about three pixels. Five objects show where a segmenter fails, not how often.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from objtune_cli.errors import ResourceError

CUP = (
    (173, 100), (180, 75), (195, 53), (220, 33), (250, 21), (285, 18), (320, 22), (355, 33), (380, 50), (395, 68), (404, 85), (408, 105),
    (408, 130), (400, 165), (385, 200), (372, 222), (352, 240), (340, 235), (322, 242), (317, 252), (325, 258), (320, 270), (300, 284),
    (275, 285), (260, 276), (240, 290), (225, 306), (208, 303), (197, 288), (200, 262), (215, 236), (200, 216), (185, 178), (175, 142),
)  # fmt: skip
"""Coffee: the cup with its handle, without saucer and spoon."""
SAUCER = (
    (77, 225), (80, 190), (90, 155), (108, 122), (140, 92), (180, 70), (195, 53), (220, 33), (250, 21), (285, 18), (320, 22), (355, 33),
    (380, 50), (395, 68), (415, 66), (424, 76), (413, 102), (432, 117), (455, 148), (473, 188), (479, 228), (470, 268), (440, 316),
    (400, 356), (345, 382), (290, 389), (240, 387), (190, 374), (140, 345), (105, 304), (85, 265),
)  # fmt: skip
"""Coffee: saucer, cup and spoon together."""
PERSON = (
    (20, 395), (25, 340), (35, 300), (55, 262), (75, 240), (110, 212), (114, 190), (122, 166), (140, 152), (170, 148), (184, 148), (181, 131),
    (168, 115), (157, 97), (154, 70), (166, 50), (190, 36), (205, 22), (235, 16), (265, 22), (288, 38), (301, 72), (300, 95), (290, 115),
    (277, 135), (268, 134), (262, 152), (257, 172), (280, 195), (297, 215), (304, 235), (325, 245), (342, 265), (352, 290), (360, 325),
    (364, 347), (345, 352), (315, 372), (293, 402), (280, 440), (277, 480), (281, 511), (60, 511), (40, 505), (28, 480), (24, 440),
)  # fmt: skip
"""Astronaut: the woman, without the helmet that she holds."""
HELMET = (
    (281, 511), (277, 480), (280, 440), (293, 402), (315, 372), (345, 352), (380, 344), (410, 344), (440, 352), (465, 375), (484, 410),
    (495, 450), (504, 470), (508, 505), (509, 511),
)  # fmt: skip
CAT = (
    (40, 0), (34, 55), (32, 115), (0, 128), (0, 299), (290, 299), (308, 275), (318, 245), (330, 208), (350, 178), (362, 150), (363, 112),
    (355, 78), (378, 35), (398, 0),
)  # fmt: skip
OBJECTS = (
    ("coffee.png", "mug", CUP), ("coffee.png", "saucer", SAUCER), ("astronaut.png", "person", PERSON), ("astronaut.png", "helmet", HELMET),
    ("chelsea.png", "cat", CAT),
)  # fmt: skip
"""File, class word, outline."""


@dataclass(frozen=True, slots=True)
class LabelledPhoto:
    """A photograph (H, W, 3) and one object in it: its class word and its mask (H, W), uint8."""

    rgb: np.ndarray
    class_word: str
    cover: np.ndarray


def load_photos() -> Iterator[LabelledPhoto]:
    """Load the photographs, one object each.

    Raises:
        ResourceError: scikit-image is not installed.
    """
    try:
        import skimage.io
        from skimage.data import data_dir
    except ImportError:
        raise ResourceError(
            "the photographs come with scikit-image, which is not installed", "`pip install scikit-image`"
        ) from None
    for file, word, corners in OBJECTS:
        rgb = np.ascontiguousarray(skimage.io.imread(f"{data_dir}/{file}")[..., :3])
        cover = np.zeros(rgb.shape[:2], np.uint8)
        cv2.fillPoly(cover, [np.array(corners, np.int32)], 255)
        yield LabelledPhoto(rgb, word, cover)
