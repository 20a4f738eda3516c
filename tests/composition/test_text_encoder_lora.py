"""LoRA on text encoders in a scene: an object's own tokens as peft's LoRA says them, all else as the base does."""

from pathlib import Path

import pytest
import torch

from objtune_cli.composition.object_loras import encode_with_object_loras, single_lora
from objtune_cli.composition.region_masks import PlacedObject
from objtune_cli.lora import layers as adapter
from objtune_cli.models import loading
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.placeholders import Placeholders
from tests.support import tiny_families

CPU = torch.device("cpu")
EVERYWHERE = (-1.0, -1.0, 2.0, 2.0)
NAMES = ("sd1", "sd2", "sdxl", "sd3")
PROMPT, CLASSES = "a photo of <rex> and <cup> on the beach", {"rex": "dog", "cup": "mug"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_families.folders(tmp_path_factory.mktemp("words"), NAMES)


@pytest.fixture(params=NAMES)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def opened(folder: Path) -> tuple[BaseModel, Placeholders]:
    model = loading.load(folder, CPU, torch.float32)
    words = Placeholders(model)
    for i, (name, word) in enumerate(CLASSES.items()):
        words.add(name, torch.randn(2, sum(model.widths), generator=torch.Generator().manual_seed(i)) * 0.3, word)
    return model, words


def lora(model: BaseModel, seed: int) -> dict[str, torch.Tensor]:
    """Random weights of every linear layer of every CLIP."""
    g = torch.Generator().manual_seed(seed)
    found = {}
    for prefix, encoder in zip(adapter.TEXT_ENCODER_PREFIXES, model.text_encoders, strict=False):
        for name, layer in encoder.named_modules():
            if isinstance(layer, torch.nn.Linear) and "layers." in name:
                stem = f"{prefix}text_model.{name.removeprefix('text_model.')}"
                found[f"{stem}.lora_A.weight"] = torch.randn(2, layer.in_features, generator=g) * 0.3
                found[f"{stem}.lora_B.weight"] = torch.randn(layer.out_features, 2, generator=g) * 0.3
    return found


def placed(words: Placeholders, name: str, weights: dict[str, torch.Tensor]) -> PlacedObject:
    return PlacedObject(name, weights, EVERYWHERE, words.token_mask(words.expand(PROMPT), name))


@pytest.mark.parametrize("context", ["class", "own"])
@torch.no_grad()
def test_an_objects_tokens_are_as_peft_says_them_and_all_other_rows_the_bases(folder: Path, context: str) -> None:
    model, words = opened(folder)
    text, one, two = words.expand(PROMPT), lora(model, 1), lora(model, 2)
    base = words.encode_with_class_context(PROMPT, CLASSES) if context == "class" else None
    given = model.encode_prompt([text]) if base is None else base
    found = encode_with_object_loras(model, text, [placed(words, "rex", one), placed(words, "cup", two)], base)
    assert found is not None
    found, given = found.pack(), given.pack()
    ids, changed = model.token_ids([text]), torch.zeros(found.shape[1], dtype=torch.bool)
    for name, weights in (("rex", one), ("cup", two)):
        other, theirs = opened(folder)
        assert adapter.load(other, weights)
        own = torch.nn.functional.pad(words.token_positions(ids, name)[0], (0, found.shape[1] - ids.shape[1]))
        assert own.sum() == 2
        torch.testing.assert_close(
            found[0, own], other.encode_prompt([theirs.expand(PROMPT)]).pack()[0, own], rtol=1e-5, atol=1e-5
        )
        assert (found[0, own] - given[0, own]).abs().max() > 1e-2
        changed |= own
    assert torch.equal(found[0, ~changed], given[0, ~changed])  # what is said of the whole, and T5's rows, too


def test_without_such_layers_nothing_is_encoded_and_nothing_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more encoding for each object that has some, and the base's own where it is not known yet."""
    model, words = opened(folder)
    text, base = words.expand(PROMPT), words.encode_with_class_context(PROMPT, CLASSES)
    rex, cup = placed(words, "rex", lora(model, 1)), placed(words, "cup", {"unet.conv_in.lora_A.weight": torch.ones(1)})
    said: list[list[str]] = []
    encode = type(model).encode_prompt
    monkeypatch.setattr(type(model), "encode_prompt", lambda self, texts: said.append(texts) or encode(self, texts))
    assert (
        encode_with_object_loras(model, text, [cup, cup], base) is base
        and encode_with_object_loras(model, text, [cup]) is None
        and said == []
    )
    encode_with_object_loras(model, text, [cup, rex], base)
    assert said == [[text]]
    encode_with_object_loras(model, text, [cup, rex])
    assert said == [[text]] * 3


@torch.no_grad()
def test_alone_it_acts_on_all_that_is_said(folder: Path) -> None:
    """Negative prompt and pooled row as well, as where `generate` draws it; afterwards the base is as before."""
    model, words = opened(folder)
    weights, texts = lora(model, 1), [words.expand("a photo of <rex>"), "blur"]
    before = model.encode_prompt(texts).pack()
    with single_lora(model, weights):
        ours = model.encode_prompt(texts).pack()
    assert torch.equal(model.encode_prompt(texts).pack(), before)
    layers = [
        module for encoder in model.text_encoders for module in encoder.modules() if isinstance(module, torch.nn.Linear)
    ]
    assert layers and not any(layer._forward_hooks for layer in layers)
    other, _ = opened(folder)
    adapter.load(other, weights)
    torch.testing.assert_close(ours, other.encode_prompt(texts).pack(), rtol=1e-5, atol=1e-5)
    assert (ours - before).abs().amax((1, 2)).min() > 1e-2


def test_a_second_encoder_that_is_not_there_is_another_base(folders: dict[str, Path]) -> None:
    model, words = opened(folders["sd1"])
    weights = {
        f"text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_{side}.weight": torch.ones(2, 2) for side in "AB"
    }
    with pytest.raises(Exception, match="second text encoder"):
        encode_with_object_loras(model, words.expand(PROMPT), [placed(words, "rex", weights)])
    assert not any(module._forward_hooks for module in model.denoiser.modules())
