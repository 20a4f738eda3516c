"""Boxes, crops, latent resolution and regions against squares that can be computed by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from objtune_cli.numerics.masks import bounding_box, crop, region, to_latent


def _square(height: int, width: int, y0: int, x0: int, y1: int, x1: int, value: float = 1.0) -> torch.Tensor:
    mask = torch.zeros(height, width)
    mask[y0:y1, x0:x1] = value
    return mask


def test_bounding_box_in_fractions() -> None:
    assert bounding_box(_square(10, 20, 2, 5, 7, 15)) == (0.25, 0.2, 0.75, 0.7)


@given(st.integers(0, 6), st.integers(0, 8), st.integers(1, 7), st.integers(1, 9))
@settings(deadline=None, max_examples=40)
def test_bounding_box_finds_any_rectangle(y: int, x: int, high: int, wide: int) -> None:
    y1, x1 = min(y + high, 7), min(x + wide, 9)
    assert bounding_box(_square(7, 9, y, x, y1, x1) if y < 7 and x < 9 else torch.ones(7, 9)) == (
        (x / 9, y / 7, x1 / 9, y1 / 7) if y < 7 and x < 9 else (0, 0, 1, 1)
    )


def test_bounding_box_of_one_cell_and_of_the_whole_frame() -> None:
    assert bounding_box(_square(4, 4, 3, 0, 4, 1)) == (0, 0.75, 0.25, 1)
    assert bounding_box(torch.ones(3, 5)) == (0, 0, 1, 1)


def test_the_threshold_is_strict() -> None:
    mask = torch.tensor([[0.5, 0.6, 0.5]])
    assert bounding_box(mask) == (1 / 3, 0, 2 / 3, 1)
    assert bounding_box(mask, 0.4) == (0, 0, 1, 1)


def test_an_empty_mask_has_no_box() -> None:
    with pytest.raises(ValueError, match="empty"):
        bounding_box(torch.full((4, 4), 0.5))


@pytest.mark.parametrize(("size", "cells"), [((8, 8), (2, 2)), ((30, 50), (7, 9)), ((64, 48), (8, 6))])
def test_to_latent_keeps_the_area(size: tuple[int, int], cells: tuple[int, int]) -> None:
    mask = torch.rand(3, 1, *size, generator=torch.Generator().manual_seed(0))
    small = to_latent(mask, cells)
    assert small.shape == (3, 1, *cells)
    assert float(small.min()) >= 0 and float(small.max()) <= 1
    exact = size[0] % cells[0] == 0 and size[1] % cells[1] == 0
    torch.testing.assert_close(small.mean(dim=(2, 3)), mask.mean(dim=(2, 3)), rtol=0, atol=1e-6 if exact else 0.02)


def test_to_latent_of_known_cells() -> None:
    mask = _square(4, 4, 0, 0, 2, 3)[None, None]
    assert to_latent(mask, (2, 2)).tolist() == [[[[1.0, 0.5], [0.0, 0.0]]]]


def test_region_inside_border_outside() -> None:
    # 100 cells a side; the fall of width 0.2 lies from 0.1 before the border to 0.1 behind it.
    cells = region((0.305, 0.305, 0.705, 0.705), (100, 100), edge=0.2)
    assert cells.shape == (100, 100)
    assert cells[50, 50] == 1
    assert cells[50, 41] == 1 and cells[50, 19] == 0  # centres at 0.415 and 0.195
    torch.testing.assert_close(cells[50, 30], torch.tensor(0.5))  # centre at 0.305: on the border
    torch.testing.assert_close(cells[50, 35], torch.tensor(0.75))  # 0.05 of 0.2 inside
    torch.testing.assert_close(cells[50, 25], torch.tensor(0.25))
    torch.testing.assert_close(cells, cells.T)


def test_region_covers_its_box_where_it_is_wide() -> None:
    cells = region((0.2, 0.1, 0.8, 0.6), (200, 100), edge=0.06)
    assert abs(float(cells.mean()) - 0.6 * 0.5) < 0.01  # half of the fall is outside, half inside
    assert float(cells.min()) >= 0 and float(cells.max()) == 1


def test_region_without_softness_is_the_rectangle() -> None:
    cells = region((0.25, 0.5, 0.75, 1.0), (4, 8), edge=0)
    assert torch.equal(cells, _square(4, 8, 2, 2, 4, 6))


def test_crop_of_a_square_fills_the_frame_but_for_the_margin() -> None:
    # A 20 px square with a margin of a quarter: 25 px of the photo become 100 px, so that the square
    # covers 80 px, from 10 to 90.
    mask = _square(60, 80, 10, 30, 30, 50)
    picture = torch.tensor([0.9, 0.1, 0.2]).view(3, 1, 1).expand(3, 60, 80)
    fill = torch.tensor([0.5, 0.4, 0.3])
    alone = crop(picture, mask, fill, size=100, margin=0.25)
    assert alone.shape == (3, 100, 100)
    on = (alone - fill.view(3, 1, 1)).abs().amax(0) > 0.2
    ys, xs = on.nonzero(as_tuple=True)
    assert (int(ys.min()), int(ys.max()) + 1, int(xs.min()), int(xs.max()) + 1) == (10, 90, 10, 90)
    torch.testing.assert_close(alone[:, 50, 50], torch.tensor([0.9, 0.1, 0.2]))
    torch.testing.assert_close(alone[:, 2, 2], fill)
    torch.testing.assert_close(alone[:, 97, 50], fill)


def test_crop_keeps_the_shape_of_a_flat_object() -> None:
    mask = _square(60, 80, 25, 20, 35, 60)  # 40 x 10
    alone = crop(torch.ones(3, 60, 80), mask, torch.zeros(3), size=80, margin=0.0)
    ys, xs = (alone[0] > 0.5).nonzero(as_tuple=True)
    assert (int(ys.max()) + 1 - int(ys.min()), int(xs.max()) + 1 - int(xs.min())) == (20, 80)


def test_crop_at_the_frame_shows_the_fill_beyond_it() -> None:
    mask = _square(40, 40, 0, 0, 10, 40)
    alone = crop(torch.ones(3, 40, 40), mask, torch.full((3,), 0.25), size=40, margin=0.0)
    torch.testing.assert_close(alone[:, 1, 20], torch.full((3,), 0.25))  # above the photo
    torch.testing.assert_close(alone[:, 20, 20], torch.ones(3))


def test_crop_of_a_faint_mask_uses_its_own_scale() -> None:
    faint, strong = (_square(40, 40, 10, 10, 30, 30, v) for v in (0.2, 1.0))
    picture = torch.ones(3, 40, 40)
    half = crop(picture, faint, torch.zeros(3), 40)
    torch.testing.assert_close(half, 0.2 * crop(picture, strong, torch.zeros(3), 40))


def test_arguments_stay_as_they_are() -> None:
    picture, mask = torch.rand(3, 20, 20), _square(20, 20, 5, 5, 15, 15)
    before = picture.clone(), mask.clone()
    crop(picture, mask, torch.zeros(3), 16)
    to_latent(mask[None, None], (4, 4))
    bounding_box(mask)
    assert torch.equal(picture, before[0]) and torch.equal(mask, before[1])
