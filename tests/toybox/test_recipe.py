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
from objtune_cli.toybox.recipe import (
    clip_text,
    clip_vision,
    comparison,
    denoiser,
    latent_cache,
    optimizers,
    tokenizer,
    train_loop,
)
from objtune_cli.toybox.recipe import vae as autoencoder
from objtune_cli.toybox.recipe.dataset import ToyboxDataset
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


def test_muon_resumed_equals_unbroken_and_learns(tmp_path: Path) -> None:
    plan = replace(PLAN, steps=60, optimizer="muon", save_every=1e9)
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole = _fit(tmp_path / "a", plan=plan)
    with pytest.raises(Interrupted):
        _fit(tmp_path / "b", stop=7, plan=replace(plan, save_every=-1.0))
    resumed = _fit(tmp_path / "b", plan=plan)
    assert all(torch.equal(a, b) for a, b in zip(_weights(whole), _weights(resumed), strict=True))
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(5))
    errors = [float((n(x) - x.sum(1, keepdim=True)).square().mean()) for n in (whole, _network())]
    assert errors[0] < 0.3 * errors[1]


@pytest.mark.parametrize("shape", [(8, 8), (4, 12), (12, 4)])
def test_an_orthogonalized_matrix_keeps_its_directions_and_loses_its_sizes(shape: tuple[int, int]) -> None:
    g = torch.Generator().manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=g), full_matrices=False)
    singular = torch.linspace(1, 3, min(shape))
    out = optimizers.orthogonalize(u * singular @ v, torch.float32)
    found = (u.T @ out @ v.T).diagonal()
    assert out.shape == shape and bool(((found > 0.6) & (found < 1.25)).all())
    torch.testing.assert_close(out, u * found @ v, atol=1e-4, rtol=0)
    torch.testing.assert_close(optimizers.orthogonalize(u * singular @ v, torch.bfloat16), out, atol=0.06, rtol=0)


def test_a_step_of_muon_by_hand() -> None:
    """The update is 0.2 sqrt(max(m, n)) lr times the orthogonalized gradient, which is the momentum at first; vectors take AdamW's."""
    kernel = nn.Parameter(torch.ones(2, 3, 1, 1))
    bias = nn.Parameter(torch.zeros(2))
    optimizer = optimizers.build("muon", [kernel, bias], lr=0.1, weight_decay=0.01)
    gradient = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    kernel.grad, bias.grad = gradient.view(2, 3, 1, 1).clone(), torch.tensor([2.0, -3.0])
    optimizer.step()
    step = 0.1 * 0.2 * math.sqrt(3) * optimizers.orthogonalize(gradient)
    torch.testing.assert_close(kernel.detach().flatten(1), (1 - 0.1 * 0.01) * torch.ones(2, 3) - step)
    torch.testing.assert_close(bias.detach(), torch.tensor([-0.1, 0.1]), atol=1e-5, rtol=0)


def test_min_snr_weights_by_hand() -> None:
    """SNR 0, 1, 3 and 9: min(SNR, 5) / (SNR + 1) is 0, 1/2, 3/4 and 1/2, of mean 7/16."""
    weights = denoiser.min_snr_weights(torch.tensor([0.0, 0.5, 0.75, 0.9]))
    torch.testing.assert_close(weights, torch.tensor([0.0, 1 / 2, 3 / 4, 1 / 2]) * 16 / 7)


def _toy_data(count: int = 6, held_back: int = 2) -> ToyboxDataset:
    g = np.random.default_rng(0)
    return ToyboxDataset(
        pictures=g.integers(0, 256, (count, 32, 32, 3), np.uint8),
        masks=np.full((count, 16, 16), 255, np.uint8),
        captions=[["a dog"]] * count,
        labels=np.zeros((count, 2, 7), np.int8),
    )


TINY = replace(
    CPU, size=32, vae_channels=(16, 32), latent_channels=4, width=32, depth=1, heads=2, tokens=12, patch=8, captions=1,
    unet_channels=(16, 32), unet_attention=(False, True), denoiser_batch=2, vae_batch=3,
)  # fmt: skip


def test_latents_are_encoded_once_for_each_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_cache, "HELD_BACK", 2)
    monkeypatch.setattr(latent_cache, "SHARD", 3)
    data, vae = _toy_data(), autoencoder.build(TINY).eval()
    bank = latent_cache.load_or_encode(tmp_path, data, vae)
    with torch.no_grad():
        expected = vae.encode(autoencoder.to_tensor(data.pictures)).latent_dist.mean.permute(0, 2, 3, 1)
    np.testing.assert_allclose(bank, expected.numpy(), atol=2e-3)
    with monkeypatch.context() as patched:
        patched.setattr(vae, "encode", lambda _: pytest.fail("encoded again"))
        assert np.array_equal(latent_cache.load_or_encode(tmp_path, data, vae), bank)
        assert np.array_equal(latent_cache.load_or_encode(tmp_path, data, vae, 2), bank[[0, 1, 4, 5]])
    digest = latent_cache.encoder_digest(vae)
    with torch.no_grad():
        vae.decoder.conv_out.bias.add_(1)
        assert latent_cache.encoder_digest(vae) == digest
        vae.encoder.conv_out.bias.add_(1)
    assert latent_cache.encoder_digest(vae) != digest
    assert not np.array_equal(latent_cache.load_or_encode(tmp_path, data, vae), bank)


def test_the_decoder_alone_is_trained_without_a_change_of_the_latents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoencoder, "HELD_BACK", 2)
    vae = autoencoder.build(TINY)
    digest, decoder = latent_cache.encoder_digest(vae), [p.detach().clone() for p in vae.decoder.parameters()]
    assert autoencoder.train_decoder(tmp_path, TINY, _toy_data(), vae) is vae
    assert all(torch.equal(a, b) for a, b in zip(decoder, vae.decoder.parameters(), strict=True))  # no steps
    autoencoder.train_decoder(tmp_path, replace(TINY, decoder_steps=3), _toy_data(), vae)
    assert latent_cache.encoder_digest(vae) == digest
    assert not any(torch.equal(a, b) for a, b in zip(decoder, vae.decoder.parameters(), strict=True))
    again = autoencoder.train_decoder(tmp_path, TINY, _toy_data(), autoencoder.build(TINY))  # reads the state
    assert all(torch.equal(a, b) for a, b in zip(vae.decoder.parameters(), again.decoder.parameters(), strict=True))


def test_crops_show_the_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """The object is the lower right quarter; of 30 crops, the best one contains nearly all of it."""
    monkeypatch.setattr(autoencoder, "HELD_BACK", 2)
    data = _toy_data()
    data.masks[:] = 0
    data.masks[:, 8:, 8:] = 255
    data.pictures[:] = 0
    data.pictures[:, 16:, 16:] = 200
    preset, g = replace(TINY, vae_crops=30), torch.Generator().manual_seed(0)
    crops = autoencoder._sample_pictures(preset, data, g, whole=False)
    assert crops.shape == (3, 16, 16, 3) and crops.mean() > 0.6 * 200
    assert autoencoder._sample_pictures(preset, data, g, whole=True).shape == (1, 32, 32, 3)


def test_measures_of_a_reconstruction_by_hand() -> None:
    """Half of the range wrong on the object only, a quarter of the image: 20 log10(2) there, 6.02 more in all."""
    x = torch.zeros(1, 3, 8, 8)
    x[..., ::2] = 0.5
    cover = torch.zeros(1, 1, 8, 8)
    cover[..., :4, :4] = 1
    found = autoencoder.measure(x, x + cover, cover)
    assert found["object_psnr"] == pytest.approx(6.0206, abs=1e-3) and found["psnr"] == pytest.approx(12.041, abs=1e-3)
    assert found["l1"] == pytest.approx(0.125) and found["sharpness"] == pytest.approx(1)


def test_variants_train_for_equal_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that ticks once per reading: the time ends after as many steps, and the weights have moved."""
    network, ticks = _network(), itertools.count()
    before = _weights(network)

    def losses(step: int, g: torch.Generator) -> dict[str, torch.Tensor]:
        return {"fit": network(torch.randn(4, 4, generator=g)).square().mean()}

    assert comparison.train_for(network, losses, TINY, 5.0, lambda: float(next(ticks))) == 4
    assert not any(torch.equal(a, b) for a, b in zip(before, _weights(network), strict=True))


def test_a_comparison_starts_alike_and_reads_finished_variants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module, name in ((latent_cache, "HELD_BACK"), (denoiser, "HELD_BACK"), (comparison, "VALIDATION_IMAGES")):
        monkeypatch.setattr(module, name, 3)
    words = tokenizer.build(TINY.tokens)
    clip, vae = clip_text.build_clip(TINY, words), autoencoder.build(TINY).eval()
    data = _toy_data()
    found = comparison.run(tmp_path, TINY, data, words, clip, vae, seconds=1e-9)
    assert list(found) == ["start", *comparison.VARIANTS] and {v["steps"] for v in found.values()} == {0.0}
    assert len({v["v"] for v in found.values()}) == 1 and found["start"]["v"] == pytest.approx(
        found["start"]["v_object"]
    )
    capsys.readouterr()
    assert comparison.run(tmp_path, TINY, data, words, clip, vae, seconds=1e-9) == found
    assert capsys.readouterr().out == ""


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


def test_samples_are_rarer_than_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that ticks 10 s per reading, with saves at every step: samples are 50 s apart at least."""
    seconds, shown = itertools.count(0, 10), []
    monkeypatch.setattr(train_loop.time, "monotonic", lambda: float(next(seconds)))
    _fit(tmp_path, plan=replace(PLAN, sample_every=50.0), sample=lambda network, step: shown.append(step))
    assert shown == [3, 6, 9]


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
    x = autoencoder.to_tensor(np.array([[[[0, 255, 51]]]], np.uint8))
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
