"""Views of one object: where it stands, how large it is, what is behind it."""

import pytest
import torch

from objtune_cli.numerics.augmentation import FILLS, views

RED = torch.tensor([0.8, -0.6, -0.5]).view(3, 1, 1)
BLUE = torch.tensor([-0.7, -0.2, 0.6]).view(3, 1, 1)


def _photo(
    height: int = 96, width: int = 96, box: tuple[int, int, int, int] = (30, 36, 62, 60)
) -> tuple[torch.Tensor, ...]:
    """A red rectangle (y0, x0, y1, x1) on blue; picture, mask and the blue ground."""
    y0, x0, y1, x1 = box
    mask = torch.zeros(height, width)
    mask[y0:y1, x0:x1] = 1
    ground = BLUE.expand(3, height, width).clone()
    return ground * (1 - mask) + RED * mask, mask, ground


def _views(photo: tuple[torch.Tensor, ...], count: int = 12, size: int = 64, seed: int = 0, **given: object):
    return views(*photo, count, size, torch.Generator().manual_seed(seed), **given)


PHOTOS = {
    "square": _photo(),
    "wide": _photo(60, 160, (20, 100, 44, 130)),
    "tall": _photo(200, 70, (120, 20, 180, 50)),
    "large": _photo(1000, 1400, (300, 800, 620, 1040)),
    "at the edge": _photo(96, 96, (0, 0, 40, 30)),
}


@pytest.mark.parametrize("name", PHOTOS)
def test_shapes_and_ranges(name: str) -> None:
    pictures, masks = _views(PHOTOS[name])
    assert pictures.shape == (12, 3, 64, 64) and masks.shape == (12, 1, 64, 64)
    assert float(masks.min()) >= 0 and float(masks.max()) <= 1
    assert float(pictures.min()) >= -1.0001 and float(pictures.max()) <= 1.0001
    assert bool((masks.amax(dim=(1, 2, 3)) > 0.99).all())


@pytest.mark.parametrize("name", PHOTOS)
def test_the_whole_object_lies_in_the_frame_at_the_asked_size(name: str) -> None:
    picture, mask, ground = PHOTOS[name]
    ys, xs = mask.nonzero(as_tuple=True)
    high, wide = int(ys.max() - ys.min()) + 1, int(xs.max() - xs.min()) + 1
    scale = (0.45, 0.72)
    _, masks = views(picture, mask, ground, 24, 64, torch.Generator().manual_seed(1), scale=scale)
    low, top = (high * wide * (s / max(high, wide)) ** 2 for s in scale)  # its share of the frame
    for cover in masks[1:, 0]:  # the first view is the photo itself
        assert not cover[[0, -1]].any() and not cover[:, [0, -1]].any()
        assert 0.97 * low <= float(cover.mean()) <= 1.03 * top
        rows, columns = (cover > 0.5).nonzero(as_tuple=True)
        longer = max(int(rows.max() - rows.min()), int(columns.max() - columns.min())) + 1
        # The tilt of up to 0.06 lengthens it by no more than 0.06 of the shorter side.
        assert scale[0] * 64 - 1.5 <= longer <= scale[1] * 64 * 1.06 + 1.5


@pytest.mark.parametrize("name", PHOTOS)
def test_the_object_keeps_its_colour_and_ground_stays_out_of_it(name: str) -> None:
    pictures, masks = _views(PHOTOS[name])
    for picture, mask in zip(pictures, masks, strict=True):
        core = mask[0] > 0.999
        assert core.float().mean() > 0.05
        assert (picture[:, core] - RED.view(3, 1)).abs().max() < 0.01


@pytest.mark.parametrize("name", PHOTOS)
def test_two_views_of_three_stand_on_the_photos_ground_the_third_on_one_colour(name: str) -> None:
    pictures, masks = _views(PHOTOS[name])
    for i, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
        behind = picture[:, mask[0] == 0]
        assert float(behind.std(dim=1).max()) < 1e-3  # plain, as this ground is plain too
        assert (float((behind - BLUE.view(3, 1)).abs().max()) < 1e-3) == (i % 3 != 2)


def test_edge_pixels_are_a_mixture_of_object_and_ground() -> None:
    pictures, masks = _views(_photo(), count=2)
    torch.testing.assert_close(pictures[:2], masks[:2] * RED + (1 - masks[:2]) * BLUE, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("photo", "left", "top"),
    [
        (_photo(64, 64, (10, 20, 40, 44)), 0, 0),
        (_photo(64, 160, (20, 100, 44, 130)), 83, 0),  # the object's centre is at 115: 32 to either side
        (_photo(64, 160, (20, 4, 44, 30)), 0, 0),  # not beyond the photo
        (_photo(200, 64, (150, 20, 190, 50)), 0, 136),
    ],
    ids=["square", "wide", "at its side", "tall"],
)
def test_the_first_view_is_the_photo_cut_square_around_the_object(
    photo: tuple[torch.Tensor, ...], left: int, top: int
) -> None:
    pictures, masks = _views(photo, count=1, size=64)
    cut = slice(top, top + 64), slice(left, left + 64)
    torch.testing.assert_close((masks[0, 0] > 0.5).float(), photo[1][cut])
    inner = (masks[0, 0] < 0.001) | (masks[0, 0] > 0.999)
    assert (pictures[0] - photo[0][:, cut[0], cut[1]])[:, inner].abs().max() < 0.01


@pytest.mark.parametrize("box", [(2, 10, 62, 150), (0, 0, 64, 160), (20, 30, 40, 130)])
def test_an_object_wider_than_the_square_is_shown_whole(box: tuple[int, int, int, int]) -> None:
    _, masks = _views(_photo(64, 160, box), count=1, size=64)
    ys, xs = (masks[0, 0] > 0.5).nonzero(as_tuple=True)
    wide, high = int(xs.max() - xs.min()) + 1, int(ys.max() - ys.min()) + 1
    assert wide == pytest.approx(0.95 * 64, abs=1.5)
    assert high == pytest.approx(0.95 * 64 * (box[2] - box[0]) / (box[3] - box[1]), abs=1.5)


@pytest.mark.parametrize("box", [(40, 60, 52, 70), (0, 0, 8, 6), (90, 88, 96, 96)])
def test_a_small_object_is_cut_out_larger_unless_the_photo_itself_is_wanted(box: tuple[int, int, int, int]) -> None:
    """On 2 % of the photo it would be seen by a cell or two; in several views its own placement is a closer cut of the same pixels."""
    photo = _photo(96, 96, box)
    longest = max(box[2] - box[0], box[3] - box[1])
    _, masks = _views(photo, count=3, size=64)
    ys, xs = (masks[0, 0] > 0.5).nonzero(as_tuple=True)
    assert max(int(ys.max() - ys.min()), int(xs.max() - xs.min())) + 1 == pytest.approx(FILLS * 64, abs=2)
    _, alone = _views(photo, count=1, size=64)
    ys, xs = (alone[0, 0] > 0.5).nonzero(as_tuple=True)
    assert max(int(ys.max() - ys.min()), int(xs.max() - xs.min())) + 1 == pytest.approx(longest / 96 * 64, abs=2)


def test_scale_can_be_fixed() -> None:
    photo = _photo(96, 96, (32, 32, 64, 64))  # a square: half of the frame's side is a quarter of its area
    _, masks = _views(photo, count=8, scale=(0.5, 0.5))
    torch.testing.assert_close(masks[1:].mean(dim=(1, 2, 3)), torch.full((7,), 0.25), rtol=0.02, atol=0)


def test_views_differ_and_are_drawn_from_the_generator_alone() -> None:
    first, again, other = _views(_photo()), _views(_photo()), _views(_photo(), seed=1)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    assert all(not torch.equal(first[1][i], first[1][j]) for i in range(12) for j in range(i))


def test_more_views_do_not_change_the_first_ones() -> None:
    assert torch.equal(_views(_photo(), count=4)[0], _views(_photo(), count=9)[0][:4])


def test_arguments_stay_as_they_are() -> None:
    photo = _photo()
    before = [p.clone() for p in photo]
    _views(photo, count=3)
    assert all(torch.equal(a, b) for a, b in zip(photo, before, strict=True))


def test_size_of_the_photo_does_not_matter() -> None:
    # The same scene at 1x and 10x: the large one is averaged down, not sampled at single pixels.
    small = _photo(100, 100, (30, 40, 60, 70))
    large = tuple(p.repeat_interleave(10, -1).repeat_interleave(10, -2) for p in small)
    a, b = _views(small, count=6), _views(large, count=6)
    assert (a[1] - b[1]).abs().mean() < 0.01
    assert (a[0] - b[0]).abs().mean() < 0.02


def test_fine_texture_of_a_large_photo_is_averaged_not_aliased() -> None:
    picture, mask, ground = _photo(1024, 1024, (256, 256, 768, 768))
    board = (torch.arange(1024)[:, None] + torch.arange(1024)) % 2 * 2.0 - 1
    pictures, masks = views(
        board.expand(3, -1, -1) * mask + picture * (1 - mask), mask, ground, 4, 64, torch.Generator().manual_seed(0)
    )
    for shown, cover in zip(pictures, masks, strict=True):
        assert shown[:, cover[0] > 0.999].abs().max() < 0.05  # a checkerboard of pixels averages to 0


def test_an_empty_mask_is_refused() -> None:
    picture, mask, ground = _photo()
    with pytest.raises(ValueError, match="empty"):
        views(picture, torch.zeros_like(mask), ground, 1, 32, torch.Generator())
