"""Our nms against its definition, and torchvision's callers on this machine."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from objtune_cli.runtime import torchvision_compat

CORNERS = st.integers(0, 8)
BOXES = st.lists(st.tuples(CORNERS, CORNERS, st.integers(1, 5), st.integers(1, 5), st.integers(0, 4)), max_size=14)
"""x, y, width, height, score: on a small grid, so that equal boxes, touching boxes and ties occur."""


def _iou(a: tuple[int, ...], b: tuple[int, ...]) -> Fraction:
    wide = max(0, min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]))
    high = max(0, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))
    return Fraction(wide * high, a[2] * a[3] + b[2] * b[3] - wide * high)


def _by_definition(boxes: list[tuple[int, ...]], threshold: Fraction) -> list[int]:
    """Kept: no box kept before it (better score, or equal and earlier) overlaps it by more than the threshold."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-boxes[i][4], i)):
        if all(_iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def _tensors(boxes: list[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
    corners = torch.tensor([[x, y, x + w, y + h] for x, y, w, h, _ in boxes], dtype=torch.float32).reshape(-1, 4)
    return corners, torch.tensor([b[4] for b in boxes], dtype=torch.float32)


@given(BOXES, st.sampled_from([Fraction(0), Fraction(1, 4), Fraction(1, 2), Fraction(3, 4), Fraction(1)]))
@settings(deadline=None, max_examples=150)
def test_nms_is_its_definition(boxes: list[tuple[int, ...]], threshold: Fraction) -> None:
    kept = torchvision_compat.nms(*_tensors(boxes), float(threshold))
    assert kept.dtype == torch.int64
    assert kept.tolist() == _by_definition(boxes, threshold)


def test_nms_on_many_boxes_of_any_place_and_size() -> None:
    g = torch.Generator().manual_seed(0)
    whole = torch.randint(0, 200, (150, 5), generator=g)
    boxes = [(int(x), int(y), int(w) % 60 + 1, int(h) % 60 + 1, int(s)) for x, y, w, h, s in whole]
    kept = torchvision_compat.nms(*_tensors(boxes), 0.25).tolist()
    assert kept == _by_definition(boxes, Fraction(1, 4))
    assert 0 < len(kept) < 150


def test_a_chain_keeps_its_ends() -> None:
    # The middle box overlaps both others; it is gone before it could suppress the last one.
    boxes = [(0, 0, 4, 1, 3), (2, 0, 4, 1, 2), (4, 0, 4, 1, 1)]
    assert torchvision_compat.nms(*_tensors(boxes), 0.25).tolist() == [0, 2]


def test_nothing_in_nothing_out() -> None:
    kept = torchvision_compat.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert kept.shape == (0,) and kept.dtype == torch.int64


def test_boxes_without_area_do_not_suppress() -> None:
    assert torchvision_compat.nms(
        torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1]]), torch.tensor([1.0, 2.0]), 0.5
    ).tolist() == [1, 0]


def test_torchvision_imports_and_its_callers_run() -> None:
    torchvision_compat.complete()
    import torchvision
    from torchvision.ops import boxes

    corners, scores = _tensors([(0, 0, 4, 4, 3), (0, 0, 4, 4, 2), (5, 5, 2, 2, 1)])
    assert boxes.batched_nms(corners, scores, torch.zeros(3, dtype=torch.int64), 0.5).tolist() == [0, 2]
    assert boxes.batched_nms(corners, scores, torch.tensor([0, 1, 0]), 0.5).tolist() == [
        0,
        1,
        2,
    ]  # classes do not compete
    assert torchvision.ops.nms(corners, scores, 0.5).tolist() == [0, 2]
    assert torch.ops.torchvision.nms(corners, scores, 0.5).tolist() == [0, 2]


def test_completing_twice_says_the_same_and_declares_nothing_again() -> None:
    first = torchvision_compat.complete()
    declared = len(torchvision_compat._declared)
    assert torchvision_compat.complete() is first
    assert len(torchvision_compat._declared) == declared == int(first)


def test_without_torchvision_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_compat.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torchvision_compat, "_declared", [])
    assert torchvision_compat.complete() is False
    assert torchvision_compat._declared == []
