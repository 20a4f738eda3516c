"""LoRAs in the denoiser's weights predict what LoRA layers predict, and leave the base's weights as they were."""

import pytest
import torch

from objtune_cli.lora import folding, layers
from objtune_cli.models import adapter_state, loading
from objtune_cli.models.base_model import BaseModel
from tests.lora.test_layers import _predict, _shake

BOUND = 2e-5
"""Largest difference of predictions of magnitude 1; float32 rounds W x + B A x in another order than (W + B A) x."""


@pytest.fixture
def loras(tiny_base) -> list[dict[str, torch.Tensor]]:
    """Two LoRAs on linear layers and convolutions."""
    states = []
    for seed in (0, 1):
        other = loading.load(tiny_base, torch.device("cpu"), torch.float32)
        layers.add(other, 4, "all", seed=seed)
        _shake(other, seed)
        states.append(layers.state_dict(other))
    return states


@pytest.mark.parametrize("count", [1, 2])
def test_folded_loras_predict_what_their_layers_predict(model: BaseModel, tiny_base, loras, count: int) -> None:
    other = loading.load(tiny_base, model.device, model.dtype)
    names = [f"lora{i}" for i in range(count)]
    for name, state in zip(names, loras, strict=False):
        layers.load(other, state, name)
    layers.set_active(other, names)
    base = _predict(model)
    assert folding.fold(model, loras[:count])
    expected = _predict(other)
    assert float((expected - base).abs().max()) > 0.1, "the LoRAs act"
    torch.testing.assert_close(_predict(model), expected, rtol=BOUND, atol=BOUND)
    assert not hasattr(model.denoiser, "peft_config")


def test_disabled_folded_loras_are_the_base_to_the_bit(model: BaseModel, loras) -> None:
    base = _predict(model)
    folding.fold(model, loras)
    folded = _predict(model)
    with adapter_state.disabled(model):
        assert model.adapters_disabled and torch.equal(_predict(model), base)
        with adapter_state.disabled(model):
            assert torch.equal(_predict(model), base)
        assert torch.equal(_predict(model), base), "the inner context leaves them disabled"
    assert not model.adapters_disabled and torch.equal(_predict(model), folded)


def test_what_folding_would_change_is_left_to_the_layers(
    model: BaseModel, loras, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, _), key = loras, next(key for key in loras[0] if key.endswith("lora_B.weight"))
    assert not folding.fold(model, [{"token": torch.zeros(1, 4)}]), "no LoRA"
    assert not folding.fold(model, [first | {key.replace("weight", "bias"): torch.zeros(len(first[key]))}])
    assert not folding.fold(model, [first | {"text_encoder.a.lora_A.weight": torch.zeros(1, 1)}])
    with monkeypatch.context() as limited:
        limited.setattr(folding, "MAX_BYTES", 10)
        assert not folding.fold(model, loras)
    model.denoiser.to(torch.bfloat16)
    assert not folding.fold(model, loras), "bf16 would round the updates away"
    assert model.folded_weights is None


def test_another_set_replaces_the_first_beside_layers_of_peft_too(model: BaseModel, tiny_base, loras) -> None:
    other = loading.load(tiny_base, model.device, model.dtype)
    folding.fold(other, loras[1:])
    expected, base = _predict(other), _predict(model)
    folding.fold(model, loras[:1])
    folding.fold(model, loras[1:])
    assert torch.equal(_predict(model), expected)
    folding.unfold(model)
    layers.load(model, loras[0], "lora0")
    layers.set_active(model, [])
    assert torch.equal(_predict(model), base)
    folding.fold(model, loras[1:])
    assert torch.equal(_predict(model), expected)
