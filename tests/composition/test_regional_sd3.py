"""Regions in joint attention: LoRA at an object's places and tokens, its tokens heard inside its region alone."""

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
EVERYWHERE, NOWHERE = (-1.0, -1.0, 2.0, 2.0), (4.0, 4.0, 5.0, 5.0)
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
BLOCK = "transformer_blocks.1"
ROWS, CELLS = 333, 16
ALL = torch.ones(ROWS, dtype=torch.bool)
NAMES = ("sd3", "sd35")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("regions")
    return {
        "sd3": tiny_families.sd3(top / "three", with_clip=False),
        "sd35": tiny_families.sd3(top / "three-five", with_clip=False, newer=True),
    }


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest, folders: dict[str, Path]) -> BaseModel:
    return loading.load(folders[request.param], CPU, torch.float32)


def tokens(*at: int) -> torch.Tensor:
    found = torch.zeros(77, dtype=torch.bool)
    found[list(at)] = True
    return found


def lora(model: BaseModel, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under the names of every layer that may learn."""
    g = torch.Generator().manual_seed(seed)
    found = {}
    for name, layer in model.denoiser.named_modules():
        if any(name.endswith("." + end) for end in model.family.modules["all"]):
            found[f"unet.{name}.lora_A.weight"] = torch.randn(2, layer.in_features, generator=g) * 0.2
            found[f"unet.{name}.lora_B.weight"] = torch.randn(layer.out_features, 2, generator=g) * 0.2
    return found


def given(model: BaseModel) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    """As guidance makes it: half without prompt, half with it."""
    z = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    return (
        torch.cat([z, z]),
        torch.tensor([700] * 4),
        model.encode_prompt(["", "", "a photo of a dog", "a cat on the beach"]),
    )


@torch.no_grad()
def test_with_all_places_and_words_it_is_pefts_own_lora(model: BaseModel) -> None:
    """Rows with prompt; without one, what acts on words rests, as it does in U-Nets."""
    weights, inputs = lora(model), given(model)
    base = model.predict(*inputs)
    with regional_sampling(model, [PlacedObject("rex", weights, EVERYWHERE, ALL)]):
        ours = model.predict(*inputs)
    assert torch.equal(model.predict(*inputs), base)
    adapter.load(model, weights)
    theirs = model.predict(*inputs)
    torch.testing.assert_close(ours[2:], theirs[2:], rtol=1e-4, atol=1e-5)
    assert float((theirs - base).abs().max()) > 0.05 and float((ours[:2] - theirs[:2]).abs().max()) > 1e-3


@torch.no_grad()
def test_an_object_that_is_nowhere_is_not_there(model: BaseModel) -> None:
    """Neither its LoRA nor its words change a bit of the picture, though without regions its words would."""
    z, t, condition = given(model)
    changed = condition.sequence.clone()
    changed[:, 4:6] = torch.randn(changed[:, 4:6].shape, generator=torch.Generator().manual_seed(1))
    other = replace(condition, sequence=changed)
    assert not torch.allclose(model.predict(z, t, condition)[2:], model.predict(z, t, other)[2:], atol=1e-4)
    with regional_sampling(model, [PlacedObject("rex", {}, NOWHERE, tokens(4, 5))]):
        plain = model.predict(z, t, condition)[2:]
    with regional_sampling(model, [PlacedObject("rex", lora(model), NOWHERE, tokens(4, 5))]):
        assert torch.equal(model.predict(z, t, other)[2:], plain)


@torch.no_grad()
@pytest.mark.parametrize("layer", ["attn.to_q", "attn.to_out.0", "ff.net.2"])
def test_a_layer_of_the_picture_acts_inside_the_region(model: BaseModel, layer: str) -> None:
    weights, module = lora(model), model.denoiser.get_submodule(f"{BLOCK}.{layer}")
    x = torch.randn(2, CELLS, module.in_features, generator=torch.Generator().manual_seed(0))
    base = module(x)
    delta = x @ weights[f"unet.{BLOCK}.{layer}.lora_A.weight"].T @ weights[f"unet.{BLOCK}.{layer}.lora_B.weight"].T
    with regional_sampling(model, [PlacedObject("rex", weights, LEFT, tokens(4))]) as regions:
        out, share = module(x), regions.flat(CELLS)[0]
    assert share[0] == 1 and share[3] == 0
    torch.testing.assert_close(out, base + share[None, :, None] * delta)
    assert torch.equal(out[:, share == 0], base[:, share == 0])


@torch.no_grad()
@pytest.mark.parametrize(
    "layer", ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out", "ff_context.net.0.proj"]
)
def test_a_layer_of_the_words_acts_at_the_objects_tokens_with_the_prompt(model: BaseModel, layer: str) -> None:
    weights, module = lora(model), model.denoiser.get_submodule(f"{BLOCK}.{layer}")
    x = torch.randn(2, ROWS, module.in_features, generator=torch.Generator().manual_seed(0))
    expected = module(x)
    delta = x @ weights[f"unet.{BLOCK}.{layer}.lora_A.weight"].T @ weights[f"unet.{BLOCK}.{layer}.lora_B.weight"].T
    expected[1, 4:6] += delta[1, 4:6]
    with regional_sampling(model, [PlacedObject("rex", weights, LEFT, tokens(4, 5))]):
        torch.testing.assert_close(module(x), expected)


@torch.no_grad()
@pytest.mark.parametrize("bounded", [False, True])
def test_a_token_is_heard_in_its_region_and_by_no_other_word(model: BaseModel, bounded: bool) -> None:
    """In one layer: with other vectors at one object's tokens, only its region and its tokens change; rows without prompt all do."""
    attn = model.denoiser.get_submodule(f"{BLOCK}.attn")
    g = torch.Generator().manual_seed(0)
    picture, words = torch.randn(2, CELLS, 16, generator=g), torch.randn(2, ROWS, 16, generator=g)
    other = words.clone()
    other[:, 4] = torch.randn(2, 16, generator=g)
    with regional_sampling(
        model,
        [PlacedObject("rex", {}, LEFT, tokens(4)), PlacedObject("cup", {}, RIGHT, tokens(8))],
        edge=0.0,
        bounded=bounded,
    ) as regions:
        shares = regions.flat(CELLS)
        a, b = (attn(hidden_states=picture, encoder_hidden_states=w) for w in (words, other))
    changed, told = ((x - y).abs().amax(-1) > 1e-6 for x, y in zip(a, b, strict=True))
    assert torch.equal(changed[1], shares[0] > 0) and changed[0].all()
    assert told[1].nonzero().flatten().tolist() == [4] and told[0].all()
    far = picture.clone()
    far[:, shares[0] == 0] = torch.randn(2, int((shares[0] == 0).sum()), 16, generator=g)
    with regional_sampling(
        model,
        [PlacedObject("rex", {}, LEFT, tokens(4)), PlacedObject("cup", {}, RIGHT, tokens(8))],
        edge=0.0,
        bounded=bounded,
    ):
        _, seen = attn(hidden_states=far, encoder_hidden_states=words)
    assert torch.allclose(seen[1, 4], a[1][1, 4], atol=1e-6) and not torch.allclose(seen[1, 8], a[1][1, 8], atol=1e-6)


@torch.no_grad()
def test_bounded_regions_do_not_see_each_other(model: BaseModel) -> None:
    """In joint layers and in the picture's own: what is on the left hears nothing of the right."""
    g = torch.Generator().manual_seed(0)
    picture, words = torch.randn(2, CELLS, 16, generator=g), torch.randn(2, ROWS, 16, generator=g)
    placed = [PlacedObject("rex", {}, LEFT, tokens(4)), PlacedObject("cup", {}, RIGHT, tokens(8))]
    layers = [
        layer
        for layer in (model.denoiser.transformer_blocks[1].attn, model.denoiser.transformer_blocks[1].attn2)
        if layer is not None
    ]
    for bounded in (False, True):
        with regional_sampling(model, placed, edge=0.0, bounded=bounded) as regions:
            left, right = (share == 1 for share in regions.flat(CELLS))
            far = picture.clone()
            far[:, right] += 1
            for layer in layers:
                out = [
                    layer(hidden_states=x, encoder_hidden_states=words if layer is layers[0] else None)
                    for x in (picture, far)
                ]
                a, b = (x[0] if isinstance(x, tuple) else x for x in out)
                assert left.any() and right.any() and torch.allclose(a[:, left], b[:, left], atol=1e-6) == bounded
