"""Distances of distributions and edges, in closed form."""

import numpy as np
import pytest

from objtune_cli.evaluation.image_quality import edge_contrast, frechet_distance


def _with_moments(mean: np.ndarray, cov: np.ndarray, rows: int = 40, seed: int = 0) -> np.ndarray:
    """Rows whose mean and covariance are exactly these."""
    x = np.random.default_rng(seed).normal(size=(rows, len(mean)))
    x -= x.mean(0)
    white = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return mean + white @ np.linalg.cholesky(cov).T


def test_of_diagonal_normals() -> None:
    """|m - n|^2 + sum (s - t)^2 for standard deviations s and t."""
    a = _with_moments(np.array([1.0, 2.0]), np.diag([4.0, 9.0]))
    b = _with_moments(np.array([0.0, 5.0]), np.diag([1.0, 25.0]), seed=1)
    assert frechet_distance(a, b) == pytest.approx(1 + 9 + 1 + 4)
    assert frechet_distance(b, a) == pytest.approx(15) and frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_of_correlated_normals_equals_the_general_formula() -> None:
    c, d = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 3.0]])
    roots = np.sqrt(np.linalg.eigvals(c @ d).real).sum()
    a, b = _with_moments(np.zeros(2), c), _with_moments(np.zeros(2), d, seed=1)
    assert frechet_distance(a, b) == pytest.approx(np.trace(c + d) - 2 * roots)


def test_of_fewer_rows_than_dimensions_is_a_number() -> None:
    g = np.random.default_rng(0)
    assert np.isfinite(frechet_distance(g.normal(size=(3, 10)), g.normal(size=(4, 10))))
    with pytest.raises(ValueError, match="two rows"):
        frechet_distance(g.normal(size=(1, 10)), g.normal(size=(4, 10)))


def test_contrast_of_edges() -> None:
    """A checkerboard of 0 and 100 differs from its block means by 50; blocks of one colour have none."""
    board = np.indices((4, 4)).sum(0) % 2 * 100
    blocks = np.kron(np.array([[0, 100], [100, 0]]), np.ones((2, 2)))
    images = np.stack([board, blocks])[..., None].repeat(3, -1).astype(np.uint8)
    np.testing.assert_allclose(edge_contrast(images), [50, 0])
