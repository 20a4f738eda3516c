"""The shapes of the toybox: each class as a list of filled polygons in its own unit frame.

Frame: x to the right, y down, roughly [-1, 1] on both axes, facing right. A fill is "coat" (colour,
with pattern), "trim" (second colour), "hole" (background shows through) or a fixed RGB.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import pi

import numpy as np

Polygon = np.ndarray
Fill = str | tuple[int, int, int]

INK = (34, 34, 38)
EYE_WHITE = (250, 250, 250)
GLASS = (186, 224, 242)
WOOD = (122, 76, 46)
METAL = (196, 196, 202)
LAMP = (252, 240, 150)
COFFEE = (84, 50, 30)
BRICK = (134, 82, 70)
NOSE = (236, 124, 134)


@dataclass(frozen=True, slots=True)
class Figure:
    """Parts in drawing order, and the places of accessories and marks.

    Attributes:
        head, neck: x, y and half width. panels: Ellipses on the coat where emblems lie: x, y and both radii.
        eye: x, y and size of the part that the class's marking surrounds: an eye, a window, a rim.
        ear: Tip and size of the part that may be torn or chipped; size 0 for none.
    """

    parts: list[tuple[Fill, Polygon]]
    head: tuple[float, float, float]
    neck: tuple[float, float, float]
    panels: tuple[tuple[float, float, float, float], ...] = ((0.0, 0.0, 0.3, 0.3),)
    eye: tuple[float, float, float] = (0.0, 0.0, 0.0)
    ear: tuple[float, float, float] = (0.0, 0.0, 0.0)


def ellipse(x: float, y: float, rx: float, ry: float, tilt: float = 0.0, n: int = 32) -> Polygon:
    """Ellipse with radii rx, ry around (x, y), tilted by `tilt` radians."""
    t = np.linspace(0, 2 * pi, n, endpoint=False)
    u, v = rx * np.cos(t), ry * np.sin(t)
    c, s = np.cos(tilt), np.sin(tilt)
    return np.stack([x + c * u - s * v, y + s * u + c * v], 1)


def box(x0: float, y0: float, x1: float, y1: float, r: float = 0.0) -> Polygon:
    """Rectangle with corners rounded by radius r."""
    if not r:
        return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float)
    t = np.linspace(0, pi / 2, 6)
    corners = ((x1 - r, y1 - r, 0.0), (x0 + r, y1 - r, pi / 2), (x0 + r, y0 + r, pi), (x1 - r, y0 + r, -pi / 2))
    return np.concatenate([np.stack([x + r * np.cos(t + a), y + r * np.sin(t + a)], 1) for x, y, a in corners])


def poly(*xy: float) -> Polygon:
    """Polygon from x0, y0, x1, y1, …"""
    return np.array(xy, float).reshape(-1, 2)


def dog(p: Callable[[int, float, float], float]) -> Figure:
    length, legs, head = p(0, 0.46, 0.62), p(1, 0.26, 0.44), p(2, 0.28, 0.36)
    ear, tail = p(3, 0.20, 0.34), p(4, 0.22, 0.46)
    y, hx, hy = 0.15, length + 0.10, -0.30
    parts: list[tuple[Fill, Polygon]] = [
        (
            "coat",
            poly(
                -length + 0.1,
                y - 0.1,
                -length - 0.2,
                y - 0.15 - tail,
                -length - 0.05,
                y - 0.2 - tail,
                -length + 0.24,
                y - 0.14,
            ),
        ),
    ]
    for x in (-length + 0.12, -length + 0.36, length - 0.36, length - 0.12):
        parts.append(("coat", box(x - 0.09, y + 0.08, x + 0.09, y + 0.26 + legs, 0.05)))
    parts += [
        ("coat", ellipse(0, y, length + 0.02, 0.31)),
        ("coat", ellipse(hx, hy, head, head * 0.95)),
        ("trim", ellipse(hx + head * 0.85, hy + 0.1, 0.21, 0.15)),
        (INK, ellipse(hx + head * 0.85 + 0.15, hy + 0.05, 0.07, 0.06, n=14)),
        ("trim", ellipse(hx - head * 0.6, hy + 0.06, 0.12, ear, tilt=0.25)),
        (INK, ellipse(hx + 0.1, hy - 0.08, 0.06, 0.07, n=14)),
    ]
    return Figure(
        parts,
        (hx, hy - head * 0.9, head),
        (length - 0.08, y - 0.14, 0.26),
        panels=((-0.02, y, 0.85 * length, 0.2), (hx - 0.05, hy - 0.05, head * 0.6, head * 0.5)),
        eye=(hx + 0.1, hy - 0.08, 0.17),
        ear=(hx - head * 0.6 - 0.25 * ear, hy + 0.06 + ear, 0.15),
    )


def cat(p: Callable[[int, float, float], float]) -> Figure:
    width, height, head = p(0, 0.36, 0.48), p(1, 0.42, 0.54), p(2, 0.36, 0.44)
    ear, tail = p(3, 0.2, 0.34), p(4, 0.35, 0.65)
    hy = 0.95 - 2 * height - head * 0.45
    parts: list[tuple[Fill, Polygon]] = [
        (
            "coat",
            poly(
                width - 0.1,
                0.77,
                width + 0.36,
                0.72,
                width + 0.47,
                0.7 - tail,
                width + 0.3,
                0.7 - tail,
                width + 0.2,
                0.55,
                width - 0.1,
                0.58,
            ),
        ),
        ("coat", ellipse(0, 0.85 - height, width, height)),
        ("trim", ellipse(0, 0.95 - height * 0.8, width * 0.52, height * 0.55)),
    ]
    for s in (-1, 1):
        parts.append(
            (
                "coat",
                poly(
                    s * head * 0.95, hy - 0.05, s * head * 0.8, hy - head * 0.7 - ear, s * head * 0.1, hy - head * 0.7
                ),
            )
        )
    parts.append(("coat", ellipse(0, hy, head, head * 0.85)))
    parts += [(INK, ellipse(s * head * 0.4, hy - 0.04, 0.065, 0.1, n=14)) for s in (-1, 1)]
    parts.append((NOSE, poly(-0.08, hy + 0.1, 0.08, hy + 0.1, 0, hy + 0.2)))
    return Figure(
        parts,
        (0, hy - head * 0.8, head),
        (0, hy + head * 0.85, 0.3),
        panels=((0, 1.0 - height, width * 0.8, height * 0.62), (0, hy + 0.02, head * 0.7, head * 0.6)),
        eye=(head * 0.4, hy - 0.04, 0.17),
        ear=(-head * 0.8, hy - head * 0.7 - ear, 0.16),
    )


def car(p: Callable[[int, float, float], float]) -> Figure:
    height, cabin, wheel = p(0, 0.27, 0.38), p(1, 0.38, 0.58), p(2, 0.19, 0.26)
    length, roof = p(3, 0.80, 0.95), p(4, 0.30, 0.44)
    y = 0.35 - height
    parts: list[tuple[Fill, Polygon]] = [
        ("trim", poly(-cabin, y + 0.05, -cabin * 0.7, y - roof, cabin * 0.6, y - roof, cabin * 1.05, y + 0.05)),
        (GLASS, poly(-cabin * 0.75, y, -cabin * 0.58, y - roof * 0.75, -0.04, y - roof * 0.75, -0.04, y)),
        (GLASS, poly(0.07, y, 0.07, y - roof * 0.75, cabin * 0.5, y - roof * 0.75, cabin * 0.8, y)),
        ("coat", box(-length, y, length, 0.38, 0.12)),
        (LAMP, ellipse(length - 0.09, y + 0.14, 0.08, 0.08, n=16)),
    ]
    for x in (-length * 0.55, length * 0.55):
        parts += [(INK, ellipse(x, 0.4, wheel, wheel)), (METAL, ellipse(x, 0.4, wheel * 0.45, wheel * 0.45))]
    return Figure(
        parts,
        (-0.05, y - roof, 0.3),
        (0, y + 0.03, 0.35),
        panels=((0, y + (0.38 - y) * 0.45, length * 0.62, 0.1), (-0.1, y + (0.38 - y) * 0.4, length * 0.4, 0.1)),
        eye=(0.2, y - roof * 0.4, 0.16),
        ear=(-length, y, 0.15),
    )


def mug(p: Callable[[int, float, float], float]) -> Figure:
    width, height, handle, flare = p(0, 0.40, 0.54), p(1, 0.46, 0.62), p(2, 0.20, 0.30), p(3, -0.05, 0.1)
    top, bottom = 0.1 - height, 0.1 + height
    parts: list[tuple[Fill, Polygon]] = [
        ("trim", ellipse(width + 0.03, 0.1, handle + 0.1, handle + 0.12)),
        ("hole", ellipse(width + 0.03, 0.1, handle - 0.05, handle - 0.03)),
        (
            "coat",
            np.concatenate(
                [poly(-width - flare, top, width + flare, top), ellipse(0, bottom, width - 0.03, 0.1, n=32)[:17]]
            ),
        ),
        ("trim", ellipse(0, top, width + flare, 0.14)),
        (COFFEE, ellipse(0, top + 0.01, (width + flare) * 0.8, 0.085)),
    ]
    return Figure(
        parts,
        (0, top - 0.08, 0.3),
        (0, 0.15, width),
        panels=((0, 0.16, width * 0.78, height * 0.66), (0, 0.3, width * 0.6, height * 0.5)),
        eye=(0, bottom - 0.1, 0.2),
        ear=(-width * 0.6, top - 0.1, 0.15),
    )


def house(p: Callable[[int, float, float], float]) -> Figure:
    width, height, roof, eaves = p(0, 0.5, 0.7), p(1, 0.36, 0.52), p(2, 0.4, 0.6), p(3, 0.08, 0.2)
    door = p(4, 0.11, 0.16)
    y = 0.8 - 2 * height
    parts: list[tuple[Fill, Polygon]] = [
        (BRICK, box(width * 0.4, y - roof * 0.95, width * 0.4 + 0.2, y)),
        ("coat", box(-width, y, width, 0.8)),
        ("trim", poly(-width - eaves, y + 0.04, 0, y - roof, width + eaves, y + 0.04)),
        (WOOD, box(-door - 0.17, 0.8 - height * 0.95, door - 0.17, 0.8)),
        (GLASS, box(width * 0.32, 0.8 - height * 1.4, width * 0.8, 0.8 - height * 0.75)),
    ]
    return Figure(
        parts,
        (0, y - roof + 0.05, 0.26),
        (0, y + 0.1, width * 0.9),
        panels=(
            (0, y + height * 0.5, width * 0.85, height * 0.35),
            (-width * 0.3, y + height * 0.6, width * 0.5, height * 0.4),
        ),
        eye=(width * 0.56, 0.8 - height * 1.08, 0.2),
        ear=(-width - eaves, y + 0.04, 0.17),
    )


def fish(p: Callable[[int, float, float], float]) -> Figure:
    length, height, tail, fin = p(0, 0.52, 0.68), p(1, 0.34, 0.48), p(2, 0.28, 0.42), p(3, 0.16, 0.32)
    parts: list[tuple[Fill, Polygon]] = [
        (
            "trim",
            poly(
                -length + 0.14, 0, -length - tail, -height * 0.9, -length - tail * 0.65, 0, -length - tail, height * 0.9
            ),
        ),
        ("trim", poly(-length * 0.45, -height * 0.7, -0.1, -height - fin, length * 0.4, -height * 0.7)),
        ("coat", ellipse(0, 0, length, height)),
        ("trim", ellipse(-0.04, height * 0.3, 0.18, 0.1, tilt=0.5)),
        (EYE_WHITE, ellipse(length * 0.55, -height * 0.2, 0.13, 0.13, n=18)),
        (INK, ellipse(length * 0.6, -height * 0.2, 0.065, 0.075, n=14)),
    ]
    return Figure(
        parts,
        (length * 0.45, -height * 0.8, 0.28),
        (length * 0.2, height * 0.3, 0.2),
        panels=((-0.1, 0, length * 0.7, height * 0.6), (0, -0.05, length * 0.5, height * 0.5)),
        eye=(length * 0.55, -height * 0.2, 0.24),
        ear=(-length - tail, -height * 0.9, 0.18),
    )


def tree(p: Callable[[int, float, float], float]) -> Figure:
    radius, height, trunk = p(0, 0.4, 0.5), p(1, 0.35, 0.55), p(2, 0.1, 0.16)
    y = 0.95 - height
    parts: list[tuple[Fill, Polygon]] = [
        ("trim", box(-trunk, y - 0.3, trunk, 0.95)),
        ("coat", poly(-radius - 0.15, y, 0, y - 0.9 - radius * 0.4, radius + 0.15, y)),
        ("coat", poly(-radius, y - 0.45, 0, y - 1.25 - radius * 0.4, radius, y - 0.45)),
    ]
    return Figure(
        parts,
        (0, y - 1.2 - radius * 0.4, 0.28),
        (0, y - 0.1, 0.16),
        panels=((0, y - 0.3, radius * 0.8, 0.24), (0, y - 0.8, radius * 0.5, 0.2)),
        eye=(0, y - 0.4, 0.2),
    )


def boat(p: Callable[[int, float, float], float]) -> Figure:
    width, hull, mast, boom = p(0, 0.62, 0.82), p(1, 0.26, 0.36), p(2, 0.8, 1.05), p(3, 0.4, 0.6)
    parts: list[tuple[Fill, Polygon]] = [
        (WOOD, box(-0.05, 0.2 - mast, 0.05, 0.35)),
        ("trim", poly(0.09, 0.25 - mast, 0.09 + boom, 0.15, 0.09, 0.15)),
        ("trim", poly(-0.09, 0.35 - mast, -0.09 - boom * 0.7, 0.15, -0.09, 0.15)),
        (
            "coat",
            poly(-width, 0.25, width, 0.25, width - hull, 0.25 + 1.4 * hull, -width + hull * 0.8, 0.25 + 1.4 * hull),
        ),
    ]
    return Figure(
        parts,
        (0, 0.22 - mast, 0.24),
        (0, 0.32, width * 0.8),
        panels=((0, 0.25 + 0.6 * hull, width * 0.7, 0.5 * hull), (0, 0.25 + 0.6 * hull, width * 0.4, 0.4 * hull)),
        eye=(0.09 + boom * 0.3, 0, 0.18),
    )


FIGURES = {"dog": dog, "cat": cat, "car": car, "mug": mug, "house": house, "fish": fish, "tree": tree, "boat": boat}


def figure(kind: str, proportions: tuple[float, ...], spread: float = 1.0) -> Figure:
    """The figure of a class at the given proportions, each in [0, 1]; `spread` widens their ranges around the middle."""

    def scaled(i: int, low: float, high: float) -> float:
        return low + (high - low) * (0.5 + spread * (proportions[i] - 0.5))

    return FIGURES[kind](scaled if spread != 1.0 else lambda i, low, high: low + (high - low) * proportions[i])


def accessory(name: str, shape: Figure) -> list[Polygon]:
    """Polygons of an accessory on a figure, all in the accessory's colour."""
    if name == "hat":
        x, y, w = shape.head
        w = max(w, 0.26)
        return [box(x - w * 0.7, y - w * 0.9, x + w * 0.7, y), box(x - w * 1.2, y - 0.02, x + w * 1.2, y + 0.13, 0.05)]
    if name == "scarf":
        x, y, w = shape.neck
        return [box(x - w, y - 0.1, x + w, y + 0.1, 0.06), box(x + w * 0.3, y + 0.05, x + w * 0.3 + 0.2, y + 0.42)]
    if name == "bow":
        x, y, w = shape.head
        x, y = x + w * 0.35, y + 0.08
        return [
            poly(x, y, x - 0.3, y - 0.2, x - 0.3, y + 0.2),
            poly(x, y, x + 0.3, y - 0.2, x + 0.3, y + 0.2),
            ellipse(x, y, 0.1, 0.1, n=14),
        ]
    return []
