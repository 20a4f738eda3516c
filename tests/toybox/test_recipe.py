"""The recipe's training loop and its pieces of arithmetic."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before transformers asks for it)
from objtune_cli.toybox.recipe import clip_text, clip_vision, denoiser, tokenizer
from objtune_cli.toybox.recipe import vae as autoencoder
from objtune_cli.toybox.recipe.presets import CPU, PRESETS
from objtune_cli.toybox.recipe.train_loop import Plan, fit

PLAN = Plan(steps=10, lr=0.05, warmup=3, ema=0.9, save_every=-1.0)  # saves after every step


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


class Interrupted(Exception):
    """Stands for a killed process."""


def _fit(
    work: Path, *, stop: int | None = None, seen: list[int] | None = None, plan: Plan = PLAN, sample=None
) -> nn.Module:
    network = _network()

    def losses(step: int, g: torch.Generator) -> dict[str, torch.Tensor]:
        if step == stop:
            raise Interrupted
        if seen is not None:
            seen.append(step)
        x = torch.randn(16, 4, generator=g)
        return {
            "fit": (network(x) - x.sum(1, keepdim=True)).square().mean(),
            "size": 1e-3 * network[0].weight.square().sum(),
        }

    return fit("part", network, losses, plan, work, sample=sample and (lambda step: sample(network, step)))


def _weights(network: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def test_resumed_equals_unbroken_bit_for_bit(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole = _weights(_fit(tmp_path / "a"))
    seen: list[int] = []
    with pytest.raises(Interrupted):
        _fit(tmp_path / "b", stop=5, seen=seen)
    resumed = _weights(_fit(tmp_path / "b", seen=seen))
    assert seen == list(range(10))
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert (tmp_path / "a" / "part.safetensors").read_bytes() == (tmp_path / "b" / "part.safetensors").read_bytes()


def test_a_finished_part_is_only_read(tmp_path: Path) -> None:
    first = _weights(_fit(tmp_path))
    seen: list[int] = []
    again = _fit(tmp_path, seen=seen)
    assert seen == [] and not again.training
    assert all(torch.equal(a, b) for a, b in zip(first, _weights(again), strict=True))


def test_it_learns_and_gives_back_the_average(tmp_path: Path) -> None:
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(5))

    def error(network: nn.Module) -> float:
        with torch.no_grad():
            return float((network(x) - x.sum(1, keepdim=True)).square().mean())

    trained = _fit(tmp_path, plan=replace(PLAN, steps=60, save_every=1e9))
    assert error(trained) < 0.3 * error(_network())


def test_average_by_hand(tmp_path: Path) -> None:
    """After one step: kept share min(ema, 1 / 10), so 0.1 of the start and 0.9 of the stepped weights."""
    averaged = _weights(_fit(tmp_path, plan=replace(PLAN, steps=1)))
    from safetensors.torch import load_file

    state = load_file(tmp_path / "part.safetensors")
    start, stepped = _weights(_network()), [state[f"net.{n}"] for n, _ in _network().named_parameters()]
    for mean, before, after in zip(averaged, start, stepped, strict=True):
        torch.testing.assert_close(mean, 0.1 * before + 0.9 * after)


def test_samples_are_drawn_with_the_average_in_place_and_training_goes_on(tmp_path: Path) -> None:
    shown: list[tuple[int, bool]] = []
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    sampled = _fit(tmp_path / "a", sample=lambda network, step: shown.append((step, network.training)))
    assert shown == [(s, False) for s in range(1, 10)]
    assert all(torch.equal(a, b) for a, b in zip(_weights(sampled), _weights(_fit(tmp_path / "b")), strict=True))


def test_rate_rises_stays_and_falls() -> None:
    plan = Plan(steps=1000, lr=2.0, decay=0.25, warmup=100)
    assert plan.rate(0) == pytest.approx(2.0 / 100)
    assert plan.rate(49) == pytest.approx(1.0)
    assert plan.rate(99) == plan.rate(100) == plan.rate(750) == 2.0
    assert plan.rate(875) == pytest.approx(2 * (0.01 + 0.99 / 2))  # half way down
    assert plan.rate(1000) == pytest.approx(0.02)
    rates = [plan.rate(s) for s in range(1000)]
    assert all(a <= b for a, b in itertools.pairwise(rates[:750]))
    assert all(a >= b for a, b in itertools.pairwise(rates[750:]))


def test_noise_levels_end_in_pure_noise() -> None:
    levels = denoiser.scheduler().alphas_cumprod
    assert levels.shape == (1000,)
    assert float(levels[-1]) == pytest.approx(0, abs=1e-7) and float(levels[0]) == pytest.approx(1 - 0.00085, abs=1e-3)
    assert bool((levels[:-1] > levels[1:]).all())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_together(name: str) -> None:
    preset = PRESETS[name]
    assert preset.size % preset.factor == 0 and preset.size % preset.patch == 0
    assert preset.width % preset.heads == 0
    assert len(preset.unet_channels) == len(preset.unet_attention)
    assert preset.size // preset.factor == 16  # masks are kept at the latents' size


def test_parts_of_the_cpu_preset_fit_each_other() -> None:
    words = tokenizer.build(CPU.tokens)
    clip = clip_text.build_clip(CPU, words).eval()
    unet, vae = denoiser.build(CPU), autoencoder.build(CPU)
    with torch.no_grad():
        z = vae.encode(torch.zeros(1, 3, CPU.size, CPU.size)).latent_dist.mean
        ids = words(["a red dog"], padding="max_length", max_length=CPU.tokens, return_tensors="pt").input_ids
        states = clip.text_model(input_ids=ids).last_hidden_state
        assert unet(z, torch.tensor([5]), states).sample.shape == z.shape == (1, CPU.latent_channels, 16, 16)
    assert sum(p.numel() for m in (unet, vae, clip) for p in m.parameters()) * 2 < 48e6  # bytes, in half precision


def test_pictures_to_the_unit_range() -> None:
    x = autoencoder.to_unit(np.array([[[[0, 255, 51]]]], np.uint8))
    torch.testing.assert_close(x, torch.tensor([-1.0, 1.0, -0.6]).view(1, 3, 1, 1))


def test_clips_input_is_zero_at_its_mean_colour() -> None:
    mean = torch.tensor(clip_vision.MEAN).view(1, 3, 1, 1)
    torch.testing.assert_close(clip_vision.normalize(mean * 2 - 1), torch.zeros(1, 3, 1, 1), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        clip_vision.normalize((mean + torch.tensor(clip_vision.STD).view(1, 3, 1, 1)) * 2 - 1), torch.ones(1, 3, 1, 1)
    )


@pytest.mark.parametrize(
    ("caption", "left"),
    [
        ("a dog on the beach", "a dog"),
        ("a dog facing left under water", "a dog facing left"),
        ("a dog", "a dog"),
        ("a mug on a wood floor", "a mug"),
    ],
)
def test_captions_without_their_place(caption: str, left: str) -> None:
    assert clip_vision.without_place(caption) == left


def test_contrast_of_perfect_and_of_shuffled_pairs() -> None:
    """Unit vectors at right angles, logits 30 and 0: -log(e^30 / (e^30 + 2)) and -log(1 / (e^30 + 2))."""
    eye = torch.eye(3)
    texts = ["a", "b", "c"]
    assert float(clip_vision.contrastive_loss(eye, eye, texts)) == pytest.approx(0, abs=1e-6)
    assert float(clip_vision.contrastive_loss(eye, eye.roll(1, 0), texts)) == pytest.approx(
        math.log(math.exp(30) + 2), rel=1e-5
    )
    # Two equal captions share the weight: their pictures may match either.
    same = torch.stack([eye[0], eye[0], eye[2]])
    assert float(clip_vision.contrastive_loss(same, same, ["a", "a", "c"])) == pytest.approx(
        2 * math.log(2) / 3, abs=1e-5
    )


def test_cut_out_rows_show_the_object_alone_and_enlarged() -> None:
    pictures = torch.ones(2, 3, 32, 32)
    masks = torch.zeros(2, 1, 16, 16)
    masks[:, :, 6:10, 6:10] = 1
    out, cover = clip_vision.cut_out(pictures, masks, torch.tensor([False, True]))
    torch.testing.assert_close(out[0], pictures[0])
    assert float(cover[0].mean()) == pytest.approx(float(masks[0].mean()), rel=0.1)
    assert float(cover[1].mean()) > 0.6 and float(out[1, 0, 16, 16]) == pytest.approx(1)
    assert float(out[1, 0, 0, 0]) < 0.3  # the margin shows the mean colour, zero


def test_distraction_inserts_one_token_and_moves_the_nouns() -> None:
    eos = 99
    ids = torch.tensor([[98, 1, 2, 3, eos, eos, eos, eos]] * 64)
    nouns = ids == 2
    out, moved = clip_text._distract(ids, nouns, torch.tensor([50]), eos, torch.Generator().manual_seed(0))
    changed = (out != ids).any(1)
    assert 5 < int(changed.sum()) < 45  # about a third
    assert bool((out[moved] == 2).all()) and bool((moved.sum(1) == 1).all())
    for row in out[changed].tolist():
        words = row[: row.index(eos)]
        assert words[0] == 98 and len(words) == 5 and [w for w in words if w in (1, 2, 3)][-3:] != [] and row[-1] == eos
