"""LoRAs of few steps: names that are recognised, what they set, and what the user's own settings keep."""

from collections.abc import Callable
from pathlib import Path

import pytest

from objtune_cli.generation.fast_loras import recognize
from objtune_cli.store import refs
from objtune_cli.store.store import Store
from tests.generation.test_extra_loras import parameters, studio, style  # noqa: F401

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")

ONE = ("-n", "1")


@pytest.mark.parametrize(
    ("name", "scheduler", "steps", "guidance"),
    [
        ("lcm-lora-sdv1-5", "lcm", 4, 1), ("LCM_LoRA_Weights_SD15", "lcm", 4, 1), ("sdxl_lightning_4step_lora", "euler_trailing", 4, 1),
        ("sdxl_lightning_8step_lora", "euler_trailing", 8, 1), ("Hyper-SDXL-8steps-lora", "ddim_trailing", 8, 1),
        ("Hyper-SD15-1step-lora", "tcd", 1, 1), ("Hyper-SD15-12steps-CFG-lora", "ddim_trailing", 12, 5), ("dmd2_sdxl_4step_lora_fp16", "lcm_trailing", 4, 1),
        ("TCD-SDXL-LoRA", "tcd", 4, 1), ("sd_xl_turbo_lora_v1", "euler_a_trailing", 4, 1), ("flash-sdxl", "lcm", 4, 1),
    ],
)  # fmt: skip
def test_names_of_published_files(name: str, scheduler: str, steps: int, guidance: float) -> None:
    fast = recognize(name, {}, is_flow=False)
    assert fast and (fast.scheduler, fast.num_inference_steps, fast.guidance_scale) == (scheduler, steps, guidance)
    assert recognize("my_style", {"ss_output_name": name}, is_flow=False) == fast


@pytest.mark.parametrize(
    ("name", "scheduler", "steps", "guidance", "strength"),
    [("Hyper-SD3-8steps-CFG-lora", "euler", 8, 5, 0.125), ("sd3.5m_turbo", "euler", 8, 1, 1), ("flash-sd3", "lcm", 4, 1, 1)],
)  # fmt: skip
def test_names_of_files_for_flows(name: str, scheduler: str, steps: int, guidance: float, strength: float) -> None:
    fast = recognize(name, {}, is_flow=True)
    assert fast and (fast.scheduler, fast.num_inference_steps) == (scheduler, steps)
    assert (fast.guidance_scale, fast.strength) == (guidance, strength)


@pytest.mark.parametrize(
    "name", ["lightning_storm", "turbo_cars", "hyperrealism", "flashlight", "welcome", "add_detail", "calcium"]
)
def test_styles_are_no_methods(name: str) -> None:
    assert recognize(name, {"modelspec.title": name}, is_flow=False) is None


def test_a_fast_lora_brings_its_sampler_steps_and_guidance(studio: Callable) -> None:  # noqa: F811
    Path("style.safetensors").rename("lcm-lora-sdv1-5.safetensors")
    result = studio("generate", "<dog>", *ONE, "--lora", "lcm-lora-sdv1-5.safetensors")
    assert "few-step LoRA (LCM): --scheduler lcm --steps 4 --guidance 1" in result.err
    assert "Steps: 4, Sampler: LCM, CFG scale: 1," in parameters(result)
    own = studio(
        "generate", "<dog>", *ONE, "--lora", "lcm-lora-sdv1-5.safetensors:0.9", "--steps", 6, "--scheduler", "Euler a"
    )
    assert "few-step LoRA (LCM): --guidance 1" in own.err and "Steps: 6, Sampler: Euler a, CFG scale: 1," in parameters(
        own
    )
    config = Store.at(Path()).read_record(refs.parse("scene/dog@2")).config
    assert config["scheduler"] == "euler_a" and config["num_inference_steps"] == 6
    scene = studio("compose", "<dog> and <cup>", *ONE, "--retries", 0, "--set", "compose.presence_check=false",
                   "--lora", "lcm-lora-sdv1-5.safetensors")  # fmt: skip
    assert "Steps: 4, Sampler: LCM, CFG scale: 1," in parameters(scene)
    plain = studio("generate", "<dog>", *ONE)
    assert "few-step" not in plain.err and "Sampler: PLMS" in parameters(plain)


def test_samplers_by_the_names_of_other_tools(studio: Callable) -> None:  # noqa: F811
    for given, written in (
        ("DPM++ 2M Karras", "DPM++ 2M, Schedule type: Karras"),
        ("uni_pc", "UniPC"),
        ("dpmpp_2m", "DPM++ 2M"),
    ):
        result = studio("generate", "<dog>", *ONE, "--steps", 3, "--scheduler", given)
        assert f"Sampler: {written}, CFG scale" in parameters(result)
    same = studio("generate", "<dog>", *ONE, "--steps", 3, "--set", "generate.scheduler=dpm++")
    assert same.out == result.out
    wrong = studio("generate", "<dog>", *ONE, "--scheduler", "eulr")
    assert wrong.code == 2 and "--scheduler is 'eulr'" in wrong.err and "did you mean euler?" in wrong.err
    lacks = studio("generate", "<dog>", *ONE, "--scheduler", "ddim_karras")
    assert lacks.code == 6 and "the sampler ddim has no schedule karras" in lacks.err and "Traceback" not in lacks.err
