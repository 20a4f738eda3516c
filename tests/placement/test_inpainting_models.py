"""Inpainting checkpoints: equal to the pipelines of diffusers, usable by `place` alone, and refused by name elsewhere."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from objtune_cli.errors import IncompatibleError
from objtune_cli.generation.settings import SamplingSettings
from objtune_cli.models import loading, registry
from objtune_cli.models.base_model import BaseModel
from objtune_cli.placement.crops import Crop, CroppedRegion
from objtune_cli.placement.inpainting import Inpainter, decode
from objtune_cli.placement.regions import from_pixels
from objtune_cli.store import refs
from objtune_cli.store.store import Store
from tests.support import inpainting_bases, single_file_checkpoints, tiny_families

CPU = torch.device("cpu")
PROMPT = "a photo of a dog"
SEEDS = (5, 6)


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("inpainting")
    plain = {"sd1": tiny_families.sd1, "sdxl": tiny_families.sdxl}[request.param](top / "plain")
    return inpainting_bases.widen(plain, top / "checkpoint")


def cropped(model: BaseModel) -> CroppedRegion:
    """A region in a picture that is as large as the base's own images, so that the crop is the picture."""
    side = model.resolution
    picture = np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)
    region = from_pixels((side // 4, side // 4, side, side // 4 + 16), (side, side))
    return CroppedRegion(picture, region, Crop(0, 0, side), side, 0.0)


@pytest.mark.parametrize("change", [0.5, 1.0])
def test_a_region_is_filled_as_by_diffusers(checkpoint: Path, change: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import AutoPipelineForInpainting
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    model = loading.load(checkpoint, CPU, torch.float32)
    region = cropped(model)
    settings = SamplingSettings(8, 3.0)
    ours, _ = Inpainter(model, region, {}, PROMPT, change, 0.0, settings).sample(SEEDS, lambda done, total: None)
    # diffusers samples from the encoder's distribution, which makes its result depend on the order of its own draws
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mean)
    pipe = AutoPipelineForInpainting.from_pretrained(checkpoint, safety_checker=None)
    assert type(pipe).__name__.endswith("InpaintPipeline")
    pipe.set_progress_bar_config(disable=True)
    side = model.resolution
    theirs = pipe(
        prompt=[PROMPT] * 2, image=Image.fromarray(region.picture), mask_image=Image.fromarray((region.region_map() > 0).astype(np.uint8) * 255),
        height=side, width=side, strength=change, num_inference_steps=8, guidance_scale=3.0, output_type="latent",
        generator=[torch.Generator().manual_seed(s) for s in SEEDS],
    ).images  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (decode(model, ours)[0] != decode(model, ours)[1]).any()


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_an_instruction_edits_as_in_diffusers(family: str, tmp_path: Path) -> None:
    """Where everything may change, the image is that of diffusers' pipeline with an image scale of 1 and the same noisy start."""
    import diffusers

    plain = {"sd1": tiny_families.sd1, "sdxl": tiny_families.sdxl}[family](tmp_path / "plain")
    folder = inpainting_bases.widen(plain, tmp_path / "edit", 8, "InstructPix2Pix")
    model = loading.load(folder, CPU, torch.float32)
    side = model.resolution
    picture = np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)
    everything = CroppedRegion(picture, from_pixels((0, 0, side, side), (side, side)), Crop(0, 0, side), side, 0.0)
    settings = SamplingSettings(8, 3.0)
    ours, _ = Inpainter(model, everything, {}, PROMPT, 1.0, 0.0, settings).sample(SEEDS, lambda done, total: None)
    pipe = getattr(diffusers, json.loads((folder / "model_index.json").read_text())["_class_name"]).from_pretrained(
        folder, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    noise = torch.stack([torch.randn(ours.shape[1:], generator=torch.Generator().manual_seed(s)) for s in SEEDS])
    pipe.scheduler.set_timesteps(8)
    drawn = model.encode_image(torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1).expand_as(noise)
    noisy = pipe.scheduler.add_noise(drawn, noise, pipe.scheduler.timesteps[:1]) / pipe.scheduler.init_noise_sigma
    theirs = pipe(
        prompt=[PROMPT] * 2, image=torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255, num_inference_steps=8,
        guidance_scale=3.0, image_guidance_scale=1.0, latents=noisy, output_type="latent", **({"height": side, "width": side} if family == "sdxl" else {}),
    ).images  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_without_a_region_it_draws_under_a_mask_of_everything(checkpoint: Path) -> None:
    model = loading.load(checkpoint, CPU, torch.float32)
    condition = model.encode_prompt([PROMPT])
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    grey = model.encode_image(torch.zeros(1, 3, *(model.vae_scale_factor * 8,) * 2))
    inputs = torch.cat([latents, torch.ones(1, 1, 8, 8), grey], 1)
    size = (model.resolution, model.resolution)
    theirs = model.denoiser(inputs, torch.tensor([500]), **model.family.denoiser_kwargs(model, condition, *size)).sample
    torch.testing.assert_close(model.predict(latents, torch.tensor([500]), condition), theirs)


@pytest.fixture
def filling(cli, base, trained_artifacts, tmp_path):
    """`cli` in a project with <cup> of the base `base`, its inpainting sibling `fill`, and the photo `table.png`."""
    import shutil

    Path("objtune.toml").write_text(f'base = "{base}"\n')
    shutil.copytree(trained_artifacts, "artifacts")
    inpainting_bases.widen(base, Path("fill"))
    table = np.random.default_rng(0).integers(90, 160, (120, 160, 3), dtype=np.uint8)
    Image.fromarray(table).save("table.png")
    return cli


AT = ("--into", "table.png", "--at", "0.4,0.25,0.9,0.75", "--steps", 2, "-n", 1, "--retries", 0)


def test_place_takes_the_inpainting_sibling_of_the_objects_base(filling) -> None:
    result = filling("place", "<cup>", *AT, "--base", "fill")
    assert result.code == 0 and "is drawn on fill, another base of Stable Diffusion 1.x" in result.err, result.err
    record = Store.at(Path()).read_record(refs.Ref("scene", "cup", 1))
    assert record.config["place_paste"] == "region" and record.base["id"] == "fill"
    before, after = (np.asarray(Image.open(path).convert("RGB")) for path in ("table.png", result.out.split()[0]))
    inside = np.zeros(before.shape[:2], bool)
    inside[30:90, 64:144] = True
    assert np.array_equal(after[~inside], before[~inside]) and not np.array_equal(after[inside], before[inside])
    cut_out = filling("place", "<cup>", *AT, "--base", "fill", "--set", "place.paste=object")
    assert cut_out.code == 0 and "scene/cup/v002" in cut_out.out


def test_place_takes_a_model_that_edits(filling, base) -> None:
    inpainting_bases.widen(base, Path("edit"), 8, "InstructPix2Pix")
    result = filling("place", "put a <cup> on the table", *AT, "--base", "edit")
    assert result.code == 0, result.err
    before, after = (np.asarray(Image.open(path).convert("RGB")) for path in ("table.png", result.out.split()[0]))
    assert np.array_equal(after[:, :64], before[:, :64]) and not np.array_equal(after, before)
    elsewhere = filling("generate", "<cup>", "--base", "edit")
    assert elsewhere.code == 6 and "the base edit is an editing model" in elsewhere.err


def test_other_commands_and_other_kinds_refuse_by_name(filling, base, tmp_path) -> None:
    for command in (("generate", "<cup>"), ("compose", "<cup>", "--place", "cup=left")):
        result = filling(*command, "--base", "fill")
        assert (
            result.code == 6 and "the base fill is an inpainting model" in result.err and "objtune place" in result.err
        )
    strict = filling("place", "<cup>", *AT, "--base", "fill", "--strict-base")
    assert strict.code == 6
    other = inpainting_bases.widen(tiny_families.sdxl(tmp_path / "plain"), Path("xl"))
    wrong = filling("place", "<cup>", *AT, "--base", other)
    assert wrong.code == 6 and "family" in wrong.err
    assert not Path("artifacts/scene").exists()


def test_a_single_file_is_an_inpainting_model_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from objtune_cli.models.families import bundled_tokenizers, single_file
    from tests.support import tiny_sd1

    plain = tiny_families.sd1(tmp_path / "plain")
    folder = inpainting_bases.widen(plain, tmp_path / "folder")
    single_file_checkpoints.layout(plain, tmp_path / "layouts/sd1")
    monkeypatch.setattr(single_file, "LAYOUTS", tmp_path / "layouts")
    monkeypatch.setattr(bundled_tokenizers, "clip_tokenizer", lambda pad: tiny_sd1.tokenizer())
    path = single_file_checkpoints.one_file(folder, "sd1", tmp_path / "fill.safetensors")
    with pytest.raises(IncompatibleError, match="an inpainting model"):
        registry.resolve(str(path))
    base = registry.resolve(str(path), inpainting=True)
    file = loading.load(base.folder, CPU, torch.float32, base.weights, base.prediction)
    weights = loading.load(folder, CPU, torch.float32).denoiser.state_dict()
    assert file.picture_inputs is not None and file.picture_inputs.keeps_surroundings
    for key, value in file.denoiser.state_dict().items():
        assert torch.equal(value, weights[key]), key
