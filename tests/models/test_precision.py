"""Products in bf16 on a processor: what enters and leaves stays float32, and gradients reach an added LoRA."""

import torch

from objtune_cli.models import adapter, precision
from objtune_cli.models.stack import Stack


def _call(stack: Stack) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(2, stack.unet.config.in_channels, 8, 8, generator=g)
    return stack.predict(z, torch.tensor([100, 700]), stack.encode(["a photo of a dog", "a cat"]))


def test_halved_denoiser_predicts_as_before_within_bf16(stack: Stack) -> None:
    with torch.no_grad():
        before = _call(stack)
        precision.halve(stack.unet)
        after = _call(stack)
    assert after.dtype == torch.float32
    assert not torch.equal(before, after), "nothing was halved"
    assert (after - before).norm() < 0.03 * before.norm()


def test_products_are_halved_and_norms_are_not(stack: Stack) -> None:
    precision.halve(stack.unet)
    kinds = {type(m): m.weight.dtype for m in stack.unet.modules() if getattr(m, "weight", None) is not None}
    assert kinds[torch.nn.Linear] == kinds[torch.nn.Conv2d] == torch.bfloat16
    assert kinds[precision.FloatGroupNorm] == kinds[torch.nn.LayerNorm] == torch.float32
    assert torch.nn.GroupNorm not in kinds


def test_a_lora_added_later_learns_in_float32(stack: Stack) -> None:
    precision.halve(stack.unet)
    params = adapter.add(stack, 2, "all", 0)
    _call(stack).square().mean().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in params if p.grad is not None)
    assert sum(float(p.grad.abs().sum()) for p in params if p.grad is not None) > 0


def test_gradients_agree_with_float32(stack: Stack) -> None:
    params = adapter.add(stack, 2, "attention", 0)
    _call(stack).square().mean().backward()
    exact = torch.cat([p.grad.flatten() for p in params])
    for p in params:
        p.grad = None
    precision.halve(stack.unet)
    for p in params:  # halving after adding would halve the LoRA too: it is undone for this comparison
        p.data = p.data.float()
    _call(stack).square().mean().backward()
    halved = torch.cat([p.grad.flatten() for p in params])
    assert torch.nn.functional.cosine_similarity(exact, halved, dim=0) > 0.99
