"""Differential inpainting beside diffusers' own inpainting, and its limits."""

import pytest
import torch

from objtune_cli.generation.sampling import resample, sample
from objtune_cli.generation.settings import SamplingSettings
from objtune_cli.models.base_model import BaseModel

PROMPT = "a photo of a dog"


def start_and_map(model: BaseModel) -> tuple[torch.Tensor, torch.Tensor]:
    change = torch.zeros(8, 8)
    change[2:7, 3:8] = 1
    return sample(model, PROMPT, [1, 2], SamplingSettings(3, 1.0)), change


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm++"])
@pytest.mark.parametrize("strength", [0.5, 0.75])
def test_a_hard_map_is_the_inpainting_of_diffusers(model: BaseModel, scheduler: str, strength: float) -> None:
    from diffusers import StableDiffusionInpaintPipeline  # behind the repair of torchvision, which loading a base does

    start, change = start_and_map(model)
    settings = SamplingSettings(8, 3.0, scheduler)
    ours = resample(model, start, PROMPT, [5, 6], strength, settings, change_map=change)
    parts = {
        "text_encoder": None,
        "tokenizer": None,
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    pipe = StableDiffusionInpaintPipeline(
        vae=model.vae, unet=model.denoiser, scheduler=model.pipeline(scheduler).scheduler, **parts
    )
    pipe.set_progress_bar_config(disable=True)
    side = 8 * model.vae_scale_factor
    theirs = pipe(
        image=start, mask_image=change.repeat_interleave(model.vae_scale_factor, 0).repeat_interleave(model.vae_scale_factor, 1)[None, None],
        masked_image_latents=torch.zeros_like(start), height=side, width=side, strength=strength, num_inference_steps=8, guidance_scale=3.0,
        output_type="latent", generator=[torch.Generator().manual_seed(s) for s in (5, 6)],
        prompt_embeds=model.encode_prompt([PROMPT] * 2).sequence, negative_prompt_embeds=model.encode_prompt([""] * 2).sequence,
    ).images  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_cells_outside_stay_and_soft_cells_change_less(model: BaseModel) -> None:
    start, change = start_and_map(model)
    change[2:7, 3] = 0.3
    drawn = resample(model, start, PROMPT, [5, 6], 1.0, SamplingSettings(10, 1.0), change_map=change)
    assert torch.equal(drawn[:, :, change == 0], start[:, :, change == 0])
    moved = (drawn - start).abs().mean((0, 1))
    assert 0 < moved[change == 0.3].mean() < 0.7 * moved[change == 1].mean()
    whole = resample(model, start, PROMPT, [5, 6], 1.0, SamplingSettings(10, 1.0), change_map=torch.ones(8, 8))
    assert torch.equal(whole, resample(model, start, PROMPT, [5, 6], 1.0, SamplingSettings(10, 1.0)))
