"""Marks of one particular object that no caption names: emblems on its coat, and markings of its class.

An emblem is a small figure (ring, star, blot, letter-like strokes, …) with its own place, size, turn and colour. A marking
belongs to a class, such as a patch over the eye, a torn ear, bars on windows or a chipped rim.
"""

from dataclasses import dataclass
from math import pi

import numpy as np

Polygon = np.ndarray

EMBLEMS = ("ring", "star", "blot", "glyph", "crescent", "bars", "triangle", "cross")


@dataclass(frozen=True, slots=True)
class Mark:
    """One emblem.

    Attributes:
        kind: One of `EMBLEMS`. panel: Which panel of the figure it lies on, modulo their number.
        u, v: Its centre on the panel, each in [-1, 1]. size: Its radius, in units of the figure. turn: Its rotation, radians.
        rgb: Its colour, [0, 255]. seed: Distinguishes two emblems of one kind.
    """

    kind: str
    panel: int
    u: float
    v: float
    size: float
    turn: float
    rgb: tuple[int, int, int]
    seed: int


def outlines(mark: Mark) -> list[Polygon]:
    """Contours of an emblem around the origin with radius 1; contours inside others are holes (even-odd rule)."""
    rng = np.random.default_rng(mark.seed)
    shape = _SHAPES[mark.kind](rng)
    c, s = np.cos(mark.turn), np.sin(mark.turn)
    return [contour @ np.array([[c, s], [-s, c]]) for contour in shape]


def _circle(radius: float, x: float = 0.0, y: float = 0.0, n: int = 28) -> Polygon:
    t = np.linspace(0, 2 * pi, n, endpoint=False)
    return np.stack([x + radius * np.cos(t), y + radius * np.sin(t)], 1)


def _ring(rng: np.random.Generator) -> list[Polygon]:
    hole = rng.uniform(0.42, 0.62)
    rings = [_circle(1.0), _circle(hole)]
    return [*rings, _circle(hole * 0.45)] if rng.random() < 0.4 else rings


def _star(rng: np.random.Generator) -> list[Polygon]:
    points = int(rng.integers(4, 7))
    t = np.linspace(0, 2 * pi, 2 * points, endpoint=False) - pi / 2
    radius = np.where(np.arange(2 * points) % 2 == 0, 1.0, rng.uniform(0.36, 0.5))
    return [np.stack([radius * np.cos(t), radius * np.sin(t)], 1)]


def _blot(rng: np.random.Generator) -> list[Polygon]:
    t = np.linspace(0, 2 * pi, 40, endpoint=False)
    radius = np.ones_like(t)
    for k in range(2, 5):
        radius += rng.uniform(0.1, 0.3) / (k - 1) * np.cos(k * t + rng.uniform(0, 2 * pi))
    radius /= radius.max()
    return [np.stack([radius * np.cos(t), radius * np.sin(t)], 1)]


def _glyph(rng: np.random.Generator) -> list[Polygon]:
    """A letter-like shape: a stem, and two or three bars at random heights to random sides."""
    wide = 0.2
    bars = [_rectangle(-wide, -1, wide, 1)]
    for height in rng.choice((-0.8, 0.0, 0.8), int(rng.integers(2, 4)), replace=False):
        left, right = ((-0.8, wide), (-wide, 0.8), (-0.8, 0.8))[rng.integers(3)]
        bars.append(_rectangle(left, height - wide, right, height + wide))
    return _union(bars)


def _crescent(rng: np.random.Generator) -> list[Polygon]:
    shift = rng.uniform(0.35, 0.6)
    outer, inner = _circle(1.0), _circle(0.85, shift)
    keep = np.hypot(outer[:, 0] - shift, outer[:, 1]) > 0.85
    bite = inner[np.hypot(inner[:, 0], inner[:, 1]) < 1.0]
    arc = outer[keep]
    arc = arc[np.argsort(np.unwrap(np.mod(np.arctan2(arc[:, 1], arc[:, 0]), 2 * pi)))]
    bite = bite[np.argsort(np.mod(np.arctan2(bite[:, 1], bite[:, 0] - shift), 2 * pi))]
    return [np.concatenate([arc, bite[::-1]])]


def _bars(rng: np.random.Generator) -> list[Polygon]:
    count = int(rng.integers(2, 4))
    step = 2 / count
    return [_rectangle(-1, -1 + i * step, 1, -1 + i * step + 0.55 * step) for i in range(count)]


def _triangle(rng: np.random.Generator) -> list[Polygon]:
    t = np.array([0, 1, 2]) * 2 * pi / 3 - pi / 2
    whole = np.stack([np.cos(t), np.sin(t)], 1)
    return [whole, 0.42 * whole] if rng.random() < 0.5 else [whole]


def _cross(rng: np.random.Generator) -> list[Polygon]:
    wide, low = rng.uniform(0.22, 0.36), rng.uniform(-0.35, 0.2)
    return _union([_rectangle(-wide, -1, wide, 1), _rectangle(-0.9, low - wide, 0.9, low + wide)])


_SHAPES = {
    "ring": _ring, "star": _star, "blot": _blot, "glyph": _glyph, "crescent": _crescent, "bars": _bars, "triangle": _triangle, "cross": _cross,
}  # fmt: skip


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> Polygon:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float)


def _union(parts: list[Polygon]) -> list[Polygon]:
    """Contours of overlapping rectangles whose union the even-odd rule fills: each overlap is cut out of the later one."""
    done: list[Polygon] = []
    for part in parts:
        pieces = [part]
        for other in done:
            pieces = [rest for piece in pieces for rest in _subtract(piece, other)]
        done += pieces
    return done


def _subtract(part: Polygon, other: Polygon) -> list[Polygon]:
    """Rectangles that cover `part` without `other`; both are aligned with the axes."""
    (x0, y0), (x1, y1) = part[0], part[2]
    (a0, b0), (a1, b1) = other[0], other[2]
    a0, a1, b0, b1 = max(a0, x0), min(a1, x1), max(b0, y0), min(b1, y1)
    if a0 >= a1 or b0 >= b1:
        return [part]
    rests = ((x0, y0, a0, y1), (a1, y0, x1, y1), (a0, y0, a1, b0), (a0, b1, a1, y1))
    return [_rectangle(*rest) for rest in rests if rest[2] - rest[0] > 1e-9 and rest[3] - rest[1] > 1e-9]


def sample_marks(
    rng: np.random.Generator,
    count: tuple[int, int],
    palette: list[tuple[int, int, int]],
    coat: list[tuple[int, int, int]],
) -> tuple[Mark, ...]:
    """Random emblems that stand out from the coat, in places that do not overlap on a wide panel.

    Args:
        count: Smallest and largest number. palette: Colours to choose from, [0, 255]. coat: The coat's colours.
    """
    number = int(rng.integers(count[0], count[1] + 1))
    contrast = [min(float(np.abs(np.subtract(rgb, other)).sum()) for other in coat) for rgb in palette]
    visible = [rgb for rgb, much in zip(palette, contrast, strict=True) if much > 150] or palette
    slots = rng.permutation(3)[:number]
    marks = []
    for i in range(number):
        place = slots[i % len(slots)]
        marks.append(
            Mark(
                kind=str(rng.choice(EMBLEMS)),
                panel=int(rng.integers(2)) if i else 0,
                u=float(0.6 * (place - 1) + rng.uniform(-0.12, 0.12)),
                v=float(rng.uniform(-0.6, 0.6)),
                size=float(rng.uniform(0.18, 0.27)),
                turn=float(rng.uniform(-0.6, 0.6)),
                rgb=visible[int(rng.integers(len(visible)))],
                seed=int(rng.integers(1 << 31)),
            )
        )
    return tuple(marks)
