"""Pictures that the frozen base begins: the objects' classes at high noise, the objects themselves below; exactly two samplers' steps, one after the other."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from objtune_cli.generation.sampling import sample
from objtune_cli.generation.settings import SamplingSettings
from objtune_cli.lora import layers
from objtune_cli.models import adapter_state, loading
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.placeholders import Placeholders, class_token_embeddings
from tests.support import tiny_families

NAMES = ("sd1", "sdxl", "sd3")
PROMPT, WORN, ALONE = "a photo of <rex> in a hat", "a photo of a dog in a hat", "a photo of a dog"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_families.folders(tmp_path_factory.mktemp("bases"), NAMES)


def taught(folder: Path) -> tuple[BaseModel, str]:
    """A base with the word `<rex>` and a LoRA that does something, and the prompt in its tokens."""
    model = loading.load(folder, torch.device("cpu"), torch.float32)
    words = Placeholders(model)
    rows = class_token_embeddings(model, "dog")
    words.add("rex", rows + torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)), "dog")
    g = torch.Generator().manual_seed(0)
    for p in layers.add(model, 2, "attention", seed=0):
        torch.nn.init.normal_(p, std=0.3, generator=g)
    return model, words.expand(PROMPT)


def drawn(model: BaseModel, text: str, guidance: float = 2.0, **how: float) -> Tensor:
    return sample(model, text, [1, 2], SamplingSettings(4, guidance, **how))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("guidance", "below"), [(1.0, 1.0), (2.0, 1.0), (2.0, 0.5)])
def test_never_itself_it_is_its_class_and_always_it_is_as_before(
    folders: dict[str, Path], name: str, guidance: float, below: float
) -> None:
    model, text = taught(folders[name])
    own, kind = (
        drawn(model, text, guidance, guidance_interval_high=below),
        drawn(model, text, guidance, guidance_interval_high=below, subject_conditioning_start=0.0),
    )
    assert torch.equal(drawn(model, text, guidance, guidance_interval_high=below, subject_conditioning_start=1.0), own)
    with adapter_state.disabled(model):
        torch.testing.assert_close(kind, drawn(model, WORN, guidance, guidance_interval_high=below), rtol=0, atol=1e-5)
    between = drawn(model, text, guidance, guidance_interval_high=below, subject_conditioning_start=0.5)
    assert (between - own).abs().max() > 1e-3 and (between - kind).abs().max() > 1e-3
    assert torch.equal(drawn(model, text, guidance, guidance_interval_high=below), own)  # and it acts again afterwards


@pytest.mark.parametrize(("below", "scene"), [(1.0, 0.0), (0.3, 0.0), (0.7, 0.0), (1.0, 1.5), (0.3, 1.5)])
def test_four_steps_by_hand_the_first_ones_of_the_class(folders: dict[str, Path], below: float, scene: float) -> None:
    """With guidance from the start, before the object, and only after it; with what the base says of the scene in all steps."""
    model, text = taught(folders["sd1"])
    z = torch.randn(
        4,
        model.resolution // model.vae_scale_factor,
        model.resolution // model.vae_scale_factor,
        generator=torch.Generator().manual_seed(3),
    )[None]
    schedule = model.pipeline("ddim").scheduler
    schedule.set_timesteps(4)
    early = [int(t) >= 0.5 * model.num_train_timesteps for t in schedule.timesteps]
    assert early == [True, True, False, False]
    with torch.no_grad():
        for i, t in enumerate(schedule.timesteps):

            def said(words: str, z: Tensor = z, t: Tensor = t) -> Tensor:
                return model.predict(z, t[None], model.encode_prompt([words]))

            with adapter_state.disabled(model):
                kind, alone, without = said(WORN), said(ALONE), said("")
            told, free = (kind, without) if early[i] else (said(text), said(""))
            guidance = 2.5 if t < below * model.num_train_timesteps else 1.0
            z = schedule.step(free + guidance * (told - free) + scene * (kind - alone), t, z).prev_sample
    found = sample(
        model,
        text,
        [3],
        SamplingSettings(
            4, 2.5, "ddim", guidance_interval_high=below, prompt_guidance_scale=scene, subject_conditioning_start=0.5
        ),
    )
    torch.testing.assert_close(found, z, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scheduler", ["euler", "dpm++"])
def test_pictures_of_no_object_by_no_adapter_are_the_same(folders: dict[str, Path], scheduler: str) -> None:
    model, _ = taught(folders["sd1"])
    layers.set_active(model, [])
    plain, begun = (
        sample(
            model,
            WORN,
            [3, 4],
            SamplingSettings(5, 2.0, scheduler, guidance_interval_high=0.7, subject_conditioning_start=level),
        )
        for level in (1.0, 0.8)
    )
    torch.testing.assert_close(begun, plain, rtol=0, atol=1e-5)


def test_an_error_on_the_way_leaves_the_adapter_awake(folders: dict[str, Path]) -> None:
    model, text = taught(folders["sd1"])
    own = drawn(model, text)

    def stop(done: int, total: int) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        sample(model, text, [1, 2], SamplingSettings(4, 2.0, subject_conditioning_start=0.2), on_step=stop)
    assert not model.adapters_disabled and torch.equal(drawn(model, text), own)
