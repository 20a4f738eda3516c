"""The leakage matrix: exact where predictions are known, and on every family of bases."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from objtune_cli.composition import presence
from objtune_cli.composition.presence import MIN_LIKENESS, NOISE_LEVELS, PresenceCheck, SceneObject, crop_to_box
from objtune_cli.errors import NonFiniteError
from objtune_cli.lora import layers
from objtune_cli.models import loading
from objtune_cli.models.conditioning import Conditioning
from objtune_cli.models.placeholders import Placeholders, class_token_embeddings
from tests.support import tiny_families

RED, BLUE, GREEN, GREY = (
    torch.tensor(c).view(3, 1, 1) for c in ((0.8, -0.8, -0.8), (-0.8, -0.8, 0.8), (-0.2, 0.4, -0.2), (0.0, 0.0, 0.0))
)
LEFT, RIGHT = (0.0, 0.2, 0.5, 0.8), (0.5, 0.2, 1.0, 0.8)


class Colours:
    """A base that is asked for the clean picture and says one colour everywhere: green of any class, of an object what acts."""

    resolution, num_train_timesteps, device, dtype = 32, 1000, torch.device("cpu"), torch.float32
    acting: Tensor | None = None
    asked: list[float]

    def encode_image(self, pictures: Tensor) -> Tensor:
        return pictures

    def add_noise_and_target(self, z: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return z + eps, z

    def encode_prompt(self, texts: list[str]) -> Conditioning:
        return Conditioning(torch.zeros(1, 1, 1) if texts == ["a thing"] else torch.ones(1, 1, 1))

    def predict(self, z_t: Tensor, t: Tensor, words: Conditioning) -> Tensor:
        assert z_t.shape[-2:] == (32, 32) and len(words) == len(t) == len(z_t)
        assert (self.acting is None) == (not words.sequence.any())
        return (GREEN if self.acting is None else self.acting).expand_as(z_t)


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> PresenceCheck:
    @contextlib.contextmanager
    def alone(model: Colours, weights: Mapping[str, Tensor]) -> Iterator[None]:
        model.acting = weights["colour"]
        yield
        model.acting = None

    monkeypatch.setattr(presence, "single_lora", alone)
    return PresenceCheck(
        Colours(),
        [
            SceneObject("rex", {"colour": RED}, "<rex>", "a thing"),
            SceneObject("cup", {"colour": BLUE}, "<cup>", "a thing"),
        ],
    )  # type: ignore[arg-type]


def _scene(left: Tensor, right: Tensor) -> Tensor:
    picture = GREY.expand(3, 40, 40).clone()
    picture[..., :20], picture[..., 20:] = left, right
    return picture


def test_the_matrix_says_what_stands_where(check: PresenceCheck) -> None:
    right, swapped, twice = check.matrices(
        torch.stack([_scene(RED, BLUE), _scene(BLUE, RED), _scene(RED, RED)]), [LEFT, RIGHT]
    )
    assert presence.failed_objects(right) == [] and presence.margin(right) > 0
    assert presence.failed_objects(swapped) == [0, 1] and presence.failed_objects(twice) == [1]
    assert presence.margin(swapped) < 0 and presence.margin(twice) < 0


def test_an_object_that_is_there_twice_is_no_other_object(check: PresenceCheck) -> None:
    matrix = torch.tensor([[0.9, 0.9, 0.1], [0.8, 0.8, 0.1], [0.7, 0.6, 0.65]])
    assert presence.failed_objects(matrix) == [0, 1, 2]
    assert presence.failed_objects(matrix, ["rex", "rex", "cup"]) == [2]
    assert presence.margin(matrix[:2, :2], ["rex", "rex"]) == pytest.approx(0.8 - presence.MIN_LIKENESS)


@pytest.mark.parametrize("share", [-0.5, 0.0, 0.3, 1.0, 1.1])
def test_a_likeness_is_the_share_of_the_way_from_the_class_to_the_object(check: PresenceCheck, share: float) -> None:
    """And of anything else the part along that way: of blue, cos at green between red and blue."""
    colour = GREEN + share * (RED - GREEN)
    small = (0.1, 0.3, 0.4, 0.6)  # inside the left half, with all its room
    matrix = check.matrices(_scene(colour, colour)[None], [small, small])[0]
    along = float(((colour - GREEN) * (BLUE - GREEN)).sum() / (BLUE - GREEN).square().sum())
    torch.testing.assert_close(matrix, torch.tensor([[share, along]] * 2), rtol=1e-4, atol=1e-4)


def test_only_what_is_inside_the_place_counts(check: PresenceCheck) -> None:
    picture = _scene(BLUE, BLUE)
    picture[:, 12:28, 2:18] = RED  # the place (0.05, 0.3, 0.45, 0.7) and nothing around it
    place = (0.05, 0.3, 0.45, 0.7)
    found, wide = (check.matrices(picture[None], [box, box])[0, 0] for box in (place, (0.0, 0.0, 1.0, 1.0)))
    assert float(found[0]) > 0.9 > float(wide[0]) + 0.5


def test_an_adapter_that_says_what_the_base_says_is_not_there(check: PresenceCheck) -> None:
    check.objects[0] = SceneObject("rex", {"colour": GREEN}, "<rex>", "a thing")
    assert presence.failed_objects(check.matrices(_scene(RED, BLUE)[None], [LEFT, RIGHT])[0]) == [0]


def test_an_adapter_that_gives_no_numbers_is_named(check: PresenceCheck) -> None:
    check.objects[1] = SceneObject("cup", {"colour": GREEN * float("nan")}, "<cup>", "a thing")
    with pytest.raises(NonFiniteError, match="the adapter of <cup> gives NaN or infinite values") as caught:
        check.matrices(_scene(RED, BLUE)[None], [LEFT, RIGHT])
    assert not caught.value.of_base


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3"])
def test_every_family_is_looked_at_and_left_as_it_was(tmp_path: Path, name: str) -> None:
    """No image tower and no photo; a picture's row is the same alone and beside another."""
    model = loading.load(tiny_families.folders(tmp_path, (name,))[name], torch.device("cpu"), torch.float32)
    words, objects = Placeholders(model), []
    layers.add(model, 2, "attention", seed=0)
    for i, own in enumerate(("rex", "cup")):
        g = torch.Generator().manual_seed(i)
        rows = class_token_embeddings(model, "dog")
        words.add(own, rows + torch.randn(rows.shape, generator=g), "dog")
        weights = {k: torch.randn(v.shape, generator=g) * 0.3 for k, v in layers.state_dict(model).items()}
        objects.append(SceneObject(own, weights, words.expand(f"a photo of <{own}>"), "a photo of a dog"))
    layers.set_active(model, [])
    z, t = torch.randn(1, model.denoiser.config.in_channels, 8, 8), torch.tensor([500])
    with torch.no_grad():
        before = model.predict(z, t, model.encode_prompt(["a dog"]))
    pictures = torch.rand(2, 3, model.resolution, model.resolution, generator=torch.Generator().manual_seed(0)) * 2 - 1
    matrices = PresenceCheck(model, objects).matrices(pictures, [LEFT, RIGHT])
    assert (
        matrices.shape == (2, 2, 2) and matrices.isfinite().all() and len({float(v) for v in matrices.flatten()}) == 8
    )
    torch.testing.assert_close(
        PresenceCheck(model, objects).matrices(pictures[1:], [LEFT, RIGHT])[0], matrices[1], rtol=1e-3, atol=1e-3
    )
    with torch.no_grad():
        assert torch.equal(model.predict(z, t, model.encode_prompt(["a dog"])), before)
    assert all(0 < level < 1 for level in NOISE_LEVELS)


def test_the_least_clear_object_decides() -> None:
    """Margins: min(0.9 - PRESENT, 0.9 - 0.2) and min(0.5 - PRESENT, 0.5 - 0.4)."""
    matrix = torch.tensor([[0.9, 0.2], [0.4, 0.5]])
    assert presence.margin(matrix) == pytest.approx(0.1)
    assert presence.failed_objects(torch.tensor([[MIN_LIKENESS, -1.0], [-1.0, 0.9]])) == [0]
    assert presence.failed_objects(torch.tensor([[0.9, -1.0], [0.95, 0.9]])) == [1]


def test_a_frame_around_a_box_goes_on_beyond_the_picture() -> None:
    picture = torch.zeros(1, 3, 20, 40)
    picture[..., :10, :10] = 1
    found = crop_to_box(picture, (0.0, 0.0, 0.25, 0.5), 10)  # 10 x 10 px
    assert found.shape == (1, 3, 10, 10) and torch.allclose(found, torch.ones_like(found), atol=1e-4)
    tall = crop_to_box(picture, (0.0, 0.0, 0.25, 1.0), 20)  # 20 px high: 5 px more to each side
    assert torch.allclose(tall[0, 0, 2], torch.tensor([1.0] * 15 + [0.0] * 5), atol=1e-4)
