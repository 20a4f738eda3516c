"""LoRA on the tiny denoiser: nothing at first, everything after a round trip."""

import warnings

import pytest
import torch

from objtune_cli.errors import IncompatibleError
from objtune_cli.lora import layers as adapter
from objtune_cli.models import loading
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.families.module_sets import MODULES


def _predict(model: BaseModel) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return model.predict(
            torch.randn(2, 4, 8, 8, generator=g), torch.tensor([10, 800]), model.encode_prompt(["a dog", "a cat"])
        )


def _shake(model: BaseModel, seed: int = 0) -> None:
    """Random weights for all LoRA parameters, so that they do something."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.denoiser.parameters():
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=g) * 0.2)


@pytest.mark.parametrize("modules", MODULES)
def test_a_new_lora_changes_nothing(model: BaseModel, modules: str) -> None:
    before = _predict(model)
    params = adapter.add(model, 4, modules, seed=0)
    torch.testing.assert_close(_predict(model), before, rtol=0, atol=0)
    assert bool(params) == (modules != "none") and all(p.dtype == torch.float32 for p in params)


@pytest.mark.parametrize("modules", MODULES)
def test_only_lora_is_trainable_and_only_on_the_named_layers(model: BaseModel, modules: str) -> None:
    params = adapter.add(model, 4, modules, seed=0)
    trainable = {n for n, p in model.denoiser.named_parameters() if p.requires_grad}
    assert len(trainable) == len(params)
    assert all(".lora_A." in n or ".lora_B." in n for n in trainable)
    layers = {n.split(".lora_")[0] for n in trainable}
    wanted = {
        n
        for n, _ in model.denoiser.named_modules()
        if n.endswith(tuple("." + m for m in MODULES[modules])) and ".lora_" not in n
    }
    assert layers == wanted
    assert any("conv1" in n for n in layers) == (modules == "all")


def test_the_seed_decides_the_start_and_the_global_generator_is_left_alone(model: BaseModel, tiny_base) -> None:
    state = torch.get_rng_state()
    adapter.add(model, 4, "attention", seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    first = adapter.state_dict(model)
    for seed, equal in ((3, True), (4, False), (2**32 + 3, False)):
        other = loading.load(tiny_base, model.device, model.dtype)
        adapter.add(other, 4, "attention", seed=seed)
        again = adapter.state_dict(other)
        assert again.keys() == first.keys()
        assert all(torch.equal(again[k], first[k]) for k in first) == equal


def test_alpha_is_the_rank(model: BaseModel) -> None:
    """The added output is B A x, with no factor: what the exported files say."""
    adapter.add(model, 4, "attention", seed=0)
    _shake(model)
    layer = model.denoiser.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q
    x = torch.randn(3, layer.in_features)
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ down.T @ up.T)


@pytest.mark.parametrize("modules", MODULES)
def test_round_trip_gives_identical_predictions(model: BaseModel, tiny_base, modules: str) -> None:
    adapter.add(model, 4, modules, seed=0)
    _shake(model)
    weights = adapter.state_dict(model)
    assert all(k.startswith("unet.") and k.endswith(("lora_A.weight", "lora_B.weight")) for k in weights)
    fresh = loading.load(tiny_base, model.device, model.dtype)
    plain = _predict(fresh)
    held = adapter.load(fresh, weights | {"token.rex": torch.ones(2, 16)})  # a token beside it is not its business
    loaded = _predict(fresh)
    assert held == (modules != "none")
    assert torch.equal(loaded, _predict(model))
    assert torch.allclose(loaded, plain) != held
    assert not any(p.requires_grad for p in fresh.denoiser.parameters()) and not fresh.denoiser.training


def test_tensors_are_copies(model: BaseModel) -> None:
    adapter.add(model, 4, "attention", seed=0)
    weights = adapter.state_dict(model)
    before = {k: v.clone() for k, v in weights.items()}
    _shake(model)
    assert all(torch.equal(weights[k], before[k]) for k in weights)


def test_two_adapters_add_up(model: BaseModel, tiny_base) -> None:
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    weights = []
    for seed in (1, 2):
        other = loading.load(tiny_base, model.device, model.dtype)
        adapter.add(other, 2, "attention", seed=0)
        _shake(other, seed)
        weights.append(adapter.state_dict(other))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # peft warns of a second adapter
        for name, tensors in zip(("rex", "cup"), weights, strict=True):
            adapter.load(model, tensors, name)
    adapter.set_active(model, ["rex", "cup"])
    module = model.denoiser.get_submodule(layer)
    x = torch.randn(3, module.in_features)
    expected = module.base_layer(x)
    for tensors in weights:
        expected = expected + x @ tensors[f"unet.{layer}.lora_A.weight"].T @ tensors[f"unet.{layer}.lora_B.weight"].T
    torch.testing.assert_close(module(x), expected)


def test_an_adapter_for_other_layers_is_refused(model: BaseModel) -> None:
    adapter.add(model, 4, "attention", seed=0)
    weights = {k.replace("mid_block", "mid_block_of_sdxl"): v for k, v in adapter.state_dict(model).items()}
    model.denoiser.delete_adapters("default")
    with pytest.raises(IncompatibleError, match="another base: no layer mid_block_of_sdxl"):
        adapter.load(model, weights)


def test_an_adapter_for_wider_layers_is_refused(model: BaseModel, tiny_base) -> None:
    """Same names, other widths: SD 1.5 and SD 2.1 are such a pair."""
    adapter.add(model, 4, "attention", seed=0)
    weights = {k: torch.cat([v, v], 1) if ".lora_A" in k else v for k, v in adapter.state_dict(model).items()}
    fresh = loading.load(tiny_base, model.device, model.dtype)
    with pytest.raises(IncompatibleError, match="another base"):
        adapter.load(fresh, weights)
