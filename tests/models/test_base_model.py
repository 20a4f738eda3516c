"""Opening a base: what it says of itself, what it computes, how it fails."""

import shutil
import weakref
from pathlib import Path

import pytest
import torch

from objtune_cli.errors import DamagedError, IncompatibleError, MissingError, ResourceError
from objtune_cli.models import base_model, loading
from objtune_cli.models.base_model import BaseModel
from objtune_cli.runtime import cpu, devices

CPU = torch.device("cpu")


def test_numbers_of_the_tiny_base(model: BaseModel) -> None:
    assert (model.vae_scale_factor, model.resolution, model.prediction) == (4, 32, "epsilon")
    assert model.alpha_bar.shape == (1000,)
    assert model.alpha_bar[0] == pytest.approx(1 - 0.00085)  # the first beta


def test_everything_is_frozen_and_in_eval_mode(model: BaseModel) -> None:
    for module in (model.text_encoder, model.denoiser, model.vae):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_text_encoders_keep_their_own_numbers_in_any_precision(model: BaseModel, tiny_base: Path) -> None:
    half = loading.load(tiny_base, CPU, torch.bfloat16)
    assert half.denoiser.dtype == torch.bfloat16 and half.encode_prompt(["a dog"]).dtype == torch.bfloat16
    pairs = zip(half.text_encoder.parameters(), model.text_encoder.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_prompts_are_padded_and_cut_to_the_encoders_length(model: BaseModel) -> None:
    ids = model.token_ids(["", "a dog", "x" * 300])
    assert ids.shape == (3, 77)
    eos = model.tokenizer.eos_token_id
    assert (ids == eos).sum(1).tolist() == [76, 77 - 5, 1]  # start, then nothing; a, d, o, g; cut
    assert model.encode_prompt(["", "a dog", "x" * 300]).sequence.shape == (3, 77, 16)


def test_latents_do_not_depend_on_how_many_are_taken_at_once_and_have_the_right_size(
    model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = model.encode_image(pictures)
    assert latents.shape == (3, 4, 8, 8)
    monkeypatch.setattr(base_model, "VAE_PIXELS_PER_BATCH", 2 * 32 * 32)
    assert base_model.vae_batch_size(32, 32) == 2 and base_model.vae_batch_size(512, 512) == 1
    torch.testing.assert_close(model.encode_image(pictures), latents)
    scaled = model.vae.encode(pictures).latent_dist.mean * model.vae.config.scaling_factor
    torch.testing.assert_close(latents, scaled.detach())


def test_pictures_are_in_range_and_undo_the_scaling(model: BaseModel) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    shown = model.decode_latents(latents)
    assert shown.shape == (2, 3, 32, 32) and shown.abs().max() <= 1
    torch.testing.assert_close(
        shown, model.vae.decode(latents / model.vae.config.scaling_factor).sample.detach().clamp(-1, 1)
    )


def test_predict_is_the_denoiser_itself(model: BaseModel) -> None:
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([5, 900])
    condition = model.encode_prompt(["a dog", "a cat"])
    with torch.no_grad():
        both = model.predict(z, t, condition)
        torch.testing.assert_close(both[1:], model.predict(z[1:], t[1:], condition[1:]), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(both[:1], model.predict(z[:1], t[:1], condition[1:]))  # the prompt matters


@pytest.mark.parametrize(
    ("name", "kind"), [("auto", "PNDM"), ("ddim", "DDIM"), ("euler", "EulerDiscrete"), ("dpm++", "DPMSolverMultistep")]
)
def test_samplers_keep_the_noise_levels(model: BaseModel, name: str, kind: str) -> None:
    sampler = model.pipeline(name).scheduler
    assert type(sampler).__name__ == f"{kind}Scheduler"
    assert sampler.config.prediction_type == "epsilon"
    torch.testing.assert_close(sampler.alphas_cumprod, model.alpha_bar)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(tiny_base: Path, tmp_path: Path, part: str) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    shutil.rmtree(folder / part)
    with pytest.raises(MissingError, match=f"missing: {part}/"):
        loading.load(folder, CPU, torch.float32)


@pytest.mark.parametrize("keep", [0, 100, 5000])
@pytest.mark.parametrize(
    "file",
    [
        "unet/diffusion_pytorch_model",
        "vae/diffusion_pytorch_model",
        "text_encoder/model",
    ],
)
def test_truncated_weights_are_an_error_with_a_hint(tiny_base: Path, tmp_path: Path, file: str, keep: int) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    weights = folder / f"{file}.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(DamagedError, match="damaged") as caught:
        loading.load(folder, CPU, torch.float32)
    assert "download" in caught.value.hint


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (file, text)
        for file in (
            "unet/config.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "tokenizer/tokenizer.json",
        )
        for text in ("", "{", "[]")
    ],
)
def test_broken_configs_are_an_error_with_a_hint(tiny_base: Path, tmp_path: Path, file: str, text: str) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    (folder / file).write_text(text)
    with pytest.raises(DamagedError, match="damaged") as caught:
        loading.load(folder, CPU, torch.float32)
    assert "download" in caught.value.hint


def test_pickled_weights_are_not_opened(tiny_base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(IncompatibleError, match="weights of unet only as a pickle"):
        loading.load(folder, CPU, torch.float32)


def test_devices_and_precisions() -> None:
    assert devices.pick_device("cpu") == CPU
    assert loading.pick_dtype("auto", CPU) == torch.float32
    assert loading.pick_dtype("bf16", CPU) == torch.bfloat16
    for name in ("toaster", "cuda:63"):
        with pytest.raises(ResourceError, match=f"device {name} is not available"):
            devices.pick_device(name)


def test_keeping_memory_is_harmless() -> None:
    cpu.tune_malloc()
    cpu.tune_malloc()
    assert torch.ones(1000).sum() == 1000


def test_an_autoencoder_that_rests_leaves_memory_and_comes_back_the_same(model: BaseModel) -> None:
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before, gone = model.encode_image(pictures), weakref.ref(model.vae)
    model.offload_vae()
    assert gone() is None
    assert (model.vae_scale_factor, model.resolution, model.loaded_vae) == (4, 32, None)  # asked without opening it
    assert torch.equal(model.encode_image(pictures), before)
    assert not any(p.requires_grad for p in model.vae.parameters())
