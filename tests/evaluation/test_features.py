"""CLIP and DINO from folders: unit vectors of what stands in the middle of a picture."""

import json
import shutil
import socket
from pathlib import Path

from objtune_cli.models import loading  # (repairs torchvision before transformers asks for it)

# isort: split
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from objtune_cli.errors import ResourceError, UsageError
from objtune_cli.evaluation import features
from objtune_cli.models import clip
from tests.support import tiny_sd1


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_sd1.build(tmp_path_factory.mktemp("features") / "tiny", clip=True)
    tiny_sd1.tokenizer().save_pretrained(folder / "clip")
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DINO's architecture, small."""
    folder = tmp_path_factory.mktemp("features") / "vit"
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    ViTModel(ViTConfig(**shape, image_size=48, patch_size=16)).save_pretrained(folder)
    return folder


def _pictures(count: int = 3, height: int = 40, width: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def _unit(vectors: np.ndarray, count: int, length: int) -> bool:
    return vectors.shape == (count, length) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_clip_gives_unit_vectors_of_pictures_and_texts(base: Path) -> None:
    look, say = features.load_clip(str(base / "clip"))
    assert _unit(look(_pictures()), 3, tiny_sd1.WIDTH)
    texts = say(["a photo of a dog", "a cat"])
    assert _unit(texts, 2, tiny_sd1.WIDTH) and not np.allclose(texts[0], texts[1])


def test_dino_from_one_file_sees_what_the_folder_does(vit: Path, tmp_path: Path) -> None:
    """Sizes are read off the tensors; heads are of 64 numbers, so that the small one's two heads need a width of 128."""
    shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    ViTModel(ViTConfig(**shape, image_size=48, patch_size=16)).save_pretrained(tmp_path / "wide")
    file = tmp_path / "wide" / "model.safetensors"
    assert np.array_equal(
        features.load_dino(str(file))(_pictures()), features.load_dino(str(tmp_path / "wide"))(_pictures())
    )
    tensors = load_file(file)
    save_file({k: v for k, v in tensors.items() if "layer.1.output" not in k}, tmp_path / "less.safetensors")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "no.safetensors").write_bytes(b"no")
    for name, said in {
        "less": "it lacks .*1",
        "other": "cannot be opened as a ViT",
        "no": "cannot be opened as a ViT",
    }.items():
        with pytest.raises(ResourceError, match=said):
            features.load_dino(str(tmp_path / f"{name}.safetensors"))


def test_texts_read_as_in_our_towers_however_they_are_padded(base: Path) -> None:
    base_model = loading.load(base, torch.device("cpu"), torch.float32)
    prompts = ["a photo of a dog on the beach", "a cat"]
    with torch.no_grad():
        ours = clip.load(base / "clip", base_model).text_features(base_model, prompts).numpy()
    _, say = features.load_clip(str(base / "clip"))
    np.testing.assert_allclose(say(prompts), ours, atol=1e-5)
    np.testing.assert_allclose(say(prompts[1:]), ours[1:], atol=1e-5)
    assert _unit(say(["long " * 60]), 1, tiny_sd1.WIDTH)  # cut off where the tower ends


def test_dino_gives_the_class_tokens_unit_vector(vit: Path) -> None:
    look = features.load_dino(str(vit))
    shown = _pictures(height=48, width=48)
    assert _unit(look(shown), 3, 24)
    model = ViTModel.from_pretrained(vit, local_files_only=True).eval()
    x = torch.stack([_papers(picture, 55, 48) for picture in shown])  # 256 to 224, at this model's side
    with torch.no_grad():
        token = model(pixel_values=x).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(look(shown), token / np.linalg.norm(token, axis=1, keepdims=True), atol=1e-4)


def _papers(picture: np.ndarray, short: int, side: int) -> torch.Tensor:
    """DINO's preparation by torchvision, as code of the papers writes it."""
    from PIL import Image
    from torchvision import transforms as T

    steps = [
        T.Resize(short, T.InterpolationMode.BICUBIC),
        T.CenterCrop(side),
        T.ToTensor(),
        T.Normalize(*features.DINO_STATISTICS),
    ]
    return T.Compose(steps)(Image.fromarray(picture))


WIDE, HIGH, SQUARE, LARGE = (300, 640), (501, 333), (120, 120), (224, 224)


@pytest.mark.parametrize("size", [WIDE, HIGH, SQUARE, LARGE], ids=str)
def test_a_picture_is_prepared_as_in_the_tables_of_the_papers(size: tuple[int, int]) -> None:
    shown = _pictures(1, *size)
    found = features._preprocess(shown, features.Preprocessing(256, 224, *features.DINO_STATISTICS))
    torch.testing.assert_close(found[0], _papers(shown[0], 256, 224), atol=1e-5, rtol=0)


CONFIGS = {
    "clip": (
        {
            "size": {"shortest_edge": 224},
            "crop_size": {"height": 224, "width": 224},
            "do_center_crop": True,
            "resample": 3,
        },
        224,
        224,
    ),
    "old clip": ({"size": 224, "crop_size": 224, "do_center_crop": True, "resample": 3}, 224, 224),
    "dinov2": (
        {
            "size": {"shortest_edge": 256},
            "crop_size": {"height": 224, "width": 224},
            "do_center_crop": True,
            "resample": 3,
        },
        256,
        224,
    ),
    "bilinear": (
        {
            "size": {"shortest_edge": 300},
            "crop_size": {"height": 200, "width": 200},
            "do_center_crop": True,
            "resample": 2,
        },
        300,
        200,
    ),
}


@pytest.mark.parametrize("what", CONFIGS)
@pytest.mark.parametrize("size", [WIDE, HIGH], ids=str)
def test_a_folders_preparation_is_that_of_its_image_processor(what: str, size: tuple[int, int], tmp_path: Path) -> None:
    from transformers import CLIPImageProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    said, short, side = CONFIGS[what]
    said = said | {
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.25, 0.3],
        "do_resize": True,
        "do_normalize": True,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    own = features.read_preprocessing(
        tmp_path, features.Preprocessing(100, 50, *features.DINO_STATISTICS), any_size=True
    )
    assert (own.short, own.side, own.mean) == (short, side, (0.5, 0.4, 0.3))
    shown = _pictures(1, *size)
    found = features._preprocess(shown, own)
    exact = CLIPImageProcessorPil.from_pretrained(tmp_path)(list(shown), return_tensors="pt").pixel_values
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=0)
    other = CLIPImageProcessor.from_pretrained(tmp_path)(
        list(shown), return_tensors="pt"
    ).pixel_values  # resized by torchvision: a level off at most
    torch.testing.assert_close(found, other, atol=1.01 / 255 / 0.2, rtol=0)


def test_a_config_that_squeezes_the_picture_gives_its_colours_alone(tmp_path: Path) -> None:
    """facebook/dino-vits16 has the first; the papers' tables keep the picture's shape."""
    own = features.Preprocessing(256, 224, *features.DINO_STATISTICS)
    colours = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    for size in (224, {"height": 224, "width": 224}, None, {"shortest_edge": "x"}, []):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(colours | {"size": size, "resample": 2}))
        found = features.read_preprocessing(tmp_path, own)
        assert (found.short, found.side, found.resample, found.mean, found.std) == (
            256,
            224,
            3,
            (0.5,) * 3,
            (0.25,) * 3,
        )
    for text in ("{", "{}", "[]", '{"image_mean": 3, "image_std": 4}'):
        (tmp_path / "preprocessor_config.json").write_text(text)
        assert features.read_preprocessing(tmp_path, own) == own
    assert features.read_preprocessing(None, own) == features.read_preprocessing(tmp_path / "none", own) == own


def test_a_model_of_one_side_keeps_it(tmp_path: Path) -> None:
    """Its folder's sides are scaled; one that takes any side takes the folder's."""
    said = {
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    own = features.Preprocessing(60, 48, *features.DINO_STATISTICS)
    assert (features.read_preprocessing(tmp_path, own).short, features.read_preprocessing(tmp_path, own).side) == (
        55,
        48,
    )
    assert features.read_preprocessing(tmp_path, own, any_size=True).side == 224


def test_a_wide_picture_is_seen_by_its_middle(base: Path) -> None:
    look, _ = features.load_clip(str(base / "clip"))
    wide = _pictures(1, 40, 80)
    other = wide.copy()
    other[:, :, :16], other[:, :, 64:] = 0, 255
    np.testing.assert_allclose(look(wide), look(other), atol=1e-6)
    assert not np.allclose(look(wide), look(wide[:, :, :40]), atol=1e-3)


def test_a_picture_does_not_depend_on_its_neighbours(vit: Path) -> None:
    look = features.load_dino(str(vit))
    np.testing.assert_allclose(look(_pictures()), np.concatenate([look(p[None]) for p in _pictures()]), atol=1e-5)


def test_the_mean_colour_is_zero_and_a_deviation_more_is_one() -> None:
    mean, std = (0.2, 0.4, 0.6), (0.2, 0.2, 0.2)
    shown = np.stack([np.tile(np.uint8([v * 255 for v in colour]), (9, 9, 1)) for colour in (mean, (0.4, 0.6, 0.8))])
    found = features._preprocess(shown, features.Preprocessing(6, 6, mean, std))
    torch.testing.assert_close(found, torch.stack([torch.zeros(3, 6, 6), torch.ones(3, 6, 6)]), atol=1e-5, rtol=0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hosts that were looked up; none is found, and nobody waits before trying again."""
    import huggingface_hub.utils._http as http

    hosts: list[str] = []

    def nowhere(host: str, *_args: object, **_given: object) -> None:
        hosts.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    monkeypatch.setattr(http.time, "sleep", lambda seconds: None)
    return hosts


@pytest.mark.parametrize("what", ["clip", "dino"])
@pytest.mark.parametrize("name", ["nobody/nothing", "/nonexistent", "a b c"])
def test_a_model_that_is_not_here_is_named_with_a_way_to_get_it(what: str, name: str, asked: list[str]) -> None:
    with pytest.raises(ResourceError, match=name) as caught:
        getattr(features, f"load_{what}")(name)
    assert caught.value.code == 7 and f"`--{what} DIR`" in caught.value.hint


@pytest.mark.parametrize("what", ["clip", "dino"])
def test_nobody_is_asked_for_a_model_that_is_not_here(what: str, asked: list[str]) -> None:
    with pytest.raises(ResourceError):
        getattr(features, f"load_{what}")("nobody/nothing")
    assert asked == []


@pytest.mark.parametrize(
    "what",
    ["clip", "dino"],
)
def test_nobody_is_asked_for_a_model_of_the_cache(
    what: str, base: Path, vit: Path, asked: list[str], tmp_path: Path, monkeypatch
) -> None:
    import huggingface_hub.constants as constants

    own = base / "clip" if what == "clip" else vit
    repository = tmp_path / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(own, repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    found = getattr(features, f"load_{what}")("some/model")
    look = found[0] if what == "clip" else found
    expected = features.load_clip(str(own))[0] if what == "clip" else features.load_dino(str(own))
    np.testing.assert_array_equal(look(_pictures()), expected(_pictures()))
    assert asked == []


def test_a_model_of_another_family_is_refused(base: Path, vit: Path) -> None:
    with pytest.raises(UsageError, match="is a clip") as caught:
        features.load_dino(str(base / "clip"))
    assert "--dino takes one of: vit" in caught.value.hint
    with pytest.raises(UsageError, match="is a vit"):
        features.load_clip(str(vit))


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ResourceError, match="cannot be opened"):
        features.load_dino(str(tmp_path))
