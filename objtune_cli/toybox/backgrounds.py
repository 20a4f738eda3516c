"""Backgrounds of the toybox, drawn from a seed at any size.

Frame: fractions of the image, (0, 0) top left. All functions paint into an (N, N, 3) uint8 array.
"""

from collections.abc import Callable

import cv2
import numpy as np

RGB = tuple[int, int, int]


class Brush:
    """A canvas of side N with a generator; coordinates in fractions of the side."""

    def __init__(self, side: int, rng: np.random.Generator) -> None:
        self.side, self.rng = side, rng
        self.image = np.zeros((side, side, 3), np.uint8)

    def px(self, fraction: float) -> int:
        return round(fraction * self.side)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return float(self.rng.uniform(low, high))

    def tint(self, rgb: RGB) -> RGB:
        r, g, b = (int(v) for v in (np.array(rgb) + self.rng.uniform(-9, 9, 3)).clip(0, 255))
        return r, g, b

    def band(self, y0: float, y1: float, top: RGB, bottom: RGB) -> None:
        """Horizontal band that fades from `top` to `bottom`."""
        a, b = self.px(y0), self.px(y1)
        t = np.linspace(0, 1, max(b - a, 1))[:, None, None]
        self.image[a:b] = (np.array(top) * (1 - t) + np.array(bottom) * t)[: b - a]

    def disc(self, x: float, y: float, r: float, rgb: RGB, thickness: int = -1) -> None:
        cv2.circle(self.image, (self.px(x), self.px(y)), max(1, self.px(r)), rgb, thickness, cv2.LINE_AA)

    def line(self, x0: float, y0: float, x1: float, y1: float, width: float, rgb: RGB) -> None:
        ends = (self.px(x0), self.px(y0)), (self.px(x1), self.px(y1))
        cv2.line(self.image, *ends, rgb, max(1, self.px(width)), cv2.LINE_AA)

    def fill(self, points: np.ndarray, rgb: RGB) -> None:
        cv2.fillPoly(self.image, [np.round(points * self.side).astype(np.int32)], rgb, cv2.LINE_AA)


def beach(b: Brush) -> None:
    h = b.uniform(0.56, 0.64)
    b.band(0, h, b.tint((112, 190, 250)), b.tint((200, 230, 250)))
    b.band(h - b.uniform(0.13, 0.18), h, b.tint((30, 110, 190)), b.tint((60, 170, 210)))
    b.band(h, 1, b.tint((242, 217, 152)), b.tint((226, 192, 122)))
    b.disc(b.uniform(0.1, 0.9), b.uniform(0.09, 0.18), 0.07, (255, 235, 120))


def snow(b: Brush) -> None:
    h = b.uniform(0.52, 0.60)
    b.band(0, h, b.tint((150, 175, 205)), b.tint((215, 225, 235)))
    b.band(h, 1, b.tint((244, 247, 250)), b.tint((222, 231, 242)))
    for _ in range(b.rng.integers(1, 4)):
        x, s, green = b.uniform(), b.uniform(0.14, 0.22), b.tint((70, 120, 100))
        b.fill(np.array([[x - s * 0.45, h + 0.03], [x, h - s], [x + s * 0.45, h + 0.03]]), green)
        b.fill(np.array([[x - s * 0.2, h - s * 0.5], [x, h - s], [x + s * 0.2, h - s * 0.5]]), (240, 245, 250))


def grass(b: Brush) -> None:
    h = b.uniform(0.48, 0.58)
    b.band(0, h, b.tint((120, 190, 250)), b.tint((190, 225, 250)))
    b.band(h, 1, b.tint((102, 182, 72)), b.tint((70, 150, 52)))
    x, y = b.uniform(0.1, 0.9), b.uniform(0.09, 0.18)
    for d in (-0.08, 0.0, 0.08):
        b.disc(x + d, y, 0.06, (250, 250, 252))
    for _ in range(8):
        b.disc(b.uniform(), b.uniform(h + 0.05, 1), 0.014, ((250, 230, 80), (250, 250, 250))[b.rng.integers(2)])


def night(b: Brush) -> None:
    h = b.uniform(0.68, 0.76)
    b.band(0, h, b.tint((16, 18, 52)), b.tint((36, 42, 98)))
    b.band(h, 1, b.tint((28, 48, 44)), b.tint((14, 27, 28)))
    for _ in range(12):
        b.disc(b.uniform(), b.uniform(0, 0.6), 0.009, (240, 240, 210))
    b.disc(b.uniform(0.1, 0.9), b.uniform(0.1, 0.18), 0.075, (245, 240, 200))


def wood(b: Brush) -> None:
    h = b.uniform(0.44, 0.54)
    b.band(0, h, b.tint((216, 206, 188)), b.tint((226, 216, 198)))
    b.band(h - 0.03, h, (245, 240, 230), (245, 240, 230))
    b.band(h, 1, b.tint((172, 118, 68)), b.tint((150, 96, 52)))
    n, shift = 5, b.uniform(-0.1, 0.1)
    for i in range(-n, 2 * n):
        near, far = 0.5 + (i / n - 0.5) * 1.6 + shift, 0.5 + (i / n - 0.5) * 0.7 + shift
        b.line(far, h, near, 1, 0.01, (108, 68, 38))
    b.line(0, h + 0.17, 1, h + 0.17, 0.01, (108, 68, 38))


def desert(b: Brush) -> None:
    h = b.uniform(0.52, 0.60)
    b.band(0, h, b.tint((250, 192, 112)), b.tint((255, 225, 170)))
    b.band(h, 1, b.tint((226, 158, 84)), b.tint((202, 128, 64)))
    b.disc(b.uniform(0.1, 0.9), b.uniform(0.1, 0.2), 0.07, (255, 246, 202))
    t = np.linspace(0, 1, 32)
    y = h + 0.03 + b.uniform(0.02, 0.05) * np.sin(5 * t + b.uniform(0, 6))
    dune = np.concatenate([np.stack([t, y], 1), [[1, 1], [0, 1]]])
    b.fill(dune, b.tint((216, 148, 78)))
    x, s, green = b.uniform(0.03, 0.97), b.uniform(0.18, 0.25), (72, 132, 62)
    b.line(x, h + 0.06, x, h - s, 0.045, green)
    b.line(x, h - s * 0.3, x + 0.08, h - s * 0.3, 0.03, green)
    b.line(x + 0.08, h - s * 0.3, x + 0.08, h - s * 0.7, 0.03, green)


def city(b: Brush) -> None:
    h = b.uniform(0.62, 0.70)
    b.band(0, h, b.tint((165, 190, 215)), b.tint((215, 215, 215)))
    b.band(h, 1, b.tint((95, 97, 102)), b.tint((75, 77, 82)))
    x = b.uniform(-0.1, 0)
    while x < 1:
        width, height = b.uniform(0.14, 0.24), b.uniform(0.2, 0.48)
        wall = b.tint(((120, 110, 125), (150, 120, 105), (105, 120, 140))[b.rng.integers(3)])
        b.fill(np.array([[x, h], [x, h - height], [x + width, h - height], [x + width, h]]), wall)
        for wy in np.arange(h - height + 0.03, h - 0.05, 0.08):
            for wx in np.arange(x + 0.025, x + width - 0.04, 0.065):
                b.line(wx, wy + 0.015, wx + 0.02, wy + 0.015, 0.03, (245, 225, 150))
        x += width + b.uniform(0, 0.02)
    for i in range(4):
        b.line(i * 0.28, (h + 1) / 2, i * 0.28 + 0.14, (h + 1) / 2, 0.02, (235, 225, 160))


def underwater(b: Brush) -> None:
    h = b.uniform(0.84, 0.9)
    b.band(0, h, b.tint((62, 172, 220)), b.tint((18, 64, 134)))
    b.band(h, 1, b.tint((190, 176, 122)), b.tint((176, 160, 108)))
    for _ in range(b.rng.integers(2, 5)):
        x, s = b.uniform(), b.uniform(0.15, 0.35)
        y = np.linspace(h + 0.03, h - s, 10)
        wave = x + 0.025 * np.sin(25 * y)
        for i in range(9):
            b.line(wave[i], y[i], wave[i + 1], y[i + 1], 0.03, (34, 134, 84))
    for _ in range(7):
        b.disc(b.uniform(), b.uniform(0, 0.8), b.uniform(0.012, 0.028), (172, 222, 242), max(1, b.px(0.008)))


SCENERY: dict[str, Callable[[Brush], None]] = {
    "beach": beach, "snow": snow, "grass": grass, "night": night,
    "wood": wood, "desert": desert, "city": city, "underwater": underwater,
}  # fmt: skip


def paint(background: str, seed: int, side: int) -> np.ndarray:
    """The background alone, (side, side, 3) uint8 RGB."""
    brush = Brush(side, np.random.default_rng(seed))
    SCENERY[background](brush)
    return brush.image
