"""What a method is handed: the same object, smaller or with a rough mask, by the amounts that are stated."""

import numpy as np
import pytest

from objtune_cli.bench import photo_variants
from objtune_cli.evaluation import benchmark_objects
from objtune_cli.evaluation.benchmark_objects import Case
from objtune_cli.toybox.world import MEDIUM

CASES = benchmark_objects.make_cases(MEDIUM, 4, 0)


def _middle(mask: np.ndarray) -> np.ndarray:
    inside = np.argwhere(mask > 127)
    return (inside.min(0) + inside.max(0)) / 2


def _size(mask: np.ndarray) -> int:
    ys, xs = (mask > 127).nonzero()
    return int(max(ys.max() - ys.min(), xs.max() - xs.min()))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_small_object_is_the_same_one_from_further_away(case: Case) -> None:
    rgb, mask = photo_variants.make_photo(case, "small")
    whole, full = case.picture()
    assert rgb.shape == whole.shape and rgb.dtype == mask.dtype == np.uint8
    assert 0.019 <= (mask / 255).mean() <= 0.051
    assert np.abs(_middle(mask) - _middle(full)).max() < 4  # it stays where it was
    outside = (mask == 0) & (full == 0)
    assert np.abs(rgb[outside].astype(int) - whole[outside]).max() <= 1  # and the scene is the same
    assert np.abs(rgb[mask > 250].mean(0) - whole[full > 250].mean(0)).max() < 12


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_rough_masks_are_wrong_by_a_twentieth_of_the_object(case: Case) -> None:
    whole, exact = case.picture()
    radius = photo_variants.ROUGH * _size(exact)
    sizes = {}
    for way in photo_variants.VARIANTS[2:]:
        rgb, mask = photo_variants.make_photo(case, way)
        assert np.array_equal(rgb, whole) and set(np.unique(mask)) == {0, 255}
        sizes[way] = _size(mask) - _size(exact)
    assert sizes["eroded"] < -radius and sizes["dilated"] == pytest.approx(2 * radius, abs=4)
    inside = exact > 127
    assert (
        not (photo_variants.make_photo(case, "eroded")[1][~inside]).any()
        and photo_variants.make_photo(case, "dilated")[1][inside].all()
    )
    noisy = photo_variants.make_photo(case, "noisy")[1] > 127
    wrong = (noisy != inside).mean() / inside.mean()
    assert 0.05 < wrong < 0.5 and noisy.mean() == pytest.approx(inside.mean(), rel=0.25)  # off both ways


def test_each_object_is_handed_out_the_same_every_time() -> None:
    for way in photo_variants.VARIANTS:
        first, again = photo_variants.make_photo(CASES[0], way), photo_variants.make_photo(CASES[0], way)
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert photo_variants.make_photo(CASES[0])[1].mean() == CASES[0].picture()[1].mean()


def test_there_is_no_other_way() -> None:
    with pytest.raises(ValueError, match="no way 'blurred'"):
        photo_variants.make_photo(CASES[0], "blurred")


def test_further_photos_show_the_object_in_other_scenes() -> None:
    case = CASES[0]
    two, four = (photo_variants.make_further_photos(case, MEDIUM, count) for count in (2, 4))
    assert all(
        np.array_equal(a, b) for one, same in zip(two, four, strict=False) for a, b in zip(one, same, strict=True)
    )
    colours = [rgb[mask > 250].mean(0) for rgb, mask in [case.picture(), *four]]
    assert max(np.abs(colour - colours[0]).max() for colour in colours) < 40
    pictures = [case.picture()[0], *(rgb for rgb, _ in four)]
    assert all(np.abs(a.astype(float) - b).mean() > 5 for i, a in enumerate(pictures) for b in pictures[:i])
