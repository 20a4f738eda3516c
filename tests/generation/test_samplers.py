"""Every named sampler draws, and steps as diffusers' pipeline does; spellings of other tools; flows."""

from pathlib import Path
from typing import Any

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before the libraries below ask for it)

# isort: split
import diffusers
import pytest
import torch

from objtune_cli.config import sampler_names
from objtune_cli.errors import IncompatibleError
from objtune_cli.generation.sampling import resample, sample
from objtune_cli.generation.settings import SamplingSettings
from objtune_cli.models import loading
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.families import samplers
from tests.support import tiny_families

CPU = torch.device("cpu")
OF_UNETS = [
    sampler_names.join_name(name, schedule)
    for name, one in samplers.SAMPLERS.items()
    for schedule in ("", *samplers.SCHEDULES)
    if not schedule or (one.trailing if schedule == "trailing" else one.schedules)
]
OF_FLOWS = {
    "euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "euler_karras": ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler_exponential": ("FlowMatchEulerDiscreteScheduler", {"use_exponential_sigmas": True}),
    "euler_beta": ("FlowMatchEulerDiscreteScheduler", {"use_beta_sigmas": True}),
    "heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "lcm": ("FlowMatchLCMScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_3m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", {}),
    "dpmpp_sde": ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "deis": ("DEISMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Family to its loaded tiny base and diffusers' pipeline."""
    folders: dict[str, Any] = {}

    def load(name: str) -> tuple[BaseModel, Any]:
        if name not in folders:
            folder: Path = getattr(tiny_families, name)(tmp_path_factory.mktemp("base") / name)
            kind = diffusers.StableDiffusion3Pipeline if name == "sd3" else diffusers.StableDiffusionPipeline
            pipe = kind.from_pretrained(folder, local_files_only=True, **tiny_families.LEFT_OUT[name])
            pipe.set_progress_bar_config(disable=True)
            folders[name] = loading.load(folder, CPU, torch.float32), pipe
        return folders[name]

    return load


def draw(pipe: Any, steps: int = 5) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 9)]
    return pipe(
        ["a dog"] * 2, num_inference_steps=steps, guidance_scale=4.0, height=32, width=32, output_type="latent", generator=generators
    ).images  # fmt: skip


@pytest.mark.parametrize("name", OF_UNETS)
def test_samplers_step_as_diffusers_does(opened: Any, name: str) -> None:
    """Two images at once, and the second alone, whatever the global generator."""
    model, pipe = opened("sd1")
    named, schedule = sampler_names.split_name(name)
    one = samplers.SAMPLERS[named]
    added = (
        {}
        if not schedule
        else {"original_inference_steps": 1000}
        if name == "lcm_trailing"
        else {"timestep_spacing": "trailing"}
        if schedule == "trailing"
        else {f"use_{schedule}_sigmas": True}
    )
    pipe.scheduler = getattr(diffusers, one.scheduler).from_config(model.scheduler.config, **one.options, **added)
    ours = sample(model, "a dog", [3, 9], SamplingSettings(5, 4.0, name))
    theirs = draw(pipe)
    assert ours.isfinite().all()
    rounding = 1e-3 if named == "dpmpp_3m_sde" else 2e-4  # its third differences amplify the rounding
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=rounding)
    torch.manual_seed(1)
    torch.testing.assert_close(
        sample(model, "a dog", [9], SamplingSettings(5, 4.0, name))[0], ours[1], rtol=1e-4, atol=rounding
    )
    middle = resample(model, ours, "a dog", [3, 9], 0.5, SamplingSettings(6, 4.0, name))
    assert middle.isfinite().all() and 1e-3 < (middle - ours).abs().max() < 100


@pytest.mark.parametrize("name", OF_FLOWS)
def test_samplers_of_flows_step_as_diffusers_does(opened: Any, name: str) -> None:
    model, pipe = opened("sd3")
    kind, options = OF_FLOWS[name]
    config = model.scheduler.config
    flow = (
        {"shift": config.shift} if kind.startswith("FlowMatch") else
        {"use_flow_sigmas": True, "flow_shift": config.shift, "prediction_type": "flow_prediction"}
    )  # fmt: skip
    pipe.scheduler = getattr(diffusers, kind)(num_train_timesteps=1000, **flow, **options)
    if name == "lcm" or "sde" in name:  # the pipeline of diffusers passes no generator
        step = pipe.scheduler.step
        generators = [torch.Generator().manual_seed(seed) for seed in (3, 9)]
        shape = (model.denoiser.config.in_channels, 8, 8)
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
        pipe.scheduler.step = lambda *args, **kwargs: step(*args, **kwargs, generator=generators)
        theirs = pipe(
            ["a dog"] * 2, num_inference_steps=5, guidance_scale=4.0, height=32, width=32, output_type="latent", latents=noise
        ).images  # fmt: skip
    else:
        theirs = draw(pipe)
    ours = sample(model, "a dog", [3, 9], SamplingSettings(5, 4.0, name))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)
    torch.manual_seed(1)
    torch.testing.assert_close(
        sample(model, "a dog", [9], SamplingSettings(5, 4.0, name))[0], ours[1], rtol=1e-4, atol=2e-4
    )
    middle = resample(model, ours, "a dog", [3, 9], 0.5, SamplingSettings(6, 4.0, name))
    assert middle.isfinite().all() and (middle - ours).abs().max() > 1e-3


def test_trailing_steps_of_lcm_are_those_of_dmd2(opened: Any) -> None:
    """Its model card draws with these timesteps, which are not the sampler's own."""
    sampler = opened("sd1")[0].pipeline("lcm_trailing").scheduler
    sampler.set_timesteps(4)
    assert sampler.timesteps.tolist() == [999, 749, 499, 249]


def test_what_a_sampler_lacks_is_refused(opened: Any) -> None:
    unet, flow = opened("sd1")[0], opened("sd3")[0]
    for model, name in ((unet, "euler_a_karras"), (unet, "tcd_trailing"), (unet, "dpmpp_2s_trailing"), (flow, "ddim"), (flow, "euler_a"),
                        (flow, "heun_karras"), (flow, "dpmpp_2m_karras"), (flow, "euler_trailing")):  # fmt: skip
        with pytest.raises(IncompatibleError, match=r"schedule|does not support"):
            sample(model, "a dog", [1], SamplingSettings(2, 1.0, name))


@pytest.mark.parametrize(
    ("text", "name", "label"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m_karras", ("DPM++ 2M", "Karras")),
        ("DPM++ 2M", "dpm++", ("DPM++ 2M", "")),
        ("dpm++", "dpm++", ("DPM++ 2M", "")),
        ("dpmpp_2m", "dpm++", ("DPM++ 2M", "")),
        ("DPM++ SDE Karras", "dpmpp_sde_karras", ("DPM++ SDE", "Karras")),
        ("DPM++ 3M SDE Exponential", "dpmpp_3m_sde_exponential", ("DPM++ 3M SDE", "Exponential")),
        ("Euler a", "euler_a", ("Euler a", "")),
        ("euler_ancestral", "euler_a", ("Euler a", "")),
        ("EulerAncestralDiscreteScheduler", "euler_a", ("Euler a", "")),
        ("EulerDiscreteScheduler", "euler", ("Euler", "")),
        ("DPMSolverMultistepScheduler", "dpm++", ("DPM++ 2M", "")),
        ("FlowMatchEulerDiscreteScheduler", "euler", ("Euler", "")),
        ("UniPCMultistepScheduler", "unipc", ("UniPC", "")),
        ("uni_pc", "unipc", ("UniPC", "")),
        ("DDIMScheduler", "ddim", ("DDIM", "")),
        ("PNDMScheduler", "pndm", ("PLMS", "")),
        ("LCMScheduler", "lcm", ("LCM", "")),
        ("PLMS", "pndm", ("PLMS", "")),
        ("dpm_2_ancestral", "dpm2_a", ("DPM2 a", "")),
        ("DPM2 a Karras", "dpm2_a_karras", ("DPM2 a", "Karras")),
        ("Euler SGM Uniform", "euler_trailing", ("Euler", "SGM Uniform")),
        ("heun-beta", "heun_beta", ("Heun", "Beta")),
    ],
)
def test_spellings_of_other_tools(text: str, name: str, label: tuple[str, str]) -> None:
    assert sampler_names.read_scheduler(text) == name and samplers.describe_name(name) == label
    assert sampler_names.join_name(*sampler_names.split_name(name)) == name == sampler_names.read_scheduler(name)


def test_both_lists_are_one() -> None:
    assert tuple(samplers.SAMPLERS) == sampler_names.SAMPLERS and tuple(samplers.SCHEDULES) == sampler_names.SCHEDULES
    assert all(sampler_names.read_scheduler(name) == name for name in OF_UNETS)
    with pytest.raises(ValueError, match=r"did you mean euler\? auto, ddim"):
        sampler_names.read_scheduler("eulr")
    with pytest.raises(ValueError, match="auto, ddim"):
        sampler_names.read_scheduler("auto_karras")
