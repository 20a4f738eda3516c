"""masked_mse and mse against closed forms."""

import pytest
import torch

from objtune_cli.numerics.losses import masked_mse, mse


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_full_mask_is_the_plain_mean() -> None:
    pred, target = _random(3, 4, 6, 5), _random(3, 4, 6, 5, seed=1)
    expected = (pred - target).pow(2).mean(dim=(1, 2, 3))
    torch.testing.assert_close(masked_mse(pred, target, torch.ones(3, 1, 6, 5)), expected)
    torch.testing.assert_close(mse(pred, target), expected)


def test_hard_mask_is_the_mean_over_the_crop() -> None:
    pred, target = _random(2, 4, 8, 8), _random(2, 4, 8, 8, seed=1)
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:5, 1:7] = 1
    expected = (pred - target)[:, :, 2:5, 1:7].pow(2).mean(dim=(1, 2, 3))
    torch.testing.assert_close(masked_mse(pred, target, mask), expected)


def test_soft_mask_by_hand() -> None:
    # Errors 2 and 1, squared 4 and 1, weights 1 and 1/2: (4 + 0.5) / 1.5 = 3.
    pred = torch.tensor([[[[2.0, 1.0]]]])
    mask = torch.tensor([[[[1.0, 0.5]]]])
    torch.testing.assert_close(masked_mse(pred, torch.zeros_like(pred), mask), torch.tensor([3.0]))


def test_a_small_object_weighs_as_much_as_a_large_one() -> None:
    mask = torch.zeros(2, 1, 16, 16)
    mask[0, :, :1, :1], mask[1, :, :12, :12] = 1, 1
    loss = masked_mse(torch.full((2, 4, 16, 16), 0.5), torch.zeros(2, 4, 16, 16), mask)
    torch.testing.assert_close(loss, torch.tensor([0.25, 0.25]))


def test_empty_mask_is_zero_and_so_is_its_gradient() -> None:
    pred = _random(2, 4, 3, 3).requires_grad_()
    loss = masked_mse(pred, torch.zeros(2, 4, 3, 3), torch.zeros(2, 1, 3, 3))
    loss.sum().backward()
    assert loss.tolist() == [0, 0]
    assert pred.grad is not None and not pred.grad.any()


def test_what_lies_outside_the_mask_does_not_count() -> None:
    pred, target = _random(1, 4, 4, 4), _random(1, 4, 4, 4, seed=1)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    other = pred.clone()
    other[..., 2:] = 1e3
    torch.testing.assert_close(masked_mse(other, target, mask), masked_mse(pred, target, mask), rtol=0, atol=0)


def test_samples_do_not_touch_each_other() -> None:
    pred, target = _random(3, 2, 4, 4), _random(3, 2, 4, 4, seed=1)
    mask = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    alone = [masked_mse(pred[i : i + 1], target[i : i + 1], mask[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(masked_mse(pred, target, mask), torch.cat(alone))
    torch.testing.assert_close(
        mse(pred, target), torch.cat([mse(pred[i : i + 1], target[i : i + 1]) for i in range(3)])
    )


def test_half_precision_is_summed_in_float32() -> None:
    pred = torch.full((1, 4, 64, 64), 200.0, dtype=torch.float16)  # 200² · 4096 overflows float16
    loss = masked_mse(pred, torch.zeros_like(pred), torch.ones(1, 1, 64, 64, dtype=torch.float16))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.tensor([40_000.0]))
    assert mse(pred, torch.zeros_like(pred)).dtype == torch.float32


def test_arguments_stay_as_they_are() -> None:
    given = (_random(2, 4, 3, 3), _random(2, 4, 3, 3, seed=1), torch.rand(2, 1, 3, 3))
    before = [g.clone() for g in given]
    masked_mse(*given)
    mse(*given[:2])
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


def test_gradient_by_hand() -> None:
    # d/dp of sum m (p - t)² / (C sum m) is 2 m (p - t) / (C sum m).
    pred, target = _random(2, 4, 3, 3).requires_grad_(), _random(2, 4, 3, 3, seed=1)
    mask = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(3))
    masked_mse(pred, target, mask).sum().backward()
    expected = 2 * mask * (pred.detach() - target) / (4 * mask.sum(dim=(1, 2, 3), keepdim=True))
    torch.testing.assert_close(pred.grad, expected)


@pytest.mark.parametrize("shape", [(2, 4, 3, 4), (1, 4, 3, 3), (2, 3, 3, 3)])
def test_shapes_must_agree(shape: tuple[int, ...]) -> None:
    pred = torch.zeros(2, 4, 3, 3)
    with pytest.raises(ValueError, match="differ"):
        masked_mse(pred, torch.zeros(shape), torch.ones(2, 1, 3, 3))
    with pytest.raises(ValueError, match="differ"):
        mse(pred, torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 3, 3), (2, 4, 3, 3), (1, 1, 3, 3), (2, 1, 6, 6)])
def test_the_mask_must_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        masked_mse(torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3), torch.ones(shape))
