"""Noising, targets, timesteps and the randomness of one step."""

import math

import pytest
import torch

from objtune_cli.numerics.ddpm import add_noise, seeded, step_generator, target, timesteps

LEVELS = torch.tensor([1.0, 0.64, 0.25, 0.0], dtype=torch.float64)
"""alpha_bar with round square roots: 1, 0.8, 0.5, 0, and of the rest 0, 0.6, sqrt(0.75), 1."""


def _pair(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(count, 4, 3, 5, generator=g, dtype=torch.float64), torch.randn(
        count, 4, 3, 5, generator=g, dtype=torch.float64
    )


def test_limits_are_the_picture_and_the_noise() -> None:
    z, eps = _pair(2)
    torch.testing.assert_close(add_noise(z, eps, LEVELS, torch.tensor([0, 0])), z, rtol=0, atol=0)
    torch.testing.assert_close(add_noise(z, eps, LEVELS, torch.tensor([3, 3])), eps, rtol=0, atol=0)
    torch.testing.assert_close(target(z, eps, LEVELS, torch.tensor([0, 0]), "v_prediction"), eps, rtol=0, atol=0)
    torch.testing.assert_close(target(z, eps, LEVELS, torch.tensor([3, 3]), "v_prediction"), -z, rtol=0, atol=0)


def test_each_row_has_its_own_level() -> None:
    z, eps = _pair(2)
    mixed = add_noise(z, eps, LEVELS, torch.tensor([1, 2]))
    torch.testing.assert_close(mixed[0], 0.8 * z[0] + 0.6 * eps[0])
    torch.testing.assert_close(mixed[1], 0.5 * z[1] + math.sqrt(0.75) * eps[1])


def test_clean_latent_comes_back_from_every_kind_of_prediction() -> None:
    z, eps = _pair(4)
    t = torch.arange(4)
    z_t = add_noise(z, eps, LEVELS, t)
    a, s = LEVELS.sqrt().view(4, 1, 1, 1), (1 - LEVELS).sqrt().view(4, 1, 1, 1)
    v = target(z, eps, LEVELS, t, "v_prediction")
    torch.testing.assert_close(a * z_t - s * v, z)  # v form: at every level, pure noise too
    torch.testing.assert_close(s * z_t + a * v, eps)
    some = slice(0, 3)  # eps form: not where no picture is left
    torch.testing.assert_close((z_t - s * target(z, eps, LEVELS, t, "epsilon"))[some] / a[some], z[some])
    torch.testing.assert_close(target(z, eps, LEVELS, t, "sample"), z)


def test_v_is_the_derivative_of_z_t_along_the_angle() -> None:
    # z_t = cos(phi) z + sin(phi) eps, so dz_t/dphi = cos(phi) eps - sin(phi) z.
    z, eps = _pair(1)
    phi, h = 0.7, 1e-5
    around = torch.tensor([math.cos(phi - h) ** 2, math.cos(phi + h) ** 2, math.cos(phi) ** 2], dtype=torch.float64)
    slope = (add_noise(z, eps, around, torch.tensor([1])) - add_noise(z, eps, around, torch.tensor([0]))) / (2 * h)
    torch.testing.assert_close(target(z, eps, around, torch.tensor([2]), "v_prediction"), slope, rtol=1e-8, atol=1e-8)


def test_unknown_prediction_is_refused() -> None:
    z, eps = _pair(1)
    with pytest.raises(ValueError, match="'flow'"):
        target(z, eps, LEVELS, torch.tensor([1]), "flow")


def test_arguments_stay_and_the_dtype_too() -> None:
    z, eps = (x.half() for x in _pair(2))
    before = z.clone(), eps.clone(), LEVELS.clone()
    assert add_noise(z, eps, LEVELS, torch.tensor([1, 2])).dtype == torch.float16
    assert target(z, eps, LEVELS, torch.tensor([1, 2]), "v_prediction").dtype == torch.float16
    assert all(torch.equal(a, b) for a, b in zip((z, eps, LEVELS), before, strict=True))


def _draw(seed: int, step: int) -> torch.Tensor:
    return torch.randn(1000, generator=step_generator(seed, step))


def test_a_step_has_always_the_same_randomness() -> None:
    first = _draw(7, 3)
    torch.manual_seed(99)
    _draw(7, 4)
    assert torch.equal(_draw(7, 3), first)


def test_steps_and_seeds_are_independent() -> None:
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0xFFFFFFFF), (2**31 - 1, 0)]
    draws = torch.stack([_draw(*p) for p in pairs])
    correlation = torch.corrcoef(draws) - torch.eye(len(pairs))
    assert correlation.abs().max() < 5 / math.sqrt(1000)  # five standard deviations


@pytest.mark.parametrize("seed", [0, 3698135662, 2**32 - 1])
def test_a_seed_of_32_bits_is_the_one_that_torch_knows(seed: int) -> None:
    expected = torch.randn(8, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(torch.randn(8, generator=seeded(seed)), expected)


def test_larger_seeds_are_not_cut_to_32_bits() -> None:
    seeds = [0, 1, 2**32, 2**32 + 1, 1125899906842624, 2**63, 2**64 - 1]
    draws = torch.stack([torch.randn(1000, generator=seeded(seed)) for seed in seeds])
    assert torch.equal(torch.randn(1000, generator=seeded(2**63)), draws[5])
    assert (torch.corrcoef(draws) - torch.eye(len(seeds))).abs().max() < 5 / math.sqrt(1000)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    timesteps(16, 1000, step_generator(1, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_timesteps_are_indices_and_cover_the_range() -> None:
    t = timesteps(20_000, 50, step_generator(0, 0), focus=(0.4, 0.98), share=0.6)
    assert t.dtype == torch.int64 and t.shape == (20_000,)
    assert sorted(set(t.tolist())) == list(range(50))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_the_share_within_the_focus(share: float) -> None:
    # Of the rest, 20..48 out of 50 fall into the focus by chance: share + (1 - share) · 29 / 50.
    n = 20_000
    t = timesteps(n, 50, step_generator(0, 0), focus=(0.4, 0.98), share=share)
    expected = share + (1 - share) * 29 / 50
    inside = ((t >= 20) & (t < 49)).float().mean().item()
    assert abs(inside - expected) <= 5 * math.sqrt(expected * (1 - expected) / n)


def test_a_focus_narrower_than_one_step_still_works() -> None:
    t = timesteps(100, 10, step_generator(0, 0), focus=(0.5, 0.5), share=1.0)
    assert t.tolist() == [5] * 100
