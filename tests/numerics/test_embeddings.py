"""The prototype, L_PE and the shell on which token rows live."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from objtune_cli.numerics.embeddings import cosine_loss, keep_norm, prototype

ANGLES = st.floats(-math.pi, math.pi)


def _unit(angle: float) -> torch.Tensor:
    return torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)


def test_prototype_of_one_vector_is_that_vector() -> None:
    torch.testing.assert_close(prototype([_unit(0.4)]), _unit(0.4))


def test_prototype_of_two_is_the_bisector() -> None:
    torch.testing.assert_close(prototype([_unit(0.2), _unit(1.0)]), _unit(0.6))


def test_prototype_leans_to_what_weighs_more() -> None:
    a, b = _unit(0.0), _unit(math.pi / 2)
    torch.testing.assert_close(prototype([a, b], (3, 0)), a)
    torch.testing.assert_close(prototype([a, b], (1, math.sqrt(3))), _unit(math.pi / 3))  # tan 60 = sqrt 3
    torch.testing.assert_close(prototype([a, b], (2, 2)), prototype([a, b]))


@pytest.mark.parametrize("weights", [(1.0,), (0.0, 0.0), (1.0, -1.0)])
def test_prototype_of_weights_that_do_not_fit(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="weights"):
        prototype([_unit(0.0), _unit(1.0)], weights)


@given(ANGLES, st.floats(0, 1.5), st.integers(2, 5))
@settings(deadline=None, max_examples=60)
def test_prototype_is_a_unit_vector_whatever_the_order(angle: float, spread: float, count: int) -> None:
    vectors = [_unit(angle + spread * i / count) for i in range(count)]
    p = prototype(vectors)
    assert math.isclose(float(p.norm()), 1, rel_tol=1e-9)
    torch.testing.assert_close(prototype(vectors[::-1]), p)
    torch.testing.assert_close(p, _unit(angle + spread * (count - 1) / count / 2))  # evenly spread: the middle


@given(ANGLES, ANGLES, st.floats(0.01, 100))
@settings(deadline=None, max_examples=60)
def test_cosine_loss_is_one_minus_the_cosine_of_the_angle(a: float, b: float, length: float) -> None:
    loss = float(cosine_loss(length * _unit(a), _unit(b)))
    assert math.isclose(loss, 1 - math.cos(a - b), abs_tol=1e-9)


def test_cosine_loss_at_its_ends() -> None:
    assert float(cosine_loss(_unit(0.3), _unit(0.3))) == pytest.approx(0, abs=1e-12)
    assert float(cosine_loss(_unit(0.3), _unit(0.3 + math.pi / 2))) == pytest.approx(1)
    assert float(cosine_loss(_unit(0.3), _unit(0.3 + math.pi))) == pytest.approx(2)


def test_cosine_loss_row_by_row() -> None:
    rows = torch.stack([_unit(0.0), _unit(math.pi / 2)])
    torch.testing.assert_close(cosine_loss(rows, _unit(0.0)[None]), torch.tensor([0.0, 1.0], dtype=torch.float64))


def test_cosine_loss_passes_gradcheck() -> None:
    g = torch.Generator().manual_seed(0)
    vector = torch.randn(3, 8, generator=g, dtype=torch.float64).requires_grad_()
    aim = torch.randn(3, 8, generator=g, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: cosine_loss(x, aim), (vector,))


def test_gradient_is_at_right_angles_to_the_vector() -> None:
    vector = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    cosine_loss(vector, _unit(2.0)).backward()
    assert float(vector.detach() @ vector.grad) == pytest.approx(0, abs=1e-12)  # length alone changes nothing


@given(st.integers(1, 4), st.integers(1, 6), st.floats(0.01, 50), st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_keep_norm_keeps_direction_and_sets_length(k: int, d: int, norm: float, seed: int) -> None:
    rows = torch.randn(k, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kept = keep_norm(rows, torch.tensor(norm, dtype=torch.float64))
    torch.testing.assert_close(kept.norm(dim=1), torch.full((k,), norm, dtype=torch.float64))
    torch.testing.assert_close(kept / norm, rows / rows.norm(dim=1, keepdim=True))


def test_keep_norm_with_a_length_for_each_row() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    kept = keep_norm(rows, torch.tensor([10.0, 1.0]))
    torch.testing.assert_close(kept, torch.tensor([[6.0, 8.0], [0.0, 1.0]]))
    assert torch.equal(rows, torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
