"""A base is drawn by its own sampler, with the numbers of diffusers' pipeline; what takes its place, or cannot be drawn with, is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from objtune_cli.errors import IncompatibleError, UsageError
from objtune_cli.generation.sampling import resample, sample
from objtune_cli.generation.settings import SamplingSettings
from objtune_cli.models import loading, registry
from objtune_cli.models.families import samplers, schedulers
from tests.support import tiny_families, tiny_sd1

CPU = torch.device("cpu")
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd1.build(tmp_path_factory.mktemp("samplers") / "base", clip=False)


@pytest.fixture
def base(plain: Path, tmp_path: Path) -> Callable[..., Path]:
    """The tiny base with another scheduler; some values of its config may be ones that the class would not take."""

    def make(name: str, **values: Any) -> Path:
        folder = shutil.copytree(plain, tmp_path / "base", dirs_exist_ok=True)
        (folder / "scheduler/scheduler_config.json").write_text(json.dumps({"_class_name": name} | NOISE | values))
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", name]}))
        return folder

    return make


OWN = [
    (
        "DDIMScheduler",
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        "DDIM",
        "",
    ),
    ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}, "PLMS", ""),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, "Euler", "Karras"),
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, "Euler a", ""),
    ("HeunDiscreteScheduler", {}, "Heun", ""),
    ("LMSDiscreteScheduler", {}, "LMS", ""),
    ("KDPM2AncestralDiscreteScheduler", {}, "DPM2 a", ""),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, "DPM++ 2M", "Karras"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "DPM++ 2M SDE", ""),
    ("UniPCMultistepScheduler", {}, "UniPC", ""),
    ("LCMScheduler", {}, "LCM", ""),
    ("DDPMScheduler", {}, "DDPM", ""),
]


@pytest.mark.parametrize(("name", "values", "called", "kind"), OWN)
def test_pictures_are_those_of_diffusers_pipeline(
    base: Callable[..., Path], name: str, values: dict[str, Any], called: str, kind: str
) -> None:
    """Two pictures at once, of which the second alone is the same: samplers that add noise take each picture's own."""
    from diffusers import StableDiffusionPipeline

    folder = base(name, **values)
    model = loading.load(folder, CPU, torch.float32)
    ours = sample(model, "a dog", [3, 9], SamplingSettings(5, 4.0))
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 9)]
    theirs = pipe(
        ["a dog"] * 2,
        num_inference_steps=5,
        guidance_scale=4.0,
        height=32,
        width=32,
        output_type="latent",
        generator=generators,
    ).images
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(sample(model, "a dog", [9], SamplingSettings(5, 4.0))[0], ours[1], rtol=1e-4, atol=2e-4)
    found = registry.resolve(str(folder))
    assert (
        found.sampler == (called, kind)
        and found.sampler_settings() == ({} if name == "DDIMScheduler" else {"sampler": name})
        and not model.notes
    )
    begun = sample(
        model, "a dog", [3], SamplingSettings(5, 4.0, guidance_interval_high=0.5, subject_conditioning_start=0.8)
    )
    assert begun.isfinite().all() and (begun - ours[:1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "HeunDiscreteScheduler",
        "UniPCMultistepScheduler",
        "EulerAncestralDiscreteScheduler",
        "DPMSolverSinglestepScheduler",
    ],
)
def test_from_the_middle_too(base: Callable[..., Path], name: str) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    model = loading.load(base(name), CPU, torch.float32)
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = resample(model, start, "a dog", [5], 0.5, SamplingSettings(6, 3.0))
    parts: dict[str, Any] = {
        "text_encoder": None,
        "tokenizer": None,
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    pipe = StableDiffusionImg2ImgPipeline(
        vae=model.vae, unet=model.denoiser, scheduler=model.pipeline().scheduler, **parts
    )
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        image=start, strength=0.5, num_inference_steps=6, guidance_scale=3.0, output_type="latent", generator=[torch.Generator().manual_seed(5)],
        prompt_embeds=model.encode_prompt(["a dog"]).sequence, negative_prompt_embeds=model.encode_prompt([""]).sequence,
    ).images  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("DPMSolverSDEScheduler", {}, "it is not supported"),
        ("EulerDiscreteScheduler", {"prediction_type": "sample"}, "predicts the clean latents"),
        ("PNDMScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, "zero terminal SNR"),
    ],
)
def test_what_takes_its_place_is_said(
    cli: Callable, project: Path, base: Callable[..., Path], name: str, values: dict[str, Any], why: str
) -> None:
    folder = base(name, **values)
    done = cli("generate", "a dog", "-n", 1, "--steps", 2, "--base", folder)
    assert done.code == 0 and f"DDIM replaces the base's own sampler {name}: " in done.err and why in done.err
    assert (
        registry.resolve(str(folder)).sampler == ("DDIM", "") and registry.resolve(str(folder)).sampler_settings() == {}
    )


def test_a_sampler_that_needs_more_than_is_installed(
    base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedulers, "find_spec", lambda name: None)
    for name, values in (("LMSDiscreteScheduler", {}), ("EulerDiscreteScheduler", {"use_beta_sigmas": True})):
        model = loading.load(base(name, **values), CPU, torch.float32)
        assert model.sampler is None and "scipy, which is not installed" in model.notes[0]


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("FooScheduler", {}, "class is unknown: FooScheduler"),
        ("DDIMScheduler", {"prediction_type": "velocity"}, "prediction_type is unknown: velocity"),
        ("DDIMScheduler", {"beta_schedule": "cosine"}, "beta_schedule is unknown: cosine"),
        ("DDIMScheduler", {"timestep_spacing": "even"}, "timestep_spacing is unknown: even"),
        ("DDIMScheduler", {"beta_start": "0.00085"}, "beta_start is not a positive number: '0.00085'"),
        ("EDMEulerScheduler", {}, "another kind of noise than its family: its scheduler is EDMEulerScheduler"),
        ("FlowMatchEulerDiscreteScheduler", {}, "another kind of noise than its family"),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, "another kind of noise than its family"),
    ],
)
def test_unknown_schedulers_are_named(
    cli: Callable, project: Path, base: Callable[..., Path], name: str, values: dict[str, Any], said: str
) -> None:
    done = cli("generate", "a dog", "--base", base(name, **values))
    assert done.code == 6 and said in done.err and "\nhint: " in done.err


def test_a_prediction_type_given_by_hand_is_taken_before_an_unknown_one(base: Callable[..., Path]) -> None:
    folder = base("DDIMScheduler", prediction_type="velocity")
    assert registry.resolve(str(folder), prediction="v").prediction_override == "v_prediction"


def test_a_diffusion_under_a_flows_family_is_named(tmp_path: Path) -> None:
    folder = tiny_families.sd3(tmp_path / "three", with_clip=False, newer=True)
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler"} | NOISE))
    with pytest.raises(IncompatibleError, match="another kind of noise"):
        registry.resolve(str(folder))


def test_steps_that_a_sampler_cannot_take(base: Callable[..., Path]) -> None:
    model = loading.load(base("LCMScheduler"), CPU, torch.float32)
    with pytest.raises(UsageError, match="the sampler LCM cannot take 60 steps"):
        sample(model, "a dog", [0], SamplingSettings(60, 1.0))
    with pytest.raises(IncompatibleError, match="the sampler euler does not support"):
        samplers.make_sampler(
            loading.load(base("DDIMScheduler", prediction_type="sample"), CPU, torch.float32).scheduler, "euler"
        )


def test_what_a_config_leaves_out_has_the_defaults_of_its_class(base: Callable[..., Path]) -> None:
    """LCM's betas are not DDIM's; a base of few steps is drawn in few."""
    folder = base("LCMScheduler")
    (folder / "scheduler/scheduler_config.json").write_text('{"_class_name": "LCMScheduler"}')
    assert float(loading.load(folder, CPU, torch.float32).alpha_bar[0]) == pytest.approx(1 - 0.00085)
    assert registry.resolve(str(folder)).sampling == {"num_inference_steps": 8, "guidance_scale": 1.0}


def test_a_scene_says_by_what_it_was_drawn(cli: Callable, project: Path, base: Callable[..., Path]) -> None:
    from PIL import Image

    folder = base("EulerAncestralDiscreteScheduler", use_karras_sigmas=False)
    line = ("generate", "a dog", "-n", 1, "--steps", 2, "--base", folder)
    said = []
    for more in ((), ("--scheduler", "dpm++")):
        done = cli(*line, *more)
        said.append(Image.open(done.out.strip()).info["parameters"])
    assert "Sampler: Euler a, " in said[0] and "Sampler: DPM++ 2M, " in said[1]
    assert cli(*line).out == "artifacts/scene/scene/v001/001.png\n"
    assert (
        json.loads(cli("show", "scene/scene@1", "--json").out)["artifact"]["config"]["sampler"]
        == "EulerAncestralDiscreteScheduler"
    )
