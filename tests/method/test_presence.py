"""The leakage matrix on pictures whose content is known."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from objtune_cli.method import presence
from objtune_cli.method.presence import PRESENT, Check, Seen, framed

RED, BLUE, GREY = (torch.tensor(c).view(3, 1, 1) for c in ((0.9, 0.1, 0.1), (0.1, 0.1, 0.9), (0.5, 0.5, 0.5)))
LEFT, RIGHT = (0.0, 0.2, 0.5, 0.8), (0.5, 0.2, 1.0, 0.8)


class Colours:
    """An image tower that sees the mean colour, away from grey."""

    size = 16

    def pictures(self, pictures: Tensor) -> Tensor:
        return F.normalize(pictures.mean((2, 3)) - 0.45 + 1e-3, dim=1)


class Perfect:
    """A base whose autoencoder loses nothing."""

    size = 32

    def to_latent(self, pictures: Tensor) -> Tensor:
        return pictures

    def to_picture(self, latents: Tensor) -> Tensor:
        return latents


def _seen(name: str, colour: Tensor, plain: bool = True) -> Seen:
    mask = torch.zeros(32, 32)
    mask[8:24, 8:24] = 1
    ordinary = (GREY + torch.tensor([0.1, 0.3, 0.1]).view(3, 1, 1)).expand(2, 3, 32, 32)
    return Seen(name, GREY * (1 - mask) + colour * mask, mask, ordinary if plain else None)


def _scene(left: Tensor, right: Tensor) -> Tensor:
    picture = GREY.expand(3, 32, 32).clone()
    picture[:, 8:24, 2:14], picture[:, 8:24, 18:30] = left, right
    return picture * 2 - 1


@pytest.fixture
def check() -> Check:
    return Check(Perfect(), Colours(), [_seen("rex", RED), _seen("cup", BLUE)])  # type: ignore[arg-type]


def test_the_matrix_says_what_stands_where(check: Check) -> None:
    right, swapped, twice = check.matrices(torch.stack([_scene(RED, BLUE), _scene(BLUE, RED), _scene(RED, RED)]), [LEFT, RIGHT])
    assert right.diagonal().min() > 0.8 and right[0, 1] < 0 and right[1, 0] < 0
    assert swapped.diagonal().max() < 0 and min(swapped[0, 1], swapped[1, 0]) > 0.8
    assert presence.wrong(right) == [] and presence.margin(right) > 0
    assert presence.wrong(swapped) == [0, 1] and presence.wrong(twice) == [1]
    assert presence.margin(swapped) < 0 and presence.margin(twice) < 0


def test_0_is_the_class_and_1_the_photos_object(check: Check) -> None:
    seen = _seen("rex", RED)
    assert seen.plain is not None
    ordinary = check.matrices(seen.plain * 2 - 1, [presence.MIDDLE, presence.MIDDLE])
    assert ordinary.abs().max() < 1e-4
    own = check.matrices((seen.picture * 2 - 1)[None], [(0.25 - 0.0375, 0.25 - 0.0375, 0.75 + 0.0375, 0.75 + 0.0375)] * 2)
    assert own[0, 0, 0] == pytest.approx(1, abs=0.02)


def test_without_pictures_of_the_class_the_others_are_zero() -> None:
    check = Check(Perfect(), Colours(), [_seen("rex", RED, False), _seen("cup", BLUE, False)])  # type: ignore[arg-type]
    matrix = check.matrices(_scene(RED, BLUE)[None], [LEFT, RIGHT])[0]
    assert matrix.diagonal().min() > 0.8 and abs(matrix[0, 1]) < 0.3
    alone = Check(Perfect(), Colours(), [_seen("rex", RED, False)])  # type: ignore[arg-type]
    assert float(alone.zero) == 0 and presence.wrong(alone.matrices(_scene(RED, BLUE)[None], [LEFT])[0]) == []


def test_the_least_clear_object_decides() -> None:
    """Margins: min(0.9 - PRESENT, 0.9 - 0.2) and min(0.5 - PRESENT, 0.5 - 0.4)."""
    matrix = torch.tensor([[0.9, 0.2], [0.4, 0.5]])
    assert presence.margin(matrix) == pytest.approx(0.1)
    assert presence.wrong(torch.tensor([[PRESENT, -1.0], [-1.0, 0.9]])) == [0]
    assert presence.wrong(torch.tensor([[0.9, -1.0], [0.95, 0.9]])) == [1]


def test_a_frame_around_a_box_goes_on_beyond_the_picture() -> None:
    picture = torch.zeros(1, 3, 20, 40)
    picture[..., :10, :10] = 1
    found = framed(picture, (0.0, 0.0, 0.25, 0.5), 10)  # 10 x 10 px
    assert found.shape == (1, 3, 10, 10) and torch.allclose(found, torch.ones_like(found), atol=1e-4)
    tall = framed(picture, (0.0, 0.0, 0.25, 1.0), 20)  # 20 px high: 5 px more to each side
    assert torch.allclose(tall[0, 0, 2], torch.tensor([1.0] * 15 + [0.0] * 5), atol=1e-4)
