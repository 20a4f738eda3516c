"""Regions in a transformer of one stream, whose rows are the image's, then the prompt's, each filled up: LoRA row by row, one mask."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from objtune_cli.composition.region_masks import PlacedObject
from objtune_cli.composition.regional import regional_sampling
from objtune_cli.lora import layers as adapter
from objtune_cli.models import loading
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.conditioning import Conditioning
from tests.support import tiny_families

CPU = torch.device("cpu")
EVERYWHERE, NOWHERE, LEFT = (-1.0, -1.0, 2.0, 2.0), (4.0, 4.0, 5.0, 5.0), (0.0, 0.0, 0.5, 1.0)
WORDS, IMAGE = 512, 16
"""Text tokens; image tokens, which are filled up to 32 rows."""
ALL = torch.ones(WORDS, dtype=torch.bool)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.z_image(tmp_path_factory.mktemp("regions") / "z")


@pytest.fixture
def model(folder: Path) -> BaseModel:
    return loading.load(folder, CPU, torch.float32)


def tokens(*at: int) -> torch.Tensor:
    mask = torch.zeros(WORDS, dtype=torch.bool)
    mask[list(at)] = True
    return mask


def lora(model: BaseModel) -> dict[str, torch.Tensor]:
    """Random weights under the names of every layer that may learn."""
    g = torch.Generator().manual_seed(0)
    weights = {}
    for name, layer in model.denoiser.named_modules():
        is_layer = isinstance(layer, torch.nn.Linear)
        if is_layer and any(name.endswith(f".{end}") for end in model.family.modules["all"]):
            weights[f"unet.{name}.lora_A.weight"] = torch.randn(2, layer.in_features, generator=g) * 0.2
            weights[f"unet.{name}.lora_B.weight"] = torch.randn(layer.out_features, 2, generator=g) * 0.2
    return weights


def inputs(model: BaseModel) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    """As guidance makes it: half without prompt, half with it."""
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.cat([z, z]), torch.tensor([700] * 2), model.encode_prompt(["", "a photo of a dog"])


@torch.no_grad()
def test_with_all_places_and_tokens_it_is_pefts_own_lora(model: BaseModel) -> None:
    weights, batch = lora(model), inputs(model)
    base = model.predict(*batch)
    with regional_sampling(model, [PlacedObject("rex", weights, EVERYWHERE, ALL)]):
        ours = model.predict(*batch)
    assert torch.equal(model.predict(*batch), base)
    adapter.load(model, weights)
    theirs = model.predict(*batch)
    torch.testing.assert_close(ours[1:], theirs[1:], rtol=1e-4, atol=1e-5)
    assert float((theirs - base).abs().max()) > 0.05 and float((ours[:1] - theirs[:1]).abs().max()) > 1e-3


@torch.no_grad()
def test_an_object_that_is_nowhere_is_not_there(model: BaseModel) -> None:
    """Neither its LoRA nor its tokens change a bit of the image, through all blocks."""
    z, t, condition = inputs(model)
    changed = condition.sequence.clone()
    changed[:, 4:6] = torch.randn(changed[:, 4:6].shape, generator=torch.Generator().manual_seed(1))
    other = replace(condition, sequence=changed)
    assert not torch.allclose(model.predict(z, t, condition)[1:], model.predict(z, t, other)[1:], atol=1e-4)
    with regional_sampling(model, [PlacedObject("rex", {}, NOWHERE, tokens(4, 5))]):
        plain = model.predict(z, t, condition)[1:]
    with regional_sampling(model, [PlacedObject("rex", lora(model), NOWHERE, tokens(4, 5))]):
        assert torch.equal(model.predict(z, t, other)[1:], plain)


@torch.no_grad()
@pytest.mark.parametrize("block", ["layers.1", "noise_refiner.0", "context_refiner.1"])
def test_rows_of_a_block_are_weighted_one_by_one(model: BaseModel, block: str) -> None:
    """Image rows inside the region, and the object's tokens with the prompt; what fills up the image has the mean."""
    weights = lora(model)
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    name = f"{block}.attention.to_k"
    down, up = (weights[f"unet.{name}.lora_{side}.weight"] for side in "AB")
    with regional_sampling(model, [PlacedObject("rex", weights, LEFT, tokens(4, 5))]) as regions:
        layer = model.denoiser.get_submodule(name)
        layer.register_forward_hook(lambda module, args, out: seen.append((args[0], out, args[0] @ module.weight.T)))
        model.predict(*inputs(model))
        share = regions.flat(IMAGE)[0]
    x, out, base = seen[0]
    expected = torch.zeros(2, x.shape[1])
    text = 0 if block.startswith("context") else 32
    if text:
        expected[:, :IMAGE], expected[:, IMAGE:32] = share, share.mean()
    if not block.startswith("noise"):
        expected[1, text + 4 : text + 6] = 1
    torch.testing.assert_close(out - base, expected[..., None] * (x @ down.T @ up.T), rtol=1e-4, atol=1e-5)
    assert share.max() == 1 and share.min() == 0
