"""Merged LoRAs against the sum of their deltas, computed by hand."""

import pytest
import torch
from torch import Tensor

from objtune_cli.lora import layers as adapter
from objtune_cli.lora import merging
from objtune_cli.models import loading
from objtune_cli.models.base_model import BaseModel

LINEAR, CONV, ALONE = "unet.a.to_q", "unet.b.conv1", "unet.c.to_v"


def _lora(seed: int, rank: int, *extra: str) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = {LINEAR: ((rank, 6), (8, rank)), CONV: ((rank, 3, 3, 3), (5, rank, 1, 1)), ALONE: ((rank, 4), (7, rank))}
    found = {"token.rex": torch.ones(1, 2)}
    for layer in (LINEAR, CONV, *extra):
        for side, shape in zip("AB", shapes[layer], strict=True):
            found[f"{layer}.lora_{side}.weight"] = torch.randn(shape, generator=g)
    return found


def _delta(weights: dict[str, Tensor], layer: str) -> Tensor:
    down, up = (weights[f"{layer}.lora_{side}.weight"].flatten(1) for side in "AB")
    return up @ down


def test_a_sum_is_exact() -> None:
    first, second = _lora(1, 2), _lora(2, 3, ALONE)
    both = merging.merge_adapters([first, second], [0.5, -2.0])
    for layer in (LINEAR, CONV):
        torch.testing.assert_close(_delta(both, layer), 0.5 * _delta(first, layer) - 2 * _delta(second, layer))
    torch.testing.assert_close(_delta(both, ALONE), -2 * _delta(second, ALONE))
    assert (
        {v.shape[0] for k, v in both.items() if "lora_A" in k}
        == {v.shape[1] for k, v in both.items() if "lora_B" in k}
        == {5}
    )
    assert both[f"{CONV}.lora_A.weight"].shape == (5, 3, 3, 3) and both[f"{CONV}.lora_B.weight"].shape == (5, 5, 1, 1)
    assert not any(k.startswith("token.") for k in both)


def test_a_rank_gives_the_nearest_delta_of_that_rank() -> None:
    """The error is the root of the squares of the singular values that are left out (Eckart-Young)."""
    first, second = _lora(1, 3), _lora(2, 3)
    whole = _delta(first, LINEAR) + _delta(second, LINEAR)
    left_out = torch.linalg.svdvals(whole)[2:]
    found = merging.merge_adapters([first, second], [1.0, 1.0], rank=2)
    assert found[f"{LINEAR}.lora_A.weight"].shape == (2, 6)
    torch.testing.assert_close(
        (_delta(found, LINEAR) - whole).norm(), left_out.square().sum().sqrt(), rtol=1e-3, atol=1e-4
    )
    full = merging.merge_adapters([first, second], [1.0, 1.0], rank=20)  # more than the layers have: zeros fill up
    assert full[f"{LINEAR}.lora_A.weight"].shape == (20, 6)
    torch.testing.assert_close(_delta(full, CONV), _delta(first, CONV) + _delta(second, CONV), rtol=1e-3, atol=1e-4)


def test_ties_keeps_the_larger_half_and_the_sign_of_the_majority() -> None:
    """Diagonal deltas (4, 3, 1) and (-9, 2, 0): trimmed at 2/9 of the entries to (4, 3, 0) and (-9, 2, 0); signs (-, +); disjoint means (-9, 2.5)."""
    eye = torch.eye(3)
    first = {f"{LINEAR}.lora_A.weight": eye, f"{LINEAR}.lora_B.weight": torch.diag(torch.tensor([4.0, 3.0, 1.0]))}
    second = {f"{LINEAR}.lora_A.weight": eye, f"{LINEAR}.lora_B.weight": torch.diag(torch.tensor([-9.0, 2.0, 0.0]))}
    found = merging.merge_adapters([first, second], [1.0, 1.0], "ties", density=2.01 / 9)
    torch.testing.assert_close(_delta(found, LINEAR), torch.diag(torch.tensor([-9.0, 2.5, 0.0])), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["dare", "dare-ties"])
def test_dare_is_the_same_for_the_same_seed(method: str) -> None:
    state = torch.get_rng_state()
    one, again, other = (
        merging.merge_adapters([_lora(1, 3), _lora(2, 3)], [1.0, 1.0], method, seed=s) for s in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[k], again[k]) for k in one) and not torch.equal(
        one[f"{LINEAR}.lora_A.weight"], other[f"{LINEAR}.lora_A.weight"]
    )
    assert one[f"{LINEAR}.lora_A.weight"].shape == (3, 6)


def test_the_merged_adapter_draws_what_both_together_draw(model: BaseModel, tiny_base) -> None:
    other = loading.load(tiny_base, model.device, model.dtype)
    adapter.add(other, 2, "all", seed=0)
    shapes = {k: v.shape for k, v in adapter.state_dict(other).items()}
    g = torch.Generator().manual_seed(0)
    first, second = ({k: torch.randn(s, generator=g) * 0.2 for k, s in shapes.items()} for _ in range(2))
    given = torch.randn(1, 4, 8, 8, generator=g), torch.tensor([500]), model.encode_prompt(["a dog"])
    with torch.no_grad():
        for i, weights in enumerate((first, second)):
            adapter.load(other, weights, f"lora{i}")
        adapter.set_active(other, ["lora0", "lora1"])
        both = other.predict(*given)
        adapter.load(model, merging.merge_adapters([first, second], [1.0, 1.0]))
        torch.testing.assert_close(model.predict(*given), both, rtol=1e-3, atol=1e-4)


def test_layers_of_text_encoders_are_summed_too() -> None:
    """An adapter without them beside one with them; what DARE drops of the denoiser's does not depend on them."""
    layers = (
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
    )
    g = torch.Generator().manual_seed(3)
    words = {
        f"{layer}.lora_{side}.weight": torch.randn(2, 4, generator=g).view(-1, 2 if side == "B" else 4)
        for layer in layers
        for side in "AB"
    }
    first, second, third = _lora(1, 2) | words, _lora(2, 3), {k: -3 * v for k, v in words.items() if layers[0] in k}
    both = merging.merge_adapters([first, second, third], [0.5, -2.0, 2.0])
    torch.testing.assert_close(_delta(both, layers[0]), (0.5 + 2 * 9) * _delta(words, layers[0]))
    torch.testing.assert_close(_delta(both, layers[1]), 0.5 * _delta(words, layers[1]))
    torch.testing.assert_close(_delta(both, LINEAR), 0.5 * _delta(first, LINEAR) - 2 * _delta(second, LINEAR))
    assert {v.shape[0] for k, v in both.items() if "lora_A" in k} == {7}
    small = merging.merge_adapters([first, third], [0.5, 2.0], rank=2)
    torch.testing.assert_close(_delta(small, layers[0]), (0.5 + 2 * 9) * _delta(words, layers[0]), rtol=1e-3, atol=1e-4)
    for method in ("ties", "dare", "dare-ties"):
        found = merging.merge_adapters([first, second], [1.0, 1.0], method)
        plain = merging.merge_adapters([{k: v for k, v in first.items() if k not in words}, second], [1.0, 1.0], method)
        assert found.keys() - plain.keys() == words.keys() and all(torch.equal(found[k], plain[k]) for k in plain)
