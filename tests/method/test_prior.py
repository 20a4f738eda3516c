"""The class prior: samples of the frozen base and its predictions for them."""

from dataclasses import replace

import torch

from objtune_cli.config import Prior
from objtune_cli.method import prior
from objtune_cli.models.stack import Stack

CONFIG = Prior(samples=3, entries=7)


def test_shapes_and_types(stack: Stack) -> None:
    kept = prior.compute(stack, "dog", CONFIG, 3.0)
    assert {k: tuple(v.shape) for k, v in kept.items()} == {"latents": (3, 4, 8, 8), "z_t": (7, 4, 8, 8), "t": (7,), "pred": (7, 4, 8, 8)}
    assert kept["t"].dtype == torch.int64
    assert all(v.dtype == torch.float32 and v.isfinite().all() for k, v in kept.items() if k != "t")
    assert int(kept["t"].min()) >= 0 and int(kept["t"].max()) < 1000


def test_predictions_are_the_frozen_bases(stack: Stack) -> None:
    kept = prior.compute(stack, "owl", replace(CONFIG, entries=11), 3.0)  # more than one batch of 8
    with torch.no_grad():
        own = stack.predict(kept["z_t"], kept["t"], stack.encode(["a photo of an owl"]).expand(11, -1, -1))
    torch.testing.assert_close(kept["pred"], own, rtol=1e-4, atol=1e-5)


def test_noised_latents_are_the_samples_plus_unit_noise(stack: Stack) -> None:
    kept = prior.compute(stack, "dog", replace(CONFIG, entries=60), 3.0)
    level = stack.alpha_bar[kept["t"]].view(-1, 1, 1, 1)
    noise = (kept["z_t"] - level.sqrt() * kept["latents"][torch.arange(60) % 3]) / (1 - level).sqrt()
    assert abs(float(noise.mean())) < 0.04 and abs(float(noise.std()) - 1) < 0.03  # 15 360 values: five standard errors
    assert torch.corrcoef(noise.flatten(1)).fill_diagonal_(0).abs().max() < 0.4


def test_same_seed_same_prior_other_seed_another(stack: Stack) -> None:
    first, again = prior.compute(stack, "dog", CONFIG, 3.0), prior.compute(stack, "dog", CONFIG, 3.0)
    other = prior.compute(stack, "dog", replace(CONFIG, seed=1), 3.0)
    for k in first:
        assert torch.equal(first[k], again[k])
        assert not torch.equal(first[k], other[k])


def test_more_samples_do_not_change_the_first_ones(stack: Stack) -> None:
    few, many = (prior.compute(stack, "dog", replace(CONFIG, samples=n), 3.0)["latents"] for n in (2, 6))
    torch.testing.assert_close(many[:2], few, rtol=0, atol=1e-4)


def test_the_class_matters(stack: Stack) -> None:
    dog, mug = (prior.compute(stack, word, CONFIG, 3.0) for word in ("dog", "mug"))
    assert not torch.allclose(dog["pred"], mug["pred"])


def test_progress_counts_samples(stack: Stack) -> None:
    seen: list[tuple[int, int]] = []
    prior.compute(stack, "dog", Prior(samples=6, entries=2), 3.0, lambda done, total: seen.append((done, total)))
    assert seen == [(4, 6), (6, 6)]
