"""Photographs from scikit-image with outlines drawn by hand, to test segmenters on real images.

The outlines are ours, in photo pixels, accurate to about three pixels. Nine objects show where a segmenter fails, not how often.
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
ROCKET = (
    (322, 127), (328, 132), (333, 142), (334, 150), (334, 177), (331, 181), (331, 407), (313, 407), (313, 181), (311, 177), (311, 148), (313, 140),
    (317, 132),
)  # fmt: skip
"""Rocket: the rocket without its tower."""
MAN = (
    (0, 511), (0, 258), (8, 247), (18, 235), (30, 213), (45, 190), (52, 177), (62, 160), (75, 146), (95, 133), (115, 126), (130, 124), (140, 115),
    (150, 107), (160, 106), (163, 100), (167, 93), (175, 82), (188, 70), (200, 64), (215, 64), (230, 67), (243, 76), (255, 87), (264, 97),
    (270, 113), (270, 122), (265, 131), (252, 130), (250, 140), (254, 168), (247, 173), (246, 182), (241, 190), (241, 205), (244, 222), (248, 247),
    (256, 243), (263, 235), (262, 218), (270, 209), (285, 206), (303, 204), (308, 186), (318, 170), (327, 170), (331, 180), (330, 195), (325, 210),
    (318, 225), (305, 230), (296, 240), (300, 260), (304, 272), (290, 285), (265, 303), (245, 311), (225, 304), (206, 294), (195, 310), (180, 335),
    (165, 355), (140, 380), (147, 410), (150, 450), (150, 511),
)  # fmt: skip
"""Camera: the man without camera and tripod."""
TRIPOD = (
    ((253, 139), (318, 139), (325, 141), (325, 152), (318, 154), (320, 180), (300, 183), (268, 180), (260, 177), (259, 152), (253, 150)),
    ((273, 186), (304, 186), (304, 194), (297, 200), (297, 312), (303, 312), (311, 328), (395, 480), (406, 511), (398, 511), (384, 484), (297, 484), (297, 486), (247, 492), (241, 511), (231, 511), (236, 490), (281, 331), (278, 328), (281, 312), (289, 312), (289, 200), (273, 194)),
)  # fmt: skip
"""Camera: camera, column and legs."""
TRIPOD_HOLES = (
    ((287, 335), (288, 341), (288, 478), (262, 466), (255, 463)),
    ((297, 344), (304, 338), (380, 480), (297, 480)),
    ((255, 475), (284, 483), (250, 487)),
)  # fmt: skip
"""Between the legs."""
MOTORCYCLE = (
    (103, 242), (92, 209), (95, 198), (120, 195), (146, 196), (146, 190), (140, 167), (142, 151), (159, 144), (169, 153), (167, 162), (190, 163),
    (234, 170), (246, 167), (273, 190), (335, 187), (357, 193), (385, 176), (385, 193), (389, 190), (389, 172), (441, 156), (463, 155), (474, 146),
    (441, 144), (430, 134), (410, 138), (385, 153), (363, 176), (355, 170), (357, 165), (385, 142), (399, 140), (402, 134), (385, 137), (373, 124),
    (333, 138), (331, 126), (363, 110), (377, 113), (385, 129), (413, 123), (430, 126), (446, 142), (468, 142), (468, 128), (485, 114), (501, 114),
    (502, 100), (494, 84), (499, 78), (509, 84), (544, 99), (541, 103), (525, 99), (537, 120), (558, 128), (564, 120), (578, 120), (581, 134),
    (569, 143), (562, 144), (560, 162), (550, 181), (552, 195), (544, 204), (558, 223), (580, 262), (586, 267), (608, 272), (631, 287), (643, 307),
    (641, 314), (653, 324), (672, 357), (684, 396), (678, 430), (658, 446), (631, 450), (597, 441), (564, 416), (536, 385), (516, 352), (515, 321),
    (507, 330), (506, 315), (522, 287), (527, 279), (512, 246), (505, 228), (497, 226), (481, 208), (477, 223), (472, 240), (480, 257), (477, 290),
    (474, 324), (463, 357), (435, 377), (413, 382), (363, 374), (340, 371), (338, 385), (352, 406), (342, 410), (336, 427), (342, 433), (325, 435),
    (328, 424), (328, 391), (321, 371), (304, 363), (279, 357), (268, 374), (246, 391), (218, 399), (184, 393), (156, 374), (134, 346), (122, 312),
    (123, 285), (137, 257), (151, 246), (146, 234), (134, 232), (117, 244), (109, 247),
)  # fmt: skip
"""Motorcycle: the gaps between spokes and tubes belong to it; accurate to about six pixels."""
Outline = tuple[tuple[int, int], ...]
OBJECTS: tuple[tuple[str, str, tuple[Outline, ...], tuple[Outline, ...]], ...] = (
    ("coffee.png", "mug", (CUP,), ()),
    ("coffee.png", "saucer", (SAUCER,), ()),
    ("astronaut.png", "person", (PERSON,), ()),
    ("astronaut.png", "helmet", (HELMET,), ()),
    ("chelsea.png", "cat", (CAT,), ()),
    ("rocket.jpg", "rocket", (ROCKET,), ()),
    ("camera.png", "man", (MAN,), ()),
    ("camera.png", "tripod", TRIPOD, TRIPOD_HOLES),
    ("motorcycle_left.png", "motorcycle", (MOTORCYCLE,), ()),
)
"""File, class word, outlines, and outlines of holes."""
DETAILS = {
    "person": ("hair", (140, 10, 310, 140)),
    "man": ("hair", (155, 55, 275, 150)),
    "cat": ("fur", (0, 0, 451, 130)),
    "helmet": ("glass", (281, 340, 512, 512)),
    "rocket": ("thin part", (300, 120, 345, 410)),
    "tripod": ("thin part", (228, 185, 410, 512)),
    "motorcycle": ("thin part", (330, 80, 420, 180)),
}
"""Class word to a part that segmenters find hard, and the box around it: x0, y0, x1, y1 in px. The tripod has holes, too."""


@dataclass(frozen=True, slots=True)
class LabelledPhoto:
    """A photograph (H, W, 3) and one object in it: its class word and its mask (H, W), uint8."""

    rgb: np.ndarray
    class_word: str
    cover: np.ndarray

    def crop_detail(self, mask: np.ndarray) -> np.ndarray | None:
        """The part of a mask (H, W) around the object's hard part; None if it has none."""
        if self.class_word not in DETAILS:
            return None
        x0, y0, x1, y1 = DETAILS[self.class_word][1]
        return mask[y0:y1, x0:x1]


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
    for file, word, outlines, holes in OBJECTS:
        pixels = skimage.io.imread(f"{data_dir}/{file}")
        rgb = np.ascontiguousarray(pixels[..., :3] if pixels.ndim == 3 else np.dstack([pixels] * 3))
        cover = np.zeros(rgb.shape[:2], np.uint8)
        for value, corners in [*((255, each) for each in outlines), *((0, each) for each in holes)]:
            cv2.fillPoly(cover, [np.array(corners, np.int32)], value)
        yield LabelledPhoto(rgb, word, cover)
