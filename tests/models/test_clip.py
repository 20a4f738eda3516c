"""CLIP's two towers on the tiny base."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from objtune_cli.errors import DamagedError, IncompatibleError, MissingError
from objtune_cli.models import clip as towers
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.placeholders import Placeholders, class_token_embeddings
from tests.support import tiny_sd1

TEXTS = ["a photo of a dog", "a photo of a teapot", ""]


@pytest.fixture
def clip(tiny_base, model: BaseModel) -> towers.Clip:
    return towers.load(tiny_base / "clip", model)


def test_vectors_have_length_one(clip: towers.Clip, model: BaseModel) -> None:
    pictures = torch.rand(3, 3, 50, 70, generator=torch.Generator().manual_seed(0))
    for vectors in (clip.image_features(pictures), clip.text_features(model, TEXTS)):
        assert vectors.shape == (3, 16)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert clip.image_size == tiny_sd1.CLIP_SIDE


def test_texts_agree_with_transformers_own_reading(clip: towers.Clip, model: BaseModel) -> None:
    own = clip.clip.get_text_features(input_ids=model.token_ids(TEXTS)).pooler_output
    torch.testing.assert_close(clip.text_features(model, TEXTS), F.normalize(own, dim=-1))


def test_pictures_agree_with_transformers_own_reading(clip: towers.Clip) -> None:
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (towers.MEAN, towers.STD))
    own = clip.clip.get_image_features(pixel_values=(pictures - mean) / std).pooler_output
    torch.testing.assert_close(clip.image_features(pictures), F.normalize(own, dim=-1))


def test_a_sentence_is_read_at_its_end_even_with_a_placeholder_of_a_larger_id(
    clip: towers.Clip, model: BaseModel
) -> None:
    """The old config reads at the largest id; a placeholder's is larger than the end's."""
    words = Placeholders(model)
    words.add("rex", class_token_embeddings(model, "dog"))
    text = words.expand("a photo of a <rex>")
    ids = model.token_ids([text])[0]
    end = int((ids == model.tokenizer.eos_token_id).nonzero()[0])
    assert int(ids.argmax()) < end  # the trap is set
    torch.testing.assert_close(clip.text_features(model, [text]), clip.text_features(model, ["a photo of a dog"]))


def test_gradient_reaches_the_placeholder_through_the_text_tower(clip: towers.Clip, model: BaseModel) -> None:
    words = Placeholders(model)
    rows = class_token_embeddings(model, "dog").requires_grad_()
    words.add("rex", rows)
    clip.text_features(model, [words.expand("a photo of <rex>")])[0, 0].backward()
    assert rows.grad is not None and rows.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in clip.clip.parameters())


def test_no_clip_there(tmp_path, model: BaseModel) -> None:
    with pytest.raises(MissingError, match="cannot be opened"):
        towers.load(tmp_path / "nothing", model)


def test_truncated_weights(tiny_base, tmp_path, model: BaseModel) -> None:
    folder = shutil.copytree(tiny_base / "clip", tmp_path / "clip")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:3000])
    with pytest.raises(DamagedError, match="cannot be opened"):
        towers.load(folder, model)


def test_missing_weights_are_refused_not_filled_with_random_numbers(tiny_base, tmp_path, model: BaseModel) -> None:
    folder = shutil.copytree(tiny_base / "clip", tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {key: value for key, value in weights.items() if "vision_model.encoder.layers.1" not in key},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(DamagedError, match=r"it lacks vision_model.encoder.layers.1.* and 15 more weights"):
        towers.load(folder, model)


def test_a_clip_of_another_width_is_refused(tmp_path, model: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_sd1, "WIDTH", 32)
    tiny_sd1.clip_model(tiny_sd1.tokenizer()).save_pretrained(tmp_path / "clip")
    with pytest.raises(IncompatibleError, match="does not match the base's text encoder"):
        towers.load(tmp_path / "clip", model)
