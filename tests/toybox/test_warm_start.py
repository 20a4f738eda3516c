"""A larger base that starts from a smaller one: what is inherited, and that it still knows it."""

from dataclasses import replace
from pathlib import Path

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before transformers asks for it)

# isort: split
import pytest
import torch
import torch.nn.functional as F

from objtune_cli.toybox.recipe import clip_text, denoiser, tokenizer, vae
from objtune_cli.toybox.recipe.presets import CPU, Preset
from objtune_cli.toybox.recipe.warm_start import NEW_LOG_VARIANCE, PATCHES, load_start

SMALL = replace(
    CPU, size=32, vae_channels=(16, 32, 64), latent_channels=4, width=32, depth=1, heads=2, tokens=12, patch=8,
    unet_channels=(16, 32), unet_attention=(False, True), seed=1, start="",
)  # fmt: skip
LARGE = replace(SMALL, size=64, vae_channels=(16, 16, 32, 64), patch=16, seed=2)


def _clip(preset: Preset):
    return clip_text.build_clip(preset, tokenizer.build(preset.tokens)).eval()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published base with half the side."""
    folder = tmp_path_factory.mktemp("small")
    for part, network in (("vae", vae.build(SMALL)), ("unet", denoiser.build(SMALL)), ("clip", _clip(SMALL))):
        network.save_pretrained(folder / part)
    return folder


@pytest.fixture(scope="module")
def grown(small: Path) -> Preset:
    return replace(LARGE, start=str(small))


def _same(a: torch.nn.Module, b: torch.nn.Module) -> set[str]:
    """Names of equal tensors."""
    theirs = b.state_dict()
    return {k for k, v in a.state_dict().items() if k in theirs and torch.equal(v, theirs[k])}


def test_nothing_is_inherited_from_nowhere() -> None:
    network = torch.nn.Linear(2, 2)
    before = network.weight.clone()
    assert load_start(network, "", "vae") is network and torch.equal(network.weight, before)
    assert _same(vae.build(SMALL), vae.build(SMALL)) == set(vae.build(SMALL).state_dict())


def test_a_folder_without_that_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="contains no unet weights"):
        load_start(torch.nn.Linear(2, 2), str(tmp_path), "unet")


@pytest.mark.parametrize("build", [vae.build, denoiser.build, _clip], ids=["vae", "unet", "clip"])
def test_a_base_of_the_same_size_is_copied_whole(small: Path, build) -> None:
    """Built from another seed, so that every equal tensor was inherited."""
    again, own = build(replace(SMALL, seed=2, start=str(small))), build(SMALL)
    assert _same(again, own) == set(own.state_dict())


def test_the_denoiser_goes_on_where_it_was(grown: Preset) -> None:
    """The latent grid is the same."""
    z, t, c = (
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.tensor([3, 700]),
        torch.zeros(2, 12, 32),
    )
    with torch.no_grad():
        ours, theirs, fresh = (denoiser.build(p).eval()(z, t, c).sample for p in (grown, SMALL, LARGE))
    assert torch.equal(ours, theirs) and not torch.allclose(ours, fresh)


def test_the_autoencoders_coarse_levels_move_outward_by_one(grown: Preset) -> None:
    ours, old, fresh = (
        vae.build(grown).state_dict(),
        vae.build(SMALL).state_dict(),
        vae.build(LARGE).state_dict(),
    )
    moved = {k: v for k, v in old.items() if k.startswith("encoder.down_blocks.")}
    assert moved
    for key, value in moved.items():
        _, _, level, rest = key.split(".", 3)
        assert torch.equal(ours[f"encoder.down_blocks.{int(level) + 1}.{rest}"], value), key
    for key in (k for k in fresh if k.startswith(("encoder.down_blocks.0.", "encoder.conv_in."))):
        assert torch.equal(ours[key], fresh[key]), key  # the new level is new
    for key in (k for k in old if k.startswith(("encoder.mid_block.", "encoder.conv_out.", "decoder.conv_in.", "decoder.mid_block.", "decoder.up_blocks.", "quant_conv.", "post_quant_conv."))):  # fmt: skip
        assert torch.equal(ours[key], old[key]), key
    for key in (k for k in fresh if k.startswith("decoder.up_blocks.3.")):
        assert torch.equal(ours[key], fresh[key]), key


def _parts(network, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of the latents, and the image decoded from it."""
    with torch.no_grad():
        z = network.eval().encode(x).latent_dist.mean
        return z, network.decode(z).sample


WIDER = {
    "latents": {"latent_channels": 6},
    "channels": {"vae_channels": (16, 64, 128)},
    "both": {"latent_channels": 8, "vae_channels": (16, 64, 128)},
}


@pytest.mark.parametrize("fields", WIDER.values(), ids=WIDER)
def test_a_wider_autoencoder_draws_the_same(small: Path, fields: dict) -> None:
    """Its old latent channels and its images equal those of the start, until it is trained."""
    wide = replace(SMALL, seed=2, start=str(small), **fields)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    (z, y), (old_z, old_y) = _parts(vae.build(wide), x), _parts(vae.build(SMALL), x)
    torch.testing.assert_close(z[:, :4], old_z, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(y, old_y, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(_parts(vae.build(replace(wide, start="")), x)[1], old_y, atol=1e-2)


def test_duplicated_channels_become_different(small: Path) -> None:
    """Two channels with one gradient would stay equal for ever."""
    network = vae.build(replace(SMALL, start=str(small), vae_channels=(16, 64, 128)))
    network(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))).sample.square().sum().backward()
    gradient = network.decoder.up_blocks[0].resnets[0].conv1.weight.grad
    assert not torch.allclose(gradient[::2], gradient[1::2], rtol=1e-2)


def test_a_denoiser_for_more_latent_channels_ignores_them_at_first(small: Path) -> None:
    ours = denoiser.build(replace(SMALL, seed=2, start=str(small), latent_channels=6)).eval()
    z, t, c = (
        torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.tensor([3, 700]),
        torch.zeros(2, 12, 32),
    )
    with torch.no_grad():
        theirs = denoiser.build(SMALL).eval()(z[:, :4], t, c).sample
        torch.testing.assert_close(ours(z, t, c).sample[:, :4], theirs, atol=2e-5, rtol=1e-4)


def test_additional_latent_channels_have_little_noise(small: Path) -> None:
    network = vae.build(replace(SMALL, seed=2, start=str(small), latent_channels=6)).eval()
    with torch.no_grad():
        x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        assert float(network.encode(x).latent_dist.logvar[:, 4:].max()) == pytest.approx(NEW_LOG_VARIANCE)


def test_the_grown_autoencoder_has_the_same_grid_of_latents(grown: Preset) -> None:
    with torch.no_grad():
        z = vae.build(grown).encode(torch.zeros(1, 3, 64, 64)).latent_dist.mean
    assert z.shape == (1, 4, 8, 8) == (1, SMALL.latent_channels, SMALL.size // SMALL.factor, SMALL.size // SMALL.factor)


def test_the_image_tower_reads_an_enlarged_picture_as_it_read_the_small_one(grown: Preset) -> None:
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    large = F.interpolate(x, scale_factor=2, mode="nearest")
    with torch.no_grad():
        old, ours, fresh = (
            m.vision_model(pixel_values=p).pooler_output
            for m, p in ((_clip(SMALL), x), (_clip(grown), large), (_clip(LARGE), large))
        )
    torch.testing.assert_close(ours, old, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(fresh, old, atol=1e-2)


def test_a_patch_filter_is_spread_with_its_sum_kept(grown: Preset) -> None:
    own, old = _clip(grown).state_dict()[PATCHES], _clip(SMALL).state_dict()[PATCHES]
    assert own.shape[-2:] == (16, 16) and old.shape[-2:] == (8, 8)
    torch.testing.assert_close(own.sum((2, 3)), old.sum((2, 3)))
    torch.testing.assert_close(own[..., ::2, ::2], old / 4)
    torch.testing.assert_close(own[..., 1::2, 1::2], old / 4)


def test_the_text_tower_is_inherited_whole(grown: Preset) -> None:
    own, old = _clip(grown), _clip(SMALL)
    names = {k for k in old.state_dict() if k.startswith(("text_model.", "text_projection."))}
    assert names and names <= _same(own, old)


def test_what_was_inherited_is_said(grown: Preset, small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = len(denoiser.build(grown).state_dict())
    assert capsys.readouterr().out == f"unet: {count} of {count} tensors from {small}\n"
