"""Quality of sets of images: the Fréchet distance of their features, and the sharpness of their edges."""

import numpy as np


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Fréchet distance of normal distributions fitted to two sets of features, (N, d) and (M, d).

    |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a^1/2 cov_b cov_a^1/2)^1/2), at least 0. Source: arXiv:1706.08500, eq. 6.

    Raises:
        ValueError: A set has fewer than two rows.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError("a covariance needs two rows")
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    difference = a.mean(0) - b.mean(0)
    cov_a, cov_b = np.cov(a, rowvar=False).reshape(a.shape[1], -1), np.cov(b, rowvar=False).reshape(b.shape[1], -1)
    root = _square_root(cov_a)
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return max(0.0, float(difference @ difference + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


def _square_root(matrix: np.ndarray) -> np.ndarray:
    """Square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    root: np.ndarray = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return root


def edge_contrast(images: np.ndarray) -> np.ndarray:
    """Mean absolute difference of each image (N, H, W, 3) to its 2x2 block means, (N,), in [0, 255]; H and W are even."""
    x = np.asarray(images, np.float32)
    rows, height, width, channels = x.shape
    blocks = x.reshape(rows, height // 2, 2, width // 2, 2, channels)
    contrast: np.ndarray = np.abs(blocks - blocks.mean((2, 4), keepdims=True)).mean((1, 2, 3, 4, 5))
    return contrast
