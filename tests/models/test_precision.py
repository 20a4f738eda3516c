"""Products in bf16 on a processor: what enters and leaves stays float32, and gradients reach an added LoRA."""

import torch

from objtune_cli.lora import layers
from objtune_cli.models import attention, precision
from objtune_cli.models.base_model import BaseModel


def _call(model: BaseModel) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(2, model.denoiser.config.in_channels, 8, 8, generator=g)
    return model.predict(z, torch.tensor([100, 700]), model.encode_prompt(["a photo of a dog", "a cat"]))


def test_halved_denoiser_predicts_as_before_within_bf16(model: BaseModel) -> None:
    with torch.no_grad():
        before = _call(model)
        precision.use_bf16_matmuls(model.denoiser)
        after = _call(model)
    assert after.dtype == torch.float32
    assert not torch.equal(before, after), "nothing was halved"
    assert (after - before).norm() < 0.03 * before.norm()


def test_products_are_halved_and_norms_are_not(model: BaseModel) -> None:
    precision.use_bf16_matmuls(model.denoiser)
    modules = list(model.denoiser.modules())
    assert {m.weight.dtype for m in modules if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)} == {torch.bfloat16}
    assert {m.weight.dtype for m in modules if isinstance(m, torch.nn.GroupNorm | torch.nn.LayerNorm)} == {
        torch.float32
    }
    assert all(isinstance(m, precision.FloatGroupNorm) for m in modules if isinstance(m, torch.nn.GroupNorm))


def test_attention_is_recorded_in_float32(model: BaseModel) -> None:
    precision.use_bf16_matmuls(model.denoiser)
    with attention.record_cross_attention(model, 2) as seen:
        _call(model)
    kept = [m for maps in seen.maps.values() for m in maps]
    assert kept and all(m.dtype == torch.float32 for m in kept)
    assert all(torch.allclose(m.sum(-1), torch.ones(()), atol=1e-5) for m in kept)  # bf16 would miss by 1e-2


def test_a_lora_added_later_learns_in_float32(model: BaseModel) -> None:
    precision.use_bf16_matmuls(model.denoiser)
    params = layers.add(model, 2, "all", 0)
    _call(model).square().mean().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in params if p.grad is not None)
    assert sum(float(p.grad.abs().sum()) for p in params if p.grad is not None) > 0


def test_gradients_agree_with_float32(model: BaseModel) -> None:
    params = layers.add(model, 2, "attention", 0)
    _call(model).square().mean().backward()
    exact = torch.cat([p.grad.flatten() for p in params])
    for p in params:
        p.grad = None
    precision.use_bf16_matmuls(model.denoiser)
    for p in params:  # halving after adding would halve the LoRA too: it is undone for this comparison
        p.data = p.data.float()
    _call(model).square().mean().backward()
    halved = torch.cat([p.grad.flatten() for p in params])
    assert torch.nn.functional.cosine_similarity(exact, halved, dim=0) > 0.99
