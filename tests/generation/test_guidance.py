"""What the frozen base says of the words around an object, and does not say of the object: exactly differences of predictions, added everywhere alike."""

import contextlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from objtune_cli.composition.object_loras import single_lora
from objtune_cli.generation.guidance import extra_guidance
from objtune_cli.generation.sampling import sample
from objtune_cli.generation.settings import SamplingSettings
from objtune_cli.lora import layers
from objtune_cli.models import adapter_state, loading
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.placeholders import Placeholders, class_token_embeddings
from objtune_cli.models.prompts import objects_only_prompt
from tests.support import tiny_families

NAMES = ("sd1", "sdxl", "sd3")
WORN, ALONE = "a photo of a dog in a hat", "a photo of a dog"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_families.folders(tmp_path_factory.mktemp("bases"), NAMES)


def taught(folder: Path, seed: int = 0) -> tuple[BaseModel, Placeholders]:
    """A base with the word `<rex>` and a LoRA that does something."""
    model = loading.load(folder, torch.device("cpu"), torch.float32)
    words = Placeholders(model)
    rows = class_token_embeddings(model, "dog")
    words.add("rex", rows + torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed)), "dog")
    g = torch.Generator().manual_seed(seed)
    for p in layers.add(model, 2, "attention", seed=seed):
        torch.nn.init.normal_(p, std=0.3, generator=g)
    return model, words


@torch.no_grad()
def predicted(model: BaseModel, texts: list[str], latents: Tensor) -> Tensor:
    """As a sampler asks: one level for all rows."""
    return model.predict(latents, torch.full((len(latents),), 500), model.encode_prompt(texts))


@pytest.mark.parametrize("name", NAMES)
def test_the_difference_is_added_to_both_halves_and_to_no_other_picture(folders: dict[str, Path], name: str) -> None:
    model, words = taught(folders[name])
    texts = [words.expand(t) for t in ("a photo of <rex> in a hat", "a photo of <rex>", "a cat in a hat")]
    z = torch.randn(3, model.denoiser.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(1))
    both, z2 = ["", "", "", *texts], torch.cat([z, z])
    before = predicted(model, both, z2)
    with adapter_state.disabled(model):
        said, alone = (predicted(model, [t], z[:1]) for t in (WORN, ALONE))
    side = model.resolution
    with extra_guidance(model, [texts], 1.5, 0.0, side, side):
        inside = predicted(model, both, z2)
    more = 1.5 * (said - alone)[0]
    assert more.abs().max() > 1e-3
    torch.testing.assert_close(inside - before, torch.stack([more, 0 * more, 0 * more] * 2), rtol=1e-3, atol=1e-5)
    assert torch.equal(predicted(model, both, z2), before)  # and nothing is left of it


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["loaded", "hooked"])
def test_what_the_base_does_not_say_of_the_object_is_added_to_both_halves(
    folders: dict[str, Path], name: str, way: str
) -> None:
    """Of each picture of the object, whatever else it is asked for; by a LoRA that peft loaded, and by one that hooks of a closer look add."""
    model, words = taught(folders[name])
    weights = layers.state_dict(model)
    texts = [words.expand(t) for t in ("a photo of <rex> in a hat", "a photo of <rex>", "a cat in a hat")]
    z = torch.randn(3, model.denoiser.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(1))
    both, z2, side = ["", "", "", *texts], torch.cat([z, z]), model.resolution
    with adapter_state.disabled(model):
        plain = predicted(model, [WORN, ALONE, "a cat in a hat"], z)
        base = predicted(model, both, z2)
    if way == "hooked":
        layers.set_active(model, [])
    with single_lora(model, weights) if way == "hooked" else contextlib.nullcontext():
        before = predicted(model, both, z2)
        with extra_guidance(model, [texts], 0.0, 0.5, side, side):
            inside = predicted(model, both, z2)
        with extra_guidance(model, [texts], 1.5, 0.5, side, side):
            with_scene = predicted(model, both, z2)
        again = predicted(model, both, z2)
    more = 0.5 * (before[3:] - plain)
    more[2] = 0  # no object
    assert more[:2].abs().amin(0).max() > 1e-3 and not torch.equal(before, base)
    torch.testing.assert_close(inside - before, more.repeat(2, 1, 1, 1), rtol=1e-3, atol=1e-5)
    assert torch.equal(again, before)
    more[0] += 1.5 * (plain[0] - _frozen(model, ALONE, z[:1]))
    torch.testing.assert_close(with_scene - before, more.repeat(2, 1, 1, 1), rtol=1e-3, atol=1e-5)


def _frozen(model: BaseModel, text: str, z: Tensor) -> Tensor:
    with adapter_state.disabled(model):
        return predicted(model, [text], z)[0]


def test_the_adapter_is_no_part_of_it_and_acts_again_afterwards(folders: dict[str, Path]) -> None:
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    found = []
    for seed in (0, 1):
        model, words = taught(folders["sd1"], seed)
        text = words.expand("a photo of <rex> in a hat")
        before = predicted(model, [text], z)
        with extra_guidance(model, [[text]], 2.0, 0.0, model.resolution, model.resolution):
            found.append(predicted(model, [text], z) - before)
        assert torch.equal(predicted(model, [text], z), before)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)


def test_what_does_not_act_stays_asleep(folders: dict[str, Path]) -> None:
    model, words = taught(folders["sd1"])
    layers.set_active(model, [])
    z, text = torch.randn(1, 4, 8, 8), words.expand("a photo of <rex> in a hat")
    before = predicted(model, [text], z)
    with extra_guidance(model, [[text]], 1.0, 0.0, model.resolution, model.resolution):
        assert not torch.equal(predicted(model, [text], z), before)
    assert torch.equal(predicted(model, [text], z), before)


def test_what_does_not_learn_does_not_learn_afterwards(folders: dict[str, Path]) -> None:
    model, words = taught(folders["sd1"])
    model.denoiser.requires_grad_(False)
    text = words.expand("a photo of <rex> in a hat")
    with extra_guidance(model, [[text]], 1.0, 0.0, model.resolution, model.resolution):
        predicted(model, [text], torch.randn(1, 4, 8, 8))
    assert not any(p.requires_grad for p in model.denoiser.parameters())


@pytest.mark.parametrize("scheduler", ["auto", "euler", "dpm++"])
def test_pictures_without_other_words_are_the_same_bytes(folders: dict[str, Path], scheduler: str) -> None:
    model, words = taught(folders["sd1"])
    for text, same in (
        ("a photo of <rex>", True),
        ("my <rex>.", True),
        ("A photo of <rex> ", True),
        ("a dog in a hat", True),
        ("a photo of <rex> in a hat", False),
    ):
        plain, told = (
            sample(model, words.expand(text), [3, 4], SamplingSettings(3, 2.0, scheduler, prompt_guidance_scale=w))
            for w in (0.0, 2.0)
        )
        assert torch.equal(plain, told) == same and told.isfinite().all()


def test_each_picture_of_a_batch_has_its_own(folders: dict[str, Path]) -> None:
    model, words = taught(folders["sd1"])
    texts = [words.expand(t) for t in ("a photo of <rex> in a hat", "<rex> at sea", "a photo of <rex>")]
    together = sample(
        model, texts, [1, 2, 3], SamplingSettings(3, 2.0, guidance_interval_high=0.7, prompt_guidance_scale=2.0)
    )
    for i, text in enumerate(texts):
        torch.testing.assert_close(
            sample(
                model, text, [i + 1], SamplingSettings(3, 2.0, guidance_interval_high=0.7, prompt_guidance_scale=2.0)
            )[0],
            together[i],
            rtol=0,
            atol=1e-4,
        )


def test_an_error_inside_leaves_the_base_as_it_was(folders: dict[str, Path]) -> None:
    model, words = taught(folders["sd1"])
    z, text = torch.randn(1, 4, 8, 8), words.expand("a photo of <rex> in a hat")
    before = predicted(model, [text], z)
    with pytest.raises(RuntimeError), extra_guidance(model, [[text]], 1.0, 0.0, model.resolution, model.resolution):
        predicted(model, [text], torch.randn(1, 5, 8, 8))
    assert torch.equal(predicted(model, [text], z), before)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a photo of <rex> in a hat", "a photo of a dog"), ("<rex@2> and my <ann> at sea", "a dog and an owl"), ("my <rex> at sea", "my dog"),
        ("<rex> in the snow, <rex> in a hat", "a dog and a dog"),
        ("a photo of <other>", ""), ("a dog", ""),
    ],
)  # fmt: skip
def test_the_objects_alone(prompt: str, said: str) -> None:
    assert objects_only_prompt(prompt, {"rex": "dog", "ann": "owl"}) == said
