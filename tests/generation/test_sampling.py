"""Sampling through diffusers' pipeline: seeds, batches, guidance, bytes."""

import pytest
import torch

from objtune_cli.generation.sampling import sample, to_uint8
from objtune_cli.generation.settings import SamplingSettings
from objtune_cli.models.base_model import BaseModel

PROMPT = "a photo of a dog"


def test_a_picture_is_the_same_alone_and_in_a_batch(model: BaseModel) -> None:
    together = sample(model, PROMPT, [5, 6, 7, 8], SamplingSettings(4, 3.0))
    assert together.shape == (4, 4, 8, 8) and together.dtype == torch.float32
    for i, seed in enumerate((5, 6, 7, 8)):
        torch.testing.assert_close(
            sample(model, PROMPT, [seed], SamplingSettings(4, 3.0))[0], together[i], rtol=0, atol=1e-4
        )
    assert (together[0] - together[1]).abs().max() > 0.1


@pytest.mark.parametrize("scheduler", ["auto", "ddim", "euler", "dpm++"])
def test_samplers_are_repeatable_whatever_the_global_generator(model: BaseModel, scheduler: str) -> None:
    torch.manual_seed(0)
    first = sample(model, PROMPT, [1], SamplingSettings(4, 3.0, scheduler))
    torch.manual_seed(1)
    assert torch.equal(sample(model, PROMPT, [1], SamplingSettings(4, 3.0, scheduler)), first)
    assert first.isfinite().all()


def test_sampling_does_not_wear_out_the_base(model: BaseModel) -> None:
    first = sample(model, PROMPT, [1], SamplingSettings(4, 3.0))
    sample(model, "a cat", [1, 2], SamplingSettings(7, 1.5, "euler"))
    assert torch.equal(sample(model, PROMPT, [1], SamplingSettings(4, 3.0)), first)


def test_without_guidance_the_negative_prompt_does_not_count(model: BaseModel) -> None:
    plain = sample(model, PROMPT, [1], SamplingSettings(3, 1.0))
    assert torch.equal(sample(model, PROMPT, [1], SamplingSettings(3, 1.0, negative_prompt="a cat in the snow")), plain)
    guided = [
        sample(model, PROMPT, [1], SamplingSettings(3, 4.0, negative_prompt=negative))
        for negative in ("", "a cat in the snow")
    ]
    assert (guided[0] - guided[1]).abs().max() > 1e-3


def test_one_step_by_hand(model: BaseModel) -> None:
    """DDIM from t = 1 to the clean latent: z = (z_t - sqrt(1 - abar) eps) / sqrt(abar), then noised to the last level."""
    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3))[None]
    pipe = model.pipeline("ddim")
    pipe.scheduler.set_timesteps(1)
    t = pipe.scheduler.timesteps[:1]
    with torch.no_grad():
        free, told = (model.predict(noise, t, model.encode_prompt([text])) for text in ("", PROMPT))
    eps = free + 2.5 * (told - free)
    level, last = model.alpha_bar[t].view(-1, 1, 1, 1), model.scheduler.final_alpha_cumprod
    clean = (noise - (1 - level).sqrt() * eps) / level.sqrt()
    expected = last.sqrt() * clean + (1 - last).sqrt() * eps
    torch.testing.assert_close(
        sample(model, PROMPT, [3], SamplingSettings(1, 2.5, "ddim")), expected, rtol=1e-3, atol=1e-4
    )


def test_progress_counts_steps(model: BaseModel) -> None:
    seen: list[tuple[int, int]] = []
    sample(model, PROMPT, [0], SamplingSettings(3, 2.0, "ddim"), lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    seen.clear()
    sample(model, PROMPT, [0], SamplingSettings(3, 2.0), on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 4) for i in range(4)]  # PLMS takes its second step twice


def test_pictures_to_bytes() -> None:
    values = torch.tensor([-1.0, 1.0, 0.0, -2.0, 3.0, 1 / 127.5, 0.5 / 127.5 - 1, 0.6 / 127.5 - 1])
    shown = to_uint8(values.view(1, 1, 1, -1).expand(2, 3, 1, -1))
    assert shown.dtype == torch.uint8 and shown.shape == (2, 1, 8, 3) and shown.is_contiguous()
    assert shown[1, 0, :, 2].tolist() == [0, 255, 128, 0, 255, 128, 0, 1]  # 127.5 and 0.5 round to even


def test_every_byte_comes_back() -> None:
    x = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(to_uint8(x.permute(0, 3, 1, 2).float() / 127.5 - 1), x)


@pytest.mark.parametrize("scheduler", ["auto", "euler", "dpm++"])
def test_guidance_acts_below_its_noise_level_alone(model: BaseModel, scheduler: str) -> None:
    """Never: as without guidance. Always: as with it. Between: the first steps are those without."""
    plain, guided = (
        sample(model, PROMPT, [1, 2], SamplingSettings(5, g, scheduler, negative_prompt="a cat")) for g in (1.0, 4.0)
    )
    torch.testing.assert_close(
        sample(
            model,
            PROMPT,
            [1, 2],
            SamplingSettings(5, 4.0, scheduler, negative_prompt="a cat", guidance_interval_high=1.0),
        ),
        guided,
    )
    torch.testing.assert_close(
        sample(
            model,
            PROMPT,
            [1, 2],
            SamplingSettings(5, 4.0, scheduler, negative_prompt="a cat", guidance_interval_high=0.0),
        ),
        plain,
    )
    between = sample(
        model, PROMPT, [1, 2], SamplingSettings(5, 4.0, scheduler, negative_prompt="a cat", guidance_interval_high=0.5)
    )
    assert (between - plain).abs().max() > 1e-3 and (between - guided).abs().max() > 1e-3
    assert torch.equal(
        sample(
            model,
            PROMPT,
            [1, 2],
            SamplingSettings(5, 1.0, scheduler, negative_prompt="a cat", guidance_interval_high=0.5),
        ),
        plain,
    )


def test_two_steps_by_hand_the_first_without_guidance(model: BaseModel) -> None:
    z = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3))[None]
    schedule = model.pipeline("ddim").scheduler
    schedule.set_timesteps(2)
    assert (schedule.timesteps >= 0.4 * len(model.alpha_bar)).tolist() == [True, False]
    for t, guidance in zip(schedule.timesteps, (1.0, 2.5), strict=True):
        with torch.no_grad():
            free, told = (model.predict(z, t[None], model.encode_prompt([text])) for text in ("", PROMPT))
        z = schedule.step(free + guidance * (told - free), t, z).prev_sample
    torch.testing.assert_close(
        sample(model, PROMPT, [3], SamplingSettings(2, 2.5, "ddim", guidance_interval_high=0.4)),
        z,
        rtol=1e-3,
        atol=1e-4,
    )
