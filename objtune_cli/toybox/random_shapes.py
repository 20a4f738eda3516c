"""Images of random textured shapes on random textures, for the training of the segmenter.

An object is any connected shape with one texture; there are no classes or words.
"""

import cv2
import numpy as np


def sample_picture(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """An image (size, size, 3) uint8 and the visible mask (size, size) uint8 of each of one to four shapes."""
    image = texture(rng, size)
    covers: list[np.ndarray] = []
    for _ in range(int(rng.integers(1, 5))):
        cover = outline(rng, size)
        coat = shade(texture(rng, size), cover, rng)
        if rng.random() < 0.35:
            image = _shadow(image, cover, rng)
        share = cover[..., None] / 255.0
        image = (image * (1 - share) + coat * share).astype(np.uint8)
        covers = [(older * (1 - cover / 255.0)).astype(np.uint8) for older in covers] + [cover]
    return image, covers


def outline(rng: np.random.Generator, size: int) -> np.ndarray:
    """One shape's coverage (size, size) uint8: a smooth blob, a polygon, or one with arms or a hole."""
    side = 3 * size
    count = 96
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    radius = np.ones(count)
    kind = rng.random()
    if kind < 0.5:
        for k in range(1, 6):
            radius += rng.normal(0, 0.22 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    elif kind < 0.8:
        corners = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
        spread = rng.uniform(0.5, 1.2, len(corners))
        points = np.stack([np.cos(corners), np.sin(corners)], 1) * spread[:, None]
    else:
        arms = int(rng.integers(3, 7))
        radius += rng.uniform(0.25, 0.6) * np.sign(np.cos(arms * angle + rng.uniform(0, 6)))
    if not 0.5 <= kind < 0.8:
        points = np.stack([np.cos(angle), np.sin(angle)], 1) * radius.clip(0.15)[:, None]
    points = points * [1, rng.uniform(0.4, 1)]
    turn = rng.uniform(0, 2 * np.pi)
    points = points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    extent = np.exp(rng.uniform(np.log(0.06), np.log(0.42))) * side
    points = points / np.abs(points).max() * extent + rng.uniform(0.1, 0.9, 2) * side
    cover = np.zeros((side, side), np.uint8)
    cv2.fillPoly(cover, [np.round(points).astype(np.int32)], 255)
    if rng.random() < 0.15:
        cv2.circle(cover, tuple(int(v) for v in points.mean(0)), max(2, int(extent * rng.uniform(0.15, 0.4))), 0, -1)
    return cv2.resize(cover, (size, size), interpolation=cv2.INTER_AREA)


def texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """A frame (size, size, 3) uint8 of one texture: plain, a gradient, noise, stripes, spots or checks."""
    first, second = rng.uniform(0, 255, (2, 3))
    if rng.random() < 0.5:  # many objects differ from their surroundings more in brightness than in colour
        second = (first + rng.normal(0, 50)).clip(0, 255)
    y, x = np.mgrid[:size, :size] / size
    turn = rng.uniform(0, np.pi)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    kind, grain = rng.integers(6), np.exp(rng.uniform(np.log(4), np.log(40)))
    if kind == 0:
        share = np.zeros((size, size))
    elif kind == 1:
        share = (along - along.min()) / np.ptp(along)
    elif kind == 2:
        share = _noise(rng, size, grain)
    elif kind == 3:
        share = (np.sin(along * grain * 2) > rng.uniform(-0.6, 0.6)).astype(float)
    elif kind == 4:
        share = ((np.sin(along * grain * 2) * np.sin(across * grain * 2)) > rng.uniform(0.1, 0.7)).astype(float)
    else:
        share = _noise(rng, size, grain) + 0.5 * _noise(rng, size, 3 * grain)
    out = first + (second - first) * share[..., None]
    coat: np.ndarray = (out + rng.normal(0, rng.uniform(0, 9), (size, size, 1))).clip(0, 255).astype(np.uint8)
    return coat


def shade(coat: np.ndarray, cover: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light a texture from one side."""
    if rng.random() < 0.5:
        return coat
    size = len(coat)
    y, x = np.mgrid[:size, :size] / size
    turn, much = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 1.2)
    ys, xs = cover.nonzero() if cover.any() else (np.array([size / 2]), np.array([size / 2]))
    light = 1 + much * ((x - xs.mean() / size) * np.cos(turn) + (y - ys.mean() / size) * np.sin(turn))
    shaded: np.ndarray = (coat * light[..., None]).clip(0, 255).astype(np.uint8)
    return shaded


def _shadow(image: np.ndarray, cover: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size = len(image)
    soft = cv2.GaussianBlur(cover, (0, 0), size * rng.uniform(0.01, 0.05))
    moved = np.roll(soft, tuple(int(v) for v in rng.integers(-size // 16, size // 16 + 1, 2)), (0, 1))
    shadowed: np.ndarray = (image * (1 - rng.uniform(0.2, 0.7) * moved[..., None] / 255.0)).astype(np.uint8)
    return shadowed


def _noise(rng: np.random.Generator, size: int, cells: float) -> np.ndarray:
    """Smooth noise in [0, 1] of about `cells` bumps along a side."""
    coarse = rng.uniform(0, 1, (max(2, round(cells)),) * 2).astype(np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC).clip(0, 1)
