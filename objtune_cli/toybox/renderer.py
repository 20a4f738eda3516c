"""Renders scenes: an image and one mask per object, at any size."""

from collections.abc import Callable, Iterator

import cv2
import numpy as np

from objtune_cli.toybox import marks, object_shapes
from objtune_cli.toybox.backgrounds import paint
from objtune_cli.toybox.world import Instance, Pose, Scene

SUPERSAMPLING = 3
"""Factor by which shapes are drawn larger and then averaged down, for smooth edges and soft masks."""

OUTLINE = 1 / 80
"""Width of the ink line, fraction of the frame."""


def render(scene: Scene, size: int = 64) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw a scene.

    Returns:
        Image (size, size, 3) uint8 RGB, and the visible mask (size, size) uint8 of each object, soft at
        the edge; a later object hides those behind it.
    """
    side = size * SUPERSAMPLING
    image = paint(scene.background, scene.background_seed, side)
    covers: list[np.ndarray] = []
    for instance, pose in scene.objects:
        cover = _draw_object(image, instance, pose)
        covers = [np.where(cover > 0, np.uint8(0), older) for older in covers] + [cover]
    return _shrink(image, size), [_shrink(cover, size) for cover in covers]


def _shrink(image: np.ndarray, size: int) -> np.ndarray:
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def _draw_object(image: np.ndarray, instance: Instance, pose: Pose) -> np.ndarray:
    """Paint one object into `image`, and return its mask at the same size, 0 or 255."""
    side = image.shape[0]
    shape = object_shapes.figure(instance.kind, instance.proportions, instance.spread)
    extras = object_shapes.accessory(instance.accessory, shape)
    place = _placement(np.concatenate([q for _, q in shape.parts]), pose, side)
    _, trim, third = instance.rgb
    texture = _texture(instance, place, side)
    behind = image.copy()
    mask = np.zeros((side, side), np.uint8)
    coat = np.zeros((side, side), bool)
    ink = max(1, round(OUTLINE * side))

    def put(fill: object_shapes.Fill, polygon: object_shapes.Polygon) -> None:
        points = [place(polygon)]
        stencil = np.zeros_like(mask)
        cv2.fillPoly(stencil, points, 255, shift=_SHIFT)
        inside = stencil > 0
        if fill == "coat":
            image[inside] = texture[inside]
        elif fill == "hole":
            image[inside] = behind[inside]
        else:
            image[inside] = trim if fill == "trim" else fill
        mask[inside] = 0 if fill == "hole" else 255
        coat[inside] = fill == "coat"
        cv2.polylines(image, points, True, object_shapes.INK, ink, shift=_SHIFT)
        cv2.polylines(mask, points, True, 255, ink, shift=_SHIFT)
        if instance.marks:
            line = np.zeros_like(stencil)
            cv2.polylines(line, points, True, 255, ink, shift=_SHIFT)
            coat[line > 0] = False

    for fill, polygon in shape.parts:
        put(fill, polygon)
    _paint_marks(image, coat, instance, shape, place)
    _tear(image, mask, behind, instance, shape, place)
    for polygon in extras:
        put(third, polygon)
    return mask


def _paint_marks(
    image: np.ndarray,
    coat: np.ndarray,
    instance: Instance,
    shape: object_shapes.Figure,
    place: Callable[[object_shapes.Polygon], np.ndarray],
) -> None:
    """Paint the marking of the class and the emblems where the coat is visible, with a thin ink line around each."""
    ink = max(1, round(OUTLINE * len(image)))
    brush = np.ones((max(2, ink // 2 + 1),) * 2, np.uint8)
    for rgb, contours in _marks(instance, shape):
        stencil = np.zeros(coat.shape, np.uint8)
        cv2.fillPoly(stencil, [place(contour) for contour in contours], 255, shift=_SHIFT)
        image[(stencil > 0) & coat] = rgb
        line = cv2.dilate(stencil, brush) - stencil
        image[(line > 0) & coat] = object_shapes.INK


def _tear(
    image: np.ndarray,
    mask: np.ndarray,
    behind: np.ndarray,
    instance: Instance,
    shape: object_shapes.Figure,
    place: Callable[[object_shapes.Polygon], np.ndarray],
) -> None:
    """Remove the torn or chipped part, with an ink line along the tear."""
    ink = max(1, round(OUTLINE * len(image)))
    for polygon in _notches(instance, shape):
        torn, line = np.zeros_like(mask), np.zeros_like(mask)
        cv2.fillPoly(torn, [place(polygon)], 255, shift=_SHIFT)
        cv2.polylines(line, [place(polygon)], True, 255, ink, shift=_SHIFT)
        image[torn > 0] = behind[torn > 0]
        image[(line > 0) & (mask > 0)] = object_shapes.INK
        mask[(torn > 0) & (line == 0)] = 0


def _marks(
    instance: Instance, shape: object_shapes.Figure
) -> Iterator[tuple[tuple[int, int, int], list[object_shapes.Polygon]]]:
    """Colour and contours on the coat: the marking of the class, then the emblems."""
    if instance.marking and instance.marking[0] < 2 / 3 and shape.eye[2]:
        x, y, size = shape.eye
        wide, high = size * (1.0 + 0.6 * instance.marking[1]), size * (1.6 - 0.6 * instance.marking[1])
        yield instance.marking_rgb, [object_shapes.ellipse(x, y, wide, high, tilt=instance.marking[2] - 0.5)]
    for mark in instance.marks:
        x, y, wide, high = shape.panels[mark.panel % len(shape.panels)]
        centre = np.array([x + mark.u * wide, y + mark.v * high])
        yield mark.rgb, [centre + mark.size * contour for contour in marks.outlines(mark)]


def _notches(instance: Instance, shape: object_shapes.Figure) -> Iterator[object_shapes.Polygon]:
    """Yield the contour of the torn or chipped part, if there is one."""
    if instance.marking and instance.marking[0] > 1 / 2 and shape.ear[2]:
        x, y, size = shape.ear
        turn = 2 * np.pi * instance.marking[2]
        corners = turn + np.array([0, 2.1, 4.2])
        reach = size * (0.8 + 0.5 * instance.marking[1])
        yield np.stack([x + reach * np.cos(corners), y + reach * np.sin(corners)], 1)


_SHIFT = 3
"""Fractional bits of cv2's fixed-point coordinates."""


def _placement(points: np.ndarray, pose: Pose, side: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return the map from the figure's frame to fixed-point pixels; it centres the figure's box on the pose."""
    low, high = points.min(0), points.max(0)
    scale = pose.size * side / float((high - low).max())
    c, s = np.cos(pose.tilt), np.sin(pose.tilt)
    turn = np.array([[c, s], [-s, c]]) * scale
    if pose.flip:
        turn = np.diag([-1.0, 1.0]) @ turn
    centre = np.array([pose.x, pose.y]) * side

    def place(polygon: np.ndarray) -> np.ndarray:
        xy = (polygon - (low + high) / 2) @ turn + centre
        points: np.ndarray = np.round(xy * (1 << _SHIFT)).astype(np.int32)
        return points

    return place


def _texture(instance: Instance, place: Callable[[np.ndarray], np.ndarray], side: int) -> np.ndarray:
    """Paint the coat over the whole frame: the first colour, and the pattern in the second; it moves with the object."""
    texture = np.empty((side, side, 3), np.uint8)
    texture[:] = instance.rgb[0]
    period = 0.34 + 0.16 * instance.frequency
    shapes: list[np.ndarray] = []
    if instance.pattern == "spots":
        for row, y in enumerate(np.arange(-1.4, 1.4, period)):
            start = -1.4 + period * (instance.phase + 0.5 * (row % 2))
            shapes += [
                object_shapes.ellipse(x, y, 0.3 * period, 0.3 * period, n=16) for x in np.arange(start, 1.4, period)
            ]
    elif instance.pattern == "stripes":
        along = np.array([0.5, -0.866])
        across = np.array([0.866, 0.5])
        for t in np.arange(-2.2 + period * instance.phase, 2.2, period):
            near, far = t * across, (t + period / 2) * across
            shapes.append(np.stack([near - 3 * along, near + 3 * along, far + 3 * along, far - 3 * along]))
    elif instance.pattern == "checks":
        step = period / 1.6
        for row, y in enumerate(np.arange(-1.6 + step * instance.phase, 1.6, step)):
            start = -1.6 + step * (row % 2)
            shapes += [object_shapes.box(x, y, x + step, y + step) for x in np.arange(start, 1.6, 2 * step)]
    for shape in shapes:
        cv2.fillConvexPoly(texture, place(shape), instance.rgb[1], shift=_SHIFT)
    return texture
